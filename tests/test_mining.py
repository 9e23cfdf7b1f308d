"""Miners against loops over their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pml import miners as pml_miners
from torch import Tensor

from beyond_binary import create_objective
from beyond_binary.mining import MINERS

Batch = tuple[Tensor, Tensor, Tensor]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Similarities with ties, label distances with unknown pairs, and any mask [q k]."""
    q, k = draw(st.integers(0, 5)), draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = torch.from_numpy(rng.integers(-10, 11, (q, k)) / 10)
    y = torch.from_numpy(rng.choice([0.0, 0.0, 1.0, 2.5, np.nan], (q, k)))
    valid = torch.from_numpy(rng.random((q, k)) < draw(st.sampled_from([0.0, 0.5, 1.0]))) & ~y.isnan()
    return x, y, valid


def sides(x: Tensor, y: Tensor, valid: Tensor, i: int) -> tuple[dict[int, float], dict[int, float]]:
    """Similarities of row i's positives and negatives, by column."""
    columns = [j for j in range(x.shape[1]) if valid[i, j]]
    positive = {j: x[i, j].item() for j in columns if y[i, j] == 0}
    return positive, {j: x[i, j].item() for j in columns if j not in positive}


@given(batches(), st.sampled_from([0.0, 0.1, 0.25]))
def test_multi_similarity_miner(batch: Batch, epsilon: float) -> None:
    x, y, valid = batch
    expected = torch.zeros_like(valid)
    for i in range(len(x)):
        positive, negative = sides(x, y, valid, i)
        if positive and negative:
            for j, s in positive.items():
                expected[i, j] = s < max(negative.values()) + epsilon
            for j, s in negative.items():
                expected[i, j] = s > min(positive.values()) - epsilon
    assert MINERS["multi_similarity"].build(x, y, valid, epsilon=epsilon).equal(expected)


@given(batches())
def test_batch_hard_miner(batch: Batch) -> None:
    x, y, valid = batch
    expected = torch.zeros_like(valid)
    for i in range(len(x)):
        positive, negative = sides(x, y, valid, i)
        if positive and negative:
            expected[i, min(positive, key=lambda j: (positive[j], j))] = True
            expected[i, max(negative, key=lambda j: (negative[j], -j))] = True
    assert MINERS["batch_hard"].build(x, y, valid).equal(expected)


def of_triplets(batch: Batch, choose: Callable[[dict[int, float], dict[int, float]], set[tuple[int, int]]]) -> Tensor:
    """Mask of the pairs in the triplets (positive, negative) that `choose` takes from the distances of each side."""
    x, y, valid = batch
    expected = torch.zeros_like(valid)
    for i in range(len(x)):
        near, far = ({j: -s for j, s in side.items()} for side in sides(x, y, valid, i))
        for pair in choose(near, far):
            expected[i, list(pair)] = True
    return expected


def in_quarters(batch: Batch) -> Batch:
    """With similarities whose sums and differences are exact."""
    return ((batch[0] * 4).round() / 4, *batch[1:])


@given(batches().map(in_quarters), st.sampled_from([0.0, 0.25, 0.5]))
def test_miners_of_triplets_in_a_range(batch: Batch, margin: float) -> None:
    def violating(near: dict[int, float], far: dict[int, float]) -> set[tuple[int, int]]:
        return {(p, n) for p in near for n in far if far[n] - near[p] <= margin}

    def hard(near: dict[int, float], far: dict[int, float]) -> set[tuple[int, int]]:
        return {(p, n) for p in near for n in far if far[n] <= near[p]}

    def window(near: dict[int, float], far: dict[int, float]) -> set[tuple[int, int]]:
        return {(p, n) for p in near for n in far if 0 < far[n] - near[p] <= margin}

    assert MINERS["all"].build(*batch, margin=margin).equal(of_triplets(batch, violating))
    assert MINERS["hard"].build(*batch).equal(of_triplets(batch, hard))
    assert MINERS["semi_hard"].build(*batch, margin=margin).equal(of_triplets(batch, window))


