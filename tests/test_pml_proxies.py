"""Losses over learned classes: pytorch-metric-learning 2.9 as an outside oracle, tile sizes, annealing, centres."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import build, facts_of, inputs, value_and_grads
from oracles import CASES, ORACLES, Batch, Case
from pml import CLASSES, DIM, assert_same, losses, regularizers
from torch import Tensor

import beyond_binary as bb
from beyond_binary import objective as objective_module
from beyond_binary import softmax
from beyond_binary.losses.proxies import arcface, sphereface

SOFTMAX = [case for case in CASES if facts_of(case).form == "softmax"]
SIZE = {"num_classes": CLASSES, "embedding_size": DIM}
PEERS: dict[str, tuple[str, dict[str, Any], Callable[[], Any], str]] = {
    "normalized_softmax": ("normalized_softmax", {}, lambda: losses.NormalizedSoftmaxLoss(**SIZE), "W"),
    "proxy_nca_pp": ("proxy_nca_pp", {}, lambda: losses.ProxyNCALoss(**SIZE, softmax_scale=9), "proxies"),
    "cosface": ("cosface", {}, lambda: losses.CosFaceLoss(**SIZE), "W"),
    "arcface": ("arcface", {}, lambda: losses.ArcFaceLoss(**SIZE, margin=math.degrees(0.5)), "W"),
    "arcface, wide": (
        "arcface",
        {"margin": 2.0, "scale": 5.0},
        lambda: losses.ArcFaceLoss(**SIZE, margin=math.degrees(2.0), scale=5.0),
        "W",
    ),
    "sub-centres": (
        "arcface",
        {"centers": 3},
        lambda: losses.SubCenterArcFaceLoss(**SIZE, margin=math.degrees(0.5), sub_centers=3),
        "W",
    ),
    "sphereface": ("sphereface", {"annealing": False}, lambda: losses.SphereFaceLoss(**SIZE, margin=4, scale=1), "W"),
    "sphereface 3": (
        "sphereface",
        {"annealing": False, "margin": 3, "scale": 2.0},
        lambda: losses.SphereFaceLoss(**SIZE, margin=3, scale=2),
        "W",
    ),
    "soft_triple": ("soft_triple", {"tau": 0.0}, lambda: losses.SoftTripleLoss(**SIZE), "fc"),
}


@pytest.mark.filterwarnings("ignore:__array_wrap__")
@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("block", [7, 1024, None])
def test_pytorch_metric_learning(name: str, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    loss, options, create, weight = PEERS[name]
    z, labels = batch
    ours = bb.create_objective(loss, num_classes=CLASSES, dim=DIM, block=block, **options).double()
    theirs = create().double()
    leaf = getattr(theirs, weight)
    start = ours.proxies.weight.detach().clone()
    leaf.data = start if weight == "proxies" else start.T.contiguous()
    assert_same(ours(z, labels), theirs(z, labels), (z, z), (ours.proxies.weight, leaf))


def test_soft_triple_with_its_regulariser(batch: tuple[Tensor, Tensor]) -> None:
    """Their constant under the root is nearly 0, that of the authors 1e-5."""
    z, labels = batch
    ours = bb.create_objective("soft_triple", num_classes=CLASSES, dim=DIM).double()
    regularizer = regularizers.SparseCentersRegularizer(CLASSES, 10)
    theirs = losses.SoftTripleLoss(**SIZE, weight_regularizer=regularizer, weight_reg_weight=0.2).double()
    theirs.fc.data = ours.proxies.weight.detach().T.contiguous()
    torch.testing.assert_close(ours(z, labels), theirs(z, labels), rtol=1e-4, atol=0)


# ---- tiles


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (3, 3), (4, 2), (100, 1), (100, 3), (2, 100), (100, 100)])
def test_any_tile_gives_the_dense_result(case: Case, rows: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels, proxies = inputs(case, 31)
    expected = value_and_grads(build(case, block=None), z, labels, proxies)
    whole = softmax.tiled

    def tiled(*args: Any) -> Tensor:
        return whole(*args[:-2], rows, classes)

    monkeypatch.setattr(softmax, "tiled", tiled)
    torch.testing.assert_close(value_and_grads(build(case), z, labels, proxies), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", SOFTMAX, ids=str)
def test_other_similarities(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "TILE", 40)
    z, labels, proxies = inputs(case, 31)
    short = [(0.2 * t).detach().requires_grad_() for t in (z, *proxies)]
    expected = value_and_grads(build(case, block=None, geometry="dot"), short[0], labels, short[1:])
    got = value_and_grads(build(case, geometry="dot"), short[0], labels, short[1:])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


def test_backward_twice_gives_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "TILE", 40)
    for case in SOFTMAX:
        z, labels, _ = inputs(case, 31)
        objective = build(case).double()
        value = objective(z, labels)
        leaves = [z, objective.proxies.weight]
        first = torch.autograd.grad(3 * value, leaves, retain_graph=True)
        again = torch.autograd.grad(3 * value, leaves)
        torch.testing.assert_close(again, first, rtol=1e-12, atol=1e-12)


def test_no_matrix_of_scores_and_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of the walk is a tile."""
    monkeypatch.setattr(objective_module, "TILE", 64)
    largest = 0
    tile = softmax._Chunk.tile

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal largest
        found = tile(*args, **options)
        largest = max(largest, found.s.numel())
        return found

    monkeypatch.setattr(softmax._Chunk, "tile", watched)
    objective = bb.create_objective("cosface", num_classes=200, dim=3)
    objective(torch.randn(16, 3, requires_grad=True), torch.arange(16)).backward()
    assert largest == 64


