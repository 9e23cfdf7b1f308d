"""Objectives: what fits what, references and ids, mining, proxies, and what the block engine keeps."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from cases import CLASSES, DIM, FIRST, build, call, facts_of, inputs, value_and_grads
from oracles import Case, some_classes
from torch import Tensor

import beyond_binary as bb
from beyond_binary.losses import LOSSES
from beyond_binary.targets.tables import Precomputed

every_loss = pytest.mark.parametrize("case", FIRST, ids=str)


def create(loss: str, **options: Any) -> bb.Objective:
    if LOSSES[loss].info["facts"].needs_proxies:
        options = {"num_classes": CLASSES, "dim": DIM, **options}
    return bb.create_objective(loss, **options)


# ---- what fits what


@pytest.mark.parametrize("loss", bb.list_losses())
@pytest.mark.parametrize("target", ["classes", "euclidean", "pose", "circular", "within('pose', radius=0.1)"])
def test_losses_take_the_targets_that_they_can_read(loss: str, target: str) -> None:
    facts = LOSSES[loss].info["facts"]
    gives = bb.create_target(target).gives
    readable = {"same": {"same"}, "order": {"same", "order", "magnitude"}, "magnitude": {"magnitude"}}[facts.reads]
    if gives in readable and not (facts.needs_classes and target != "classes"):
        assert create(loss, target=target).target.gives == gives
        return
    with pytest.raises(ValueError, match=loss) as refused:
        create(loss, target=target)
    if facts.reads == "same" and gives == "magnitude":
        assert f"within('{target}', radius=0.1) or nearest('{target}', k=5)" in str(refused.value)
        create_with_way_out = f"within('{target}', radius=0.1)"
        if not facts.needs_classes:
            create(loss, target=create_with_way_out)
    elif facts.reads == "magnitude":
        assert "reads the value of label distances, but target" in str(refused.value)
        assert "multi_similarity" in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "triplett"}, "unknown loss 'triplett'; did you mean 'triplet'"),
        (
            {"loss": "triplet", "marign": 1},
            "loss 'triplet' has no option marign; its options: margin, triplets, hinge",
        ),
        ({"loss": "triplet", "valid": 1}, "has no option valid"),
        ({"loss": "pd_loss", "proxies": 1}, "has no option proxies"),
        ({"loss": "triplet", "target": "class"}, "unknown target 'class'; did you mean 'classes'"),
        (
            {"loss": "triplet", "geometry": "cosine"},
            "triplet reads a distance, but geometry 'cosine' gives a similarity",
        ),
        ({"loss": "supcon", "geometry": "euclidean"}, "supcon reads a similarity"),
        ({"loss": "supcon", "geometry": "cosinus"}, "unknown geometry 'cosinus'; did you mean 'cosine'"),
        ({"loss": "supcon", "block": 0}, "block must be at least 1"),
        ({"loss": "proxy_anchor"}, "give num_classes= and dim="),
        ({"loss": "pd_loss", "num_classes": 3}, "give num_classes= and dim="),
        ({"loss": "pd_loss", "num_classes": 1, "dim": 2}, "at least 2 classes"),
        ({"loss": "pd_loss", "num_classes": 3, "dim": 2, "proxy_init": "mean"}, "'random' or 'class_mean'"),
    ],
)
def test_what_does_not_fit_is_refused_when_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bb.create_objective(**arguments)


Z, Y = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((Z,), {}, "expected objective\\(embeddings, labels\\)"),
        ((Z, Y, Z), {}, "ref_labels both"),
        ((Z, Y, None, Y), {}, "ref_labels both"),
        ((Z, Y[:3]), {}, "one label and one id per embedding, got 4 embeddings, labels \\[3\\]"),
        ((Z, Y.float()), {}, "integer labels"),
        ((Z[0], Y), {}, "as a tensor, got torch.float32"),
        ((Y[:, None], Y), {}, "got torch.int64 \\[4, 1\\]"),
        ((Z.numpy(), Y), {}, "as a tensor, got ndarray"),
        ((Z, Y), {"ids": torch.zeros(4)}, "integer ids"),
        ((Z, Y), {"ids": torch.zeros(3, dtype=torch.int64)}, "one label and one id per embedding"),
    ],
)
def test_what_does_not_fit_is_refused_when_called(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bb.create_objective("supcon")(*arguments, **options)


def test_labels_and_widths_must_fit_the_proxies() -> None:
    for loss in ("normalized_softmax", "proxy_anchor", "pd_loss"):
        objective = create(loss)
        with pytest.raises(ValueError, match=r"labels 0\.\.5 do not fit 5 proxies; expected 0\.\.4"):
            objective(torch.randn(2, DIM), torch.tensor([0, 5]))
        with pytest.raises(ValueError, match=r"labels -1\.\.0 do not fit"):
            objective(torch.randn(2, DIM), torch.tensor([0, -1]))
        with pytest.raises(ValueError, match="proxies have 4 dimensions but the embeddings 7"):
            objective(torch.randn(2, 7), torch.tensor([0, 1]))


# ---- queries, keys, ids


def test_default_ids_make_references_other_things() -> None:
    """The same batch as references without ids: each item meets its own copy as a positive."""
    z, labels, _ = inputs(FIRST[0])
    objective = bb.create_objective("contrastive", block=4)
    zero, one = torch.arange(9), torch.arange(9) + 9
    assert objective(z, labels, z, labels).equal(objective(z, labels, z, labels, ids=zero, ref_ids=one))
    assert not objective(z, labels, z, labels).equal(objective(z, labels))
    shifted = objective(z, labels, z, labels, ids=zero + 50)
    assert shifted.equal(objective(z, labels, z, labels))
    assert objective(z, labels, ids=zero.numpy() * 7).equal(objective(z, labels))


@every_loss
def test_points_are_taken_as_they_are(case: Case) -> None:
    z, labels, _ = inputs(case)
    objective = build(case).double()
    code = objective.target.encode(labels)
    queries = bb.Points(z, code, torch.arange(9))
    torch.testing.assert_close(objective(queries), objective(z, labels))
    if not facts_of(case).needs_proxies:
        keys = bb.Points(z.detach()[:5], code[:5], torch.arange(5))
        expected = objective(z, labels, z.detach()[:5], labels[:5], ids=torch.arange(9), ref_ids=torch.arange(5))
        torch.testing.assert_close(objective(queries, keys), expected)


def test_points() -> None:
    points = bb.Points(torch.randn(4, 2, requires_grad=True), torch.arange(4), torch.arange(4))
    assert len(points) == 4
    assert points[1:3].id.tolist() == [1, 2]
    assert points[torch.tensor([3, 0])].code.tolist() == [3, 0]
    assert not points.detach().z.requires_grad
    assert bb.Points.cat(points[:1], points[2:]).id.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="floating-point embeddings"):
        bb.Points(torch.arange(4)[:, None], torch.arange(4), torch.arange(4))
    with pytest.raises(ValueError, match="one label and one id"):
        bb.Points(points.z, points.code[:3], points.id)


@pytest.mark.parametrize("mining", ["multi_similarity(epsilon=0.05)", "batch_hard"])
@pytest.mark.parametrize("loss", ["triplet", "multi_similarity"])
def test_mining_in_tiles_equals_dense(loss: str, mining: str) -> None:
    case = next(c for c in FIRST if c.loss == loss)
    z, labels, _ = inputs(case, 20)
    expected = value_and_grads(build(case, mining=mining, block=None), z, labels, [])
    for block in (1, 7, 100):
        got = value_and_grads(build(case, mining=mining, block=block), z, labels, [])
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected[0], value_and_grads(build(case), z, labels, [])[0])


@pytest.mark.parametrize(
    ("loss", "geometry"),
    [
        ("triplet", "euclidean"), ("triplet", "squared_euclidean"),
        ("contrastive", "squared_euclidean(normalize=True)"),
        ("supcon", "dot"), ("proxy_anchor", "dot"), ("log_ratio", "squared_euclidean"),
    ],
)  # fmt: skip
def test_other_geometries_in_tiles_equal_dense(loss: str, geometry: str) -> None:
    case = next(c for c in FIRST if c.loss == loss)
    z, labels, proxies = inputs(case, 14)
    z = (z.detach() + 3).requires_grad_()
    expected = value_and_grads(build(case, geometry=geometry, block=None), z, labels, proxies)
    got = value_and_grads(build(case, geometry=geometry, block=4), z, labels, proxies)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected[0], value_and_grads(build(case), z, labels, proxies)[0])


@every_loss
def test_the_wider_precision_of_the_two_sides_wins(case: Case) -> None:
    z, labels, proxies = inputs(case)
    own = [p.detach().float().double().requires_grad_() for p in proxies]
    other = [] if proxies else [torch.randn(9, DIM).double(), labels]
    expected = call(build(case), z, labels, own, *other)
    mixed = call(build(case), z, labels, [p.float() for p in own], *[t if t is labels else t.float() for t in other])
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=0)
    back = call(build(case), z.float(), labels, own, *other)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, expected, rtol=1e-4, atol=1e-4)


# ---- the block engine


class Kept:
    """What a graph saved, alive for as long as the graph needs it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(objective: bb.Objective, z: Tensor, labels: Tensor) -> int:
    """Numbers that the graph of one call holds on to."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        held = Kept(tensor.detach())
        kept.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        value = objective(z, labels)
    gc.collect()
    assert value.requires_grad
    return sum(held.tensor.numel() for held in kept)


KEEPS_PAIRS = ("cosent",)  # one sort over all pairs of the batch


@pytest.mark.parametrize(
    "case", [c for c in FIRST if not facts_of(c).needs_proxies and c.loss not in KEEPS_PAIRS], ids=str
)
def test_no_matrix_of_pairs_is_kept_for_backward(case: Case) -> None:
    n = 400
    z, labels, _ = inputs(case, n)
    assert kept_for_backward(build(case, block=16), z, labels) <= 40 * n * DIM
    assert kept_for_backward(build(case, block=None), z, labels) >= n * n


def test_without_gradient_no_gradient_is_computed() -> None:
    for case in FIRST:
        z, labels, _ = inputs(case)
        objective = build(case, block=4).double()
        with torch.no_grad():
            value = objective(z, labels)
        assert not value.requires_grad
        torch.testing.assert_close(value, objective(z, labels).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [3, None])
def test_only_one_side_wants_a_gradient(block: int | None) -> None:
    """References from a memory carry no graph."""
    case = FIRST[0]
    z, labels, _ = inputs(case)
    refs = torch.randn(11, DIM, dtype=torch.float64)
    objective = bb.create_objective("triplet", block=block)
    (grad,) = torch.autograd.grad(objective(z, labels, refs, some_classes(11)), z)
    refs.requires_grad_()
    both = torch.autograd.grad(objective(z, labels, refs, some_classes(11)), (z, refs))
    torch.testing.assert_close(grad, both[0])
    assert both[1].abs().max() > 0
    value = objective(z.detach(), labels, refs, some_classes(11))
    torch.testing.assert_close(torch.autograd.grad(value, refs)[0], both[1])


def test_backward_scales_with_what_comes_from_above() -> None:
    case = FIRST[0]
    z, labels, _ = inputs(case)
    objective = build(case, block=4)
    _, grad = value_and_grads(objective, z, labels, [])
    value = objective(z, labels)
    (scaled,) = torch.autograd.grad((value * 3).exp(), z)
    torch.testing.assert_close(scaled, grad * 3 * (value * 3).exp().detach())


# ---- proxies


def test_proxies_are_parameters_that_travel() -> None:
    objective = create("proxy_anchor")
    assert [name for name, _ in objective.named_parameters()] == ["proxies.weight"]
    assert objective.proxies is not None
    assert objective.proxies.weight.shape == (CLASSES, DIM)
    other = create("proxy_anchor")
    assert not other.proxies.weight.equal(objective.proxies.weight)  # type: ignore[union-attr]
    other.load_state_dict(objective.state_dict())
    z, labels = torch.randn(6, DIM), torch.tensor([0, 1, 2, 0, 1, 4])
    assert other(z, labels).equal(objective(z, labels))
    assert copy.deepcopy(objective)(z, labels).equal(objective(z, labels))
    points = objective.proxies.points()
    assert points.code.tolist() == [0, 1, 2, 3, 4]
    assert (points.id < 0).all()
    assert list(create("supcon", target="classes").parameters()) == []


def test_proxies_start_at_the_means_of_unit_vectors() -> None:
    proxies = bb.Proxies(4, 2, "class_mean")
    before = proxies.weight.detach().clone()
    proxies.start_at_means(torch.tensor([[3.0, 0.0], [0.0, 0.1], [-2.0, 0.0]]), torch.tensor([1, 1, 3]))
    assert proxies.weight[1].tolist() == [0.5, 0.5]
    assert proxies.weight[3].tolist() == [-1, 0]
    assert proxies.weight[[0, 2]].equal(before[[0, 2]])
    assert proxies.weight.requires_grad
    proxies.start_at_means(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([1, 1]), length=2.0)
    torch.testing.assert_close(proxies.weight[1].detach(), torch.tensor([2.0, 2.0]).sqrt())
    assert proxies.weight[3].tolist() == [-1, 0]


@pytest.mark.parametrize(("geometry", "length"), [("cosine", 2.0), ("dot", 0.5**0.5)])
def test_means_are_as_long_as_random_proxies_where_directions_count(geometry: str, length: float) -> None:
    objective = bb.create_objective("proxy_anchor", num_classes=2, dim=4, geometry=geometry, proxy_init="class_mean")
    objective.start_at_means(torch.eye(4)[:3], torch.tensor([0, 0, 1]))
    assert float(objective.proxies.weight[0].norm().detach()) == pytest.approx(length)  # type: ignore[union-attr]


def test_losses_say_how_their_proxies_start() -> None:
    def start(loss: str, **options: str) -> str:
        return bb.create_objective(loss, num_classes=3, dim=2, **options).proxies.init  # type: ignore[arg-type, union-attr]

    assert start("pd_loss") == "class_mean"
    assert start("pd_loss", proxy_init="random") == "random"
    assert start("proxy_anchor") == "random"


def test_objectives_say_what_they_are() -> None:
    shown = repr(bb.create_objective("triplet", margin=0.3))
    assert "triplet" in shown
    assert "0.3" in shown


@every_loss
def test_training_on_the_objective_brings_it_down(case: Case) -> None:
    z, labels, _ = inputs(case, 12, torch.float32)
    objective = build(case)
    leaves = [z.detach().clone().requires_grad_(), *objective.parameters()]
    optimizer = torch.optim.Adam(leaves, lr=0.05)
    first = objective(leaves[0], labels).item()
    for _ in range(60):
        optimizer.zero_grad()
        value = objective(leaves[0], labels)
        value.backward()
        optimizer.step()
    assert value.item() < first - min(0.3 * abs(first), 0.1)  # some have a large constant part


def test_arguments_that_would_be_ignored_are_refused() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    points = bb.Points(z, y, torch.arange(4))
    objective = bb.create_objective("supcon")
    with pytest.raises(ValueError, match="Points alone"):
        objective(points, points, z, y)
    with pytest.raises(ValueError, match="Points alone"):
        objective(points, ids=torch.arange(4))
    with pytest.raises(ValueError, match="expected keys as Points"):
        objective(points, y)
    with pytest.raises(ValueError, match="without ref_embeddings"):
        objective(z, y, ref_ids=torch.arange(4))


def test_negative_ids_and_other_widths_are_refused() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="ids of 0 and more, got -4"):
        bb.create_objective("normalized_softmax", num_classes=2, dim=3)(z, y, ids=torch.tensor([-1, -2, -3, -4]))
    with pytest.raises(ValueError, match="3 dimensions but references 5"):
        bb.create_objective("supcon")(z, y, torch.randn(4, 5), y)


def test_mining_must_fit_the_target_and_a_built_target_is_as_good_as_its_name() -> None:
    with pytest.raises(ValueError, match="mining 'batch_hard' reads same/different"):
        bb.create_objective("log_ratio", target="euclidean", mining="batch_hard")
    bb.create_objective("proxy_anchor", target=bb.create_target("classes"), num_classes=2, dim=3)


# ---- found by a reader of the code


UNKNOWN = np.array([[0, 1, np.nan, 3], [1, 0, 2, 0.5], [np.nan, 2, 0, 1], [3, 0.5, 1, 0]])


@pytest.mark.parametrize("loss", [n for n in LOSSES.names() if LOSSES[n].info["facts"].reads in ("order", "magnitude")])
def test_pairs_of_unknown_distance_are_as_good_as_absent(loss: str) -> None:
    """The same in tiles and dense, and no NaN; a pair that is unknown moves nothing."""
    z, found = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), []
    for block in (1, 3, None):
        value = bb.create_objective(loss, target=Precomputed(UNKNOWN), block=block)(z, torch.arange(4))
        found.append((value.detach(), *torch.autograd.grad(value, z)))
    assert found[0][0] > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_cosent_without_a_couple_has_no_gradient_however_large_its_numbers() -> None:
    z = torch.tensor([[30.0, 0], [30, 1], [-20, 1]], requires_grad=True)
    value = bb.create_objective("cosent", geometry="dot")(z, torch.zeros(3, dtype=torch.int64))
    value.backward()
    assert value == 0
    assert z.grad is not None
    assert (z.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES.names())
@pytest.mark.parametrize("frozen", ["embeddings", "rest"])
def test_a_graph_of_gradients_when_one_side_is_frozen(loss: str, frozen: str) -> None:
    facts = LOSSES[loss].info["facts"]
    target = "euclidean" if facts.reads == "magnitude" else "classes"
    more = {"num_classes": 3, "dim": 4} if facts.needs_proxies else {}
    objective = bb.create_objective(loss, target=target, **more).double()
    z, labels = torch.randn(9, 4, dtype=torch.float64, requires_grad=frozen == "rest"), torch.arange(9) % 3
    labels = labels if target == "classes" else torch.rand(9, 2, dtype=torch.float64)
    for p in objective.parameters():
        p.requires_grad_(frozen == "embeddings")
    leaves = [t for t in (z, *objective.parameters()) if t.requires_grad]
    if leaves:
        grads = torch.autograd.grad(objective(z, labels), leaves, create_graph=True)
        assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("loss", ["log_ratio", "dense_triplet", "supcon"])
def test_the_miner_of_dense_triplets_takes_every_target(loss: str) -> None:
    target = "classes" if loss == "supcon" else "euclidean"
    z, labels = torch.randn(8, 3), torch.arange(8) // 2
    labels = labels if target == "classes" else torch.rand(8, 2)
    plain, mined = (bb.create_objective(loss, target=target, mining=m)(z, labels) for m in (None, "dense"))
    torch.testing.assert_close(plain, mined)


def test_a_memory_forgets_what_is_not_finite_and_moves_with_its_state() -> None:
    objective = bb.create_objective("supcon", memory=8)
    z, labels = torch.randn(4, 3), torch.arange(4) // 2
    bad = z.clone()
    bad[1] = torch.nan
    assert objective(bad, labels).isnan()
    assert objective(z, labels).isfinite()
    assert objective.memory is not None
    assert len(objective.memory.z) == 7
    fresh = bb.create_objective("supcon", memory=8)
    state = fresh.state_dict()
    fresh.load_state_dict(objective.state_dict())
    assert fresh.memory is not None
    assert torch.equal(fresh.memory.z, objective.memory.z)
    fresh.load_state_dict(state)
    assert not hasattr(fresh.memory, "z")


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("supcon", {"temperature": 0.0}), ("supcon", {"temperature": -1.0}), ("tuplet_margin", {"scale": -3.0}),
        ("fastap", {"bins": 0}), ("histogram", {"steps": 0}), ("multi_similarity", {"beta": 0.0}),
        ("soft_contrastive", {"sigma": 0.0}), ("arcface", {"centers": 0}), ("d_loss", {"d_floor": 0.0}),
    ],
)  # fmt: skip
def test_options_that_would_divide_by_nothing_are_refused(loss: str, options: dict[str, Any]) -> None:
    more = {"num_classes": 3, "dim": 4} if LOSSES[loss].info["facts"].needs_proxies else {}
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be greater than 0"):
        bb.create_objective(loss, **more, **options)


def test_angular_is_of_cosines_alone() -> None:
    with pytest.raises(ValueError, match="holds for geometry 'cosine' alone, got 'dot'"):
        bb.create_objective("angular", geometry="dot")


def test_distance_weighted_mining_reads_the_width_of_the_embeddings() -> None:
    z, labels = torch.randn(60, 8), torch.arange(60) // 4
    made = []
    for mining in ("distance_weighted", "distance_weighted(dim=8)", "distance_weighted(dim=128)"):
        torch.manual_seed(0)
        made.append(bb.create_objective("margin", mining=mining)(z, labels))
    assert made[0] == made[1] != made[2]