@given(batches())
def test_facenet_miner(batch: Batch) -> None:
    x = batch[0] + torch.arange(batch[0].shape[1]) / 1000  # no ties: which of equals is chosen is left open

    def facenet(near: dict[int, float], far: dict[int, float]) -> set[tuple[int, int]]:
        beyond = {p: [n for n in far if far[n] > near[p]] for p in near}
        return {
            (p, min(b, key=lambda n: far[n]) if b else max(far, key=lambda n: far[n])) for p, b in beyond.items() if far
        }

    batch = (x, *batch[1:])
    assert MINERS["semi_hard"].build(*batch, definition="facenet").equal(of_triplets(batch, facenet))


@given(batches())
def test_easy_positive_miner(batch: Batch) -> None:
    def easy(near: dict[int, float], far: dict[int, float]) -> set[tuple[int, int]]:
        return {(min(near, key=lambda p: (near[p], p)), n) for n in far} if near else set()

    assert MINERS["easy_positive"].build(*batch).equal(of_triplets(batch, easy))


@given(batches(), st.integers(0, 6))
def test_binary_miner_keeps_some_positives_and_all_negatives(batch: Batch, number: int) -> None:
    _, y, valid = batch
    kept = MINERS["binary"].build(*batch, positives=number)
    assert (kept & (y != 0)).equal(valid & (y != 0))
    assert (kept & (y == 0)).sum(1).equal((valid & (y == 0)).sum(1).clamp_max(number))


@given(batches())
def test_distance_weighted_miner_keeps_as_many_negatives_as_positives(batch: Batch) -> None:
    x, y, valid = batch
    positive, allowed = valid & (y == 0), valid & (y != 0) & (x > -0.75)
    kept = MINERS["distance_weighted"].build(x, y, valid, nonzero_loss_cutoff=0.75)
    number = torch.minimum(positive.sum(1), allowed.sum(1))
    assert (kept & (y == 0)).equal(positive & (number > 0)[:, None])
    assert not (kept & (y != 0) & ~allowed).any()
    assert (kept & (y != 0)).sum(1).equal(number)


@pytest.mark.parametrize("dim", [4, 512])
@pytest.mark.parametrize("reads", ["distance", "cosine"])
def test_negatives_are_drawn_by_the_density_of_their_distance(reads: str, dim: int) -> None:
    """One positive, so one negative a row: its frequency is the weight of the paper's first equation in section 4."""
    d = torch.tensor([0.3, 0.2, 0.5, 1.1, 1.101, 1.102, 1.39, 1.5], dtype=torch.float64)
    x, y = (-d if reads == "distance" else 1 - d.square() / 2), torch.ones(20000, 8)
    y[:, 0] = 0
    mask = MINERS["distance_weighted"].build(
        x.expand(20000, 8), y, torch.ones(20000, 8, dtype=torch.bool), dim=dim, reads=reads
    )
    assert mask[:, 0].all()
    u = d[1:7].clamp_min(0.5)
    weight = ((2 - dim) * u.log() - (dim - 3) / 2 * (1 - u.square() / 4).log()).softmax(0)
    got = mask[:, 1:].double().mean(0)
    assert got[-1] == 0
    torch.testing.assert_close(got[:-1], weight, atol=0.02, rtol=0)


def test_draws_differ_and_rows_far_from_the_batch_draw_too() -> None:
    """pytorch-metric-learning's weights of such a row underflow: 512 dimensions, one crowded row, one at distance 1.3."""
    x = -torch.stack([torch.full((9,), 0.5), torch.linspace(1.3, 1.39, 9)])
    y = torch.tensor([[0.0] * 2 + [1.0] * 7]).expand(2, 9)
    draws = [MINERS["distance_weighted"].build(x, y, torch.ones(2, 9) > 0, dim=512) for _ in range(20)]
    assert all(mask[:, 2:].sum(1).tolist() == [2, 2] for mask in draws)
    assert any(not mask.equal(draws[0]) for mask in draws)


