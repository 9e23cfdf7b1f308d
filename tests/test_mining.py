"""Miners against loops over their definitions."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


@pytest.mark.parametrize("name", MINERS.names())
@settings(max_examples=20)
@given(batches())
def test_every_miner_gives_a_subset_whatever_the_form_of_y(name: str, batch: Batch) -> None:
    x, y, valid = batch
    mine = functools.partial(MINERS[name].build, x)
    kept = mine(y, valid)
    assert kept.dtype == torch.bool
    assert not (kept & ~valid).any()
    assert mine(y != 0, valid).equal(kept)
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
