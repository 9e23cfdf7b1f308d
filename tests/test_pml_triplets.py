"""Triplet losses against pytorch-metric-learning 2.9 where it has the same formula, official numbers, and their edges."""

from __future__ import annotations

import pytest
import torch
from pml import CLASSES, assert_same, distances, losses, miners, regularizers
from torch import Tensor

import beyond_binary as bb
from beyond_binary.losses import triplets as family
from beyond_binary.losses.triplets import dense_triplet, triplet


@pytest.mark.parametrize("block", [7, None])
@pytest.mark.parametrize("margin", [0.05, 0.2])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", ["all", "hard", "semi_hard"])
def test_triplets(kind: str, soft: bool, margin: float, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    mined = None
    if kind != "all":
        miner = miners.TripletMarginMiner(margin=margin, type_of_triplets=kind.replace("_", ""))
        mined = miner(z, labels)
        assert len(mined[0]) > 2
    ours = bb.create_objective("triplet", margin=margin, triplets=kind, hinge="soft" if soft else "hinge", block=block)
    assert_same(ours(z, labels), losses.TripletMarginLoss(margin=margin, smooth_loss=soft)(z, labels, mined), (z, z))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("block", [7, None])
def test_swapped_triplets(soft: bool, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    theirs = losses.TripletMarginLoss(margin=0.2, swap=True, smooth_loss=soft)
    ours = bb.create_objective("swapped_triplet", hinge="soft" if soft else "hinge", block=block)
    assert_same(ours(z, labels), theirs(z, labels), (z, z))


def test_batch_hard_with_the_soft_margin(batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    mined = miners.BatchHardMiner()(z, labels)
    ours = bb.create_objective("triplet", margin=0.0, hinge="soft", mining="batch_hard", block=5)(z, labels)
    assert_same(ours, losses.TripletMarginLoss(margin=0, smooth_loss=True)(z, labels, mined), (z, z))


def test_dense_triplets_give_the_official_codes_number() -> None:
    """One anchor, squared distances of normalised embeddings; the authors take all i < j of the list,
    ties too, and weigh them by 1 / 21 in single precision."""
    i, j = torch.arange(8.0).double()[:, None], torch.arange(4.0).double()[None, :]
    e = torch.nn.functional.normalize(torch.sin(1 + 3 * i + 7 * j + 0.1 * i * j))
    x = (e[:1] - e[1:]).square().sum(1)[None]
    y = torch.tensor([[0.1, 0.4, 0.4, 0.9, 1.7, 2.0, 5.0]], dtype=torch.float64)
    value, count = dense_triplet(x, y, torch.ones_like(y, dtype=torch.bool), ties="include")
    assert value.item() * torch.tensor(1 / 21).item() == pytest.approx(1.1295381192481635, rel=1e-12)
    _, strict = dense_triplet(x, y, torch.ones_like(y, dtype=torch.bool))
    assert (count.item(), strict.item()) == (21, 20)


@pytest.mark.parametrize("keys", [1, 2, 33, 64])
@pytest.mark.parametrize("ties", ["exclude", "include"])
def test_dense_triplets_on_a_grid_of_distances_and_labels(keys: int, ties: str) -> None:
    """Many pairs lie exactly on the hinge's edge, many labels are equal."""
    x = (torch.randint(0, 6, (5, keys)).double() / 4).requires_grad_()
    y, valid = torch.randint(0, 4, (5, keys)).double(), torch.rand(5, keys) < 0.8
    value, count = dense_triplet(x, y, valid, margin=0.5, ties=ties, average="active")
    _, everything = dense_triplet(x, y, valid, margin=0.5, ties=ties)
    (grad,) = torch.autograd.grad(value.sum(), x)
    use = valid[:, :, None] & valid[:, None, :]
    order = torch.ones(keys, keys).triu(1).bool()
    use &= (y[:, :, None] < y[:, None, :]) | ((y[:, :, None] == y[:, None, :]) & order & (ties == "include"))
    cost = torch.where(use, x[:, :, None] - x[:, None, :] + 0.5, 0).relu()
    torch.testing.assert_close(value, cost.sum((1, 2)))
    torch.testing.assert_close(grad, torch.autograd.grad(cost.sum(), x)[0])
    assert count.equal((cost > 0).sum((1, 2)).double())
    assert everything.equal(use.sum((1, 2)).double())


def test_dense_triplets_count_alike_by_parts_and_when_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, valid = torch.randn(4, 21).double(), torch.randint(0, 9, (4, 21)), torch.rand(4, 21) < 0.8
    expected = dense_triplet(x, y, valid)
    monkeypatch.setattr(family, "SOME_PAIRS", 50)
    torch.testing.assert_close(dense_triplet(x, y, valid), expected)
    monkeypatch.setattr(family.torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(dense_triplet(x, y, valid), expected)


@pytest.mark.parametrize("keys", [1, 9, 90])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("hinge", ["hinge", "soft"])
@pytest.mark.parametrize("kind", ["hard", "semi_hard", "facenet"])
def test_kinds_of_triplets_on_a_grid(kind: str, hinge: str, power: int, keys: int) -> None:
    """Distances on a grid that the margin is a multiple of: many triplets lie exactly on a boundary."""
    x = torch.randint(0, 6, (4, keys)).double() / 4
    y, valid = torch.rand(4, keys) < 0.4, torch.rand(4, keys) < 0.9
    value, count = triplet(x, y, valid, margin=0.5, triplets=kind, hinge=hinge, power=power)
    for i in range(4):
        near = [x[i, j].item() for j in range(keys) if valid[i, j] and not y[i, j]]
        far = [x[i, j].item() for j in range(keys) if valid[i, j] and y[i, j]]
        if kind == "facenet":
            pairs = [(p, min([n for n in far if n > p], default=max(far))) for p in near if far]
        else:
            pairs = [(p, n) for p in near for n in far if p - n + 0.5 > 0 and ((p >= n) is (kind == "hard"))]
        gaps = torch.tensor([p - n + 0.5 for p, n in pairs], dtype=torch.float64)
        costs = (gaps.exp().log1p() if hinge == "soft" else gaps.clamp_min(0)) ** power
        assert value[i].item() == pytest.approx(costs.sum().item(), rel=1e-12, abs=1e-12)
        assert count[i].item() == (costs > 0).sum()


@pytest.mark.parametrize("block", [7, None])
@pytest.mark.parametrize("margins", [(0.0, 1.0), (0.3264, 0.8446)])
def test_signal_to_noise_contrastive(
    margins: tuple[float, float], block: int | None, batch: tuple[Tensor, Tensor]
) -> None:
    z, labels = batch
    options = dict(zip(("positive_margin", "negative_margin"), margins, strict=True))
    ours = bb.create_objective("snr_contrastive", block=block, regularizer=0.0, **options)(z, labels)
    theirs = losses.SignalToNoiseRatioContrastiveLoss(pos_margin=margins[0], neg_margin=margins[1])
    assert_same(ours, theirs(z, labels), (z, z))


def test_signal_to_noise_regulariser(batch: tuple[Tensor, Tensor]) -> None:
    z = torch.nn.functional.normalize(batch[0].detach()).requires_grad_()
    ours = bb.create_objective("snr_contrastive", regularizer=0.1, geometry="snr(normalize=False)")(z, batch[1])
    theirs = losses.SignalToNoiseRatioContrastiveLoss(
        distance=distances.SNRDistance(normalize_embeddings=False),
        embedding_regularizer=regularizers.ZeroMeanRegularizer(),
        embedding_reg_weight=0.1,
    )
    assert_same(ours, theirs(z, batch[1]), (z, z))


@pytest.mark.parametrize("block", [7, None])
@pytest.mark.parametrize(("per_class", "nu"), [(False, 0.0), (True, 0.0), (True, 0.1)])
def test_margin_over_all_triplets(per_class: bool, nu: float, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    """With one beta for all they add nu * beta undivided, so that is compared without."""
    z, labels = batch
    theirs = losses.MarginLoss(nu=nu, learn_beta=True, num_classes=CLASSES if per_class else None).double()
    ours = bb.create_objective(
        "margin", over="triplets", nu=nu, beta_per_class=per_class, num_classes=CLASSES, block=block
    ).double()
    beta = ours.boundary.beta
    if not per_class:
        beta = ours.boundary.beta = torch.nn.Parameter(beta.detach()[None])  # of the shape that theirs has
    assert_same(ours(z, labels), theirs(z, labels), (z, z), (beta, theirs.beta))