# ---- what each loss does


def test_annealing_counts_training_steps() -> None:
    case = Case("sphereface")
    z, labels, _ = inputs(case)
    objective = build(case, anneal_base=20.0, anneal_floor=2.0).double()
    items = Batch(z.tolist(), labels.tolist(), list(range(9)))
    keys = Batch(objective.proxies.weight.tolist(), list(range(5)), list(range(-5, 0)))

    def expected(step: int) -> float:
        return ORACLES["sphereface"](items, keys, anneal_base=20.0, anneal_floor=2.0, step=step)

    for step in range(1, 4):
        assert objective(z, labels).item() == pytest.approx(expected(step), rel=1e-10)
    objective.eval()
    for _ in range(2):
        assert objective(z, labels).item() == pytest.approx(expected(3), rel=1e-10)
    objective.train().load_state_dict({**objective.state_dict(), "step": torch.tensor(1000)})
    assert objective(z, labels).item() == pytest.approx(expected(1001), rel=1e-10)
    assert expected(1001) == expected(2000)
    with pytest.raises(ValueError, match="has no option step"):
        build(case, step=3)


def test_proxy_nca_can_be_negative() -> None:
    objective = bb.create_objective("proxy_nca", num_classes=2, dim=2, scale=3.0)
    with torch.no_grad():
        objective.proxies.weight.copy_(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
    assert objective(torch.tensor([[5.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(-36)


def test_margins_at_the_poles() -> None:
    """Exact alignment and its opposite: finite slopes, the right values, no jump of psi."""
    s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64, requires_grad=True)
    own, _ = arcface(s, scale=1.0)
    fallback = -1 - 0.5 * math.sin(0.5)
    torch.testing.assert_close(own.tolist(), [math.cos(0.5), fallback, -math.sin(0.5)], rtol=1e-7, atol=1e-7)
    assert torch.autograd.grad(own.sum(), s)[0].isfinite().all()
    for margin in (1, 2, 3, 4, 5):
        step, ones = torch.zeros(()), torch.ones(3, dtype=torch.float64)
        own, _ = sphereface(s, ones, step=step, margin=margin, annealing=False)
        assert own.tolist()[:2] == pytest.approx([1, 1 - 2 * margin])
        assert torch.autograd.grad(own.sum(), s)[0].isfinite().all()
        angle = torch.linspace(0, math.pi, 10001, dtype=torch.float64)
        psi, _ = sphereface(angle.cos(), torch.ones_like(angle), step=step, margin=margin, annealing=False)
        assert (psi.diff() <= 0).all()
        assert psi.diff().abs().max() < 1e-3 * margin


def test_confidently_wrong_items_keep_their_cost_and_slope() -> None:
    objective = bb.create_objective("cosface", num_classes=3, dim=3)
    with torch.no_grad():
        objective.proxies.weight.copy_(torch.eye(3))
    z = torch.tensor([[-1.0, 1.0, 0.1]], requires_grad=True)
    value = objective(z, torch.tensor([0]))
    value.backward()
    assert value.item() > 100
    assert z.grad.norm() > 1


def test_centers_of_a_class() -> None:
    proxies = bb.Proxies(3, 2, "class_mean", centers=2)
    assert proxies.points().code.tolist() == [0, 0, 1, 1, 2, 2]
    before = proxies.weight.detach().clone()
    proxies.start_at_means(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 2]))
    after = proxies.weight.detach()
    assert after[2:4].equal(before[2:4])
    torch.testing.assert_close((after[:2] - torch.tensor([1.0, 0.0])).norm(dim=1), torch.full((2,), 0.1))
    torch.testing.assert_close((after[4:] - torch.tensor([0.0, 1.0])).norm(dim=1), torch.full((2,), 0.1))
    objective = bb.create_objective("soft_triple", num_classes=3, dim=2)
    assert objective.proxies.weight.shape == (30, 2)
    with pytest.raises(ValueError, match=r"labels 0\.\.3 do not fit 3 proxies"):
        objective(torch.randn(2, 2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="centers must be greater than 0"):
        bb.create_objective("arcface", num_classes=3, dim=2, centers=0)
    with pytest.raises(ValueError, match="has no option centers"):
        bb.create_objective("cosface", num_classes=3, dim=2, centers=2)