@pytest.mark.parametrize("kind", ["all", "hard", "semi_hard"])
def test_pairs_of_pytorch_metric_learnings_triplets(kind: str) -> None:
    z, labels = torch.randn(40, 4, dtype=torch.float64), torch.arange(40) % 7
    a, p, n = pml_miners.TripletMarginMiner(margin=0.2, type_of_triplets=kind.replace("_", ""))(z, labels)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[a, p] = expected[a, n] = True
    z = torch.nn.functional.normalize(z)
    x, y = -torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist"), labels[:, None] != labels
    assert 40 < expected.sum() < 40 * 39
    assert MINERS[kind].build(x, y, ~torch.eye(40, dtype=torch.bool)).equal(expected)


def test_pytorch_metric_learnings_easy_positives() -> None:
    z, labels = torch.randn(40, 4, dtype=torch.float64), torch.arange(40) % 7
    a, p, b, n = pml_miners.BatchEasyHardMiner(pos_strategy="easy", neg_strategy="all")(z, labels)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[a, p] = expected[b, n] = True
    z = torch.nn.functional.normalize(z)
    y = labels[:, None] != labels
    assert MINERS["easy_positive"].build(-torch.cdist(z, z), y, ~torch.eye(40, dtype=torch.bool)).equal(expected)


def test_dense_mining_keeps_all() -> None:
    x, y, valid = torch.randn(3, 5), torch.rand(3, 5), torch.rand(3, 5) < 0.5
    assert MINERS["dense"].build(x, y, valid).equal(valid)


@pytest.mark.parametrize("name", MINERS.names())
@settings(max_examples=20)
@given(batches())
def test_every_miner_gives_a_subset_whatever_the_form_of_y(name: str, batch: Batch) -> None:
    x, y, valid = batch

    def mine(y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return MINERS[name].build(x, y, valid)

    kept = mine(y)
    assert kept.dtype == torch.bool
    assert not (kept & ~valid).any()
    assert mine(y != 0).equal(kept)
    if name not in ("binary", "distance_weighted"):  # which draw
        halves = [MINERS[name].build(*(t[rows] for t in batch)) for rows in (slice(0, 2), slice(2, None))]
        assert torch.cat(halves).equal(kept)


def test_objectives_hand_miners_nearness_whatever_the_geometry() -> None:
    """Batch-hard triplets by hand: farthest positive and nearest negative of each row, of distances too."""
    z, labels = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    d = torch.cdist(torch.nn.functional.normalize(z), torch.nn.functional.normalize(z))
    costs = []
    for i in range(6):
        positive = max(d[i, j].item() for j in range(8) if labels[j] == labels[i] and j != i)
        negative = min(d[i, j].item() for j in range(8) if labels[j] != labels[i])
        costs.append(positive - negative + 0.5)
    active = [c for c in costs if c > 0]
    assert len(active) > 2
    for block in (3, None):
        value = create_objective("triplet", margin=0.5, mining="batch_hard", block=block)(z, labels)
        assert value.item() == pytest.approx(sum(active) / len(active), rel=1e-10)


def test_mining_errors() -> None:
    with pytest.raises(ValueError, match="unknown miner 'batch_hardest'; did you mean 'batch_hard'"):
        create_objective("triplet", mining="batch_hardest")
    with pytest.raises(ValueError, match="miner 'multi_similarity' has no option eps; its options: epsilon"):
        create_objective("triplet", mining="multi_similarity(eps=0.1)")
    with pytest.raises(ValueError, match="options by name"):
        create_objective("triplet", mining="multi_similarity(0.1)")
    with pytest.raises(ValueError, match="takes no mining"):
        create_objective("proxy_anchor", mining="batch_hard", num_classes=3, dim=2)
