"""The shapes of a loss beside a plain sum over rows: per-row inputs, whole blocks of pairs, penalties, a memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import beyond_binary as bb
from beyond_binary.blocks import Block
from beyond_binary.losses import LOSSES, register_loss
from beyond_binary.losses.common import masked_logsumexp, split
from beyond_binary.tiles import Places
from beyond_binary.walks import Pairs

FACTS = {"reads": "same", "x": "distance", "geometry": "euclidean(normalize=True)", "paper": "none"}


def with_boundary(x: Tensor, y: Tensor, valid: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    positive, negative = split(y, valid)
    gap = x - row[:, None]
    return torch.where(positive, gap.exp(), torch.where(negative, (-gap).exp(), 0)).sum(1), valid.sum(1)


def with_norm(x: Tensor, y: Tensor, valid: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(valid, row[:, None] * x.square(), 0).sum(1), valid.any(1)


def row_part(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    return masked_logsumexp(-x, split(y, valid)[1])


def coupled(x: Tensor, y: Tensor, valid: Tensor, own: Tensor, others: Tensor) -> Tensor:
    positive, _ = split(y, valid)
    return torch.where(positive, torch.logaddexp(own[:, None], others[None, :]) + x, 0).square().sum(1)


def two_passes(pairs: Pairs, *, factor: float = 1.0) -> Tensor:
    own, others = pairs.reduce(row_part), pairs.swapped().reduce(row_part)
    return factor * pairs.reduce(coupled, rows=(own,), shared=(others,)).sum()


def size_penalty(z: Tensor, proxies: Tensor | None, *, weight: float = 0.5) -> Tensor:
    return weight * z.square().sum(1).mean()


@pytest.fixture(autouse=True)
def stand_ins() -> Iterator[None]:
    before = dict(LOSSES._entries)
    register_loss("with_boundary", **FACTS, per_row="beta")(with_boundary)
    register_loss("with_norm", **FACTS, per_row="norm")(with_norm)
    register_loss("two_passes", **FACTS, form="pairs")(two_passes)
    register_loss("penalised", **{**FACTS, "geometry": "euclidean"}, penalty=size_penalty)(LOSSES["contrastive"].build)
    yield
    LOSSES._entries.clear()
    LOSSES._entries.update(before)


def batch(n: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, dtype=torch.float64, requires_grad=True), torch.arange(n) % 3


def outcome(objective: bb.Objective, *inputs: Tensor) -> list[Tensor]:
    leaves = [t for t in (*inputs, *objective.parameters()) if t.requires_grad]
    value = objective(*inputs)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("with_boundary", {}),
        ("with_boundary", {"beta": 0.7, "beta_per_class": True, "num_classes": 3}),
        ("with_boundary", {"learn_beta": False}),
        ("with_norm", {}),
        ("two_passes", {"factor": 2.0}),
        ("penalised", {"weight": 2.0, "power": 1}),
    ],
)
def test_tiles_equal_the_plain_form(loss: str, options: dict[str, object], rows: int) -> None:
    z, labels = batch()
    plain, tiled = (bb.create_objective(loss, block=block, **options).double() for block in (None, rows))
    torch.testing.assert_close(outcome(tiled, z, labels), outcome(plain, z, labels), rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(lambda z: tiled(z, labels), (z,))
    assert torch.autograd.gradgradcheck(lambda z: tiled(z, labels), (z,), fast_mode=True)


@pytest.mark.parametrize("loss", ["two_passes", "with_norm"])
def test_rectangular_blocks(loss: str) -> None:
    z, labels = batch()
    refs, ref_labels = batch(5)
    plain, tiled = (bb.create_objective(loss, block=block) for block in (None, 2))
    args = z, labels, refs, ref_labels
    torch.testing.assert_close(outcome(tiled, *args), outcome(plain, *args), rtol=1e-11, atol=1e-11)


def test_pairs_hold_no_block_of_pairs() -> None:
    z, labels = torch.randn(1000, 3, requires_grad=True), torch.arange(1000) % 100
    largest = 0

    def watched(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, x.numel())
        return row_part(x, y, valid)

    points = bb.Points(z, labels, torch.arange(1000))
    objective = bb.create_objective("contrastive")
    pairs = Pairs.of(points, points, objective.geometry, objective.target, None, 10)
    pairs.reduce(watched).sum().backward()
    assert largest == 10_000


def test_boundary_of_classes() -> None:
    z, labels = batch()
    objective = bb.create_objective("with_boundary", beta_per_class=True, num_classes=4).double()
    *_, grad = outcome(objective, z, labels)
    assert (grad[:3] != 0).all()
    assert grad[3] == 0
    with pytest.raises(ValueError, match=r"labels 0\.\.2 do not fit 2 boundaries"):
        bb.create_objective("with_boundary", beta_per_class=True, num_classes=2)(z, labels)
    with pytest.raises(ValueError, match="needs num_classes"):
        bb.create_objective("with_boundary", beta_per_class=True)
    with pytest.raises(ValueError, match="needs target 'classes'"):
        bb.create_objective("with_boundary", target="within('euclidean', radius=1)", beta_per_class=True, num_classes=2)


def test_options_of_all_parts_are_checked() -> None:
    with pytest.raises(ValueError, match=r"no option weigth; its options: .*power.*weight"):
        bb.create_objective("penalised", weigth=1.0)
    with pytest.raises(ValueError, match="weight must be a float"):
        bb.create_objective("penalised", weight="much")
    with pytest.raises(ValueError, match="factor must be a float"):
        bb.create_objective("two_passes", factor="much")
    with pytest.raises(ValueError, match="learn_beta must be True or False"):
        bb.create_objective("with_boundary", learn_beta=3)


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 8), slice(8, 9), slice(9, 12)])
def test_places_of_classes_are_those_of_the_masks(part: slice) -> None:
    codes = torch.tensor([0, 1, 0, 2, 1, 0, 1, 3, 7]), torch.tensor([1, 1, 0, 5, 0, 2, 0])
    ids = torch.tensor([0, 1, 2, 0, 4, 2, 6, 7, 8]), torch.tensor([1, 9, 2, 0, 2, 0, 11])
    objective = bb.create_objective("supcon")
    block = Block(objective.geometry, objective.target, None, codes[0], codes[1], *ids)
    y, valid = block.labels(part, torch.zeros(1))
    for got, mask in zip(block.places(part, torch.zeros(1)), (valid & ~y, ~valid), strict=True):
        expected = Places.of(mask)
        order = got.flat.argsort()
        assert got.flat[order].equal(expected.flat)
        assert got.row[order].equal(expected.row)
        assert (got.row.diff() >= 0).all()


# ---- memory


FACTS_OF = {name: LOSSES[name].info["facts"] for name in LOSSES.names()}
BETWEEN_ITEMS = [name for name, facts in FACTS_OF.items() if facts.reads == "same" and not facts.needs_proxies]


@pytest.mark.parametrize("loss", [*BETWEEN_ITEMS, "two_passes"])
def test_memory_is_earlier_batches_as_references(loss: str) -> None:
    objective = bb.create_objective(loss, memory=12)
    plain = bb.create_objective(loss)
    batches = [batch() for _ in range(4)]
    for number, (z, labels) in enumerate(batches):
        earlier = batches[:number] if number > 1 else []  # it counts once it is full
        old = torch.cat([b[0].detach() for b in earlier] or [z.detach()[:0]])[-12:]
        old_labels = torch.cat([b[1] for b in earlier] or [labels[:0]])[-12:]
        ids = torch.arange(9)
        expected = plain(
            z, labels, torch.cat([z, old]), torch.cat([labels, old_labels]),
            ids=ids, ref_ids=torch.cat([ids, 100 + torch.arange(len(old))]),
        )  # fmt: skip
        value = objective(z, labels)
        torch.testing.assert_close(value, expected)
        for got, want in zip(torch.autograd.grad(value, z), torch.autograd.grad(expected, z), strict=True):
            torch.testing.assert_close(got, want)
    assert len(objective.memory.z) == 12
    objective.eval()
    before = objective.memory.z
    objective(*batch())
    assert objective.memory.z is before


@pytest.mark.parametrize("loss", ["contrastive", "histogram", "lifted_structure", "d_loss"])
def test_what_is_remembered_is_prepared_without_a_graph(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its part of the graph would be most of a step."""
    objective, sizes = bb.create_objective(loss, memory=27), set()
    space = type(objective.geometry)
    prepare = space.prepare

    def watched(self, z: Tensor) -> Tensor:
        sizes.add((len(z), z.requires_grad))
        return prepare(self, z)

    for _ in range(3):
        objective(*batch())
    monkeypatch.setattr(space, "prepare", watched)
    z, labels = batch()
    (grad,) = torch.autograd.grad(objective(z, labels), z)
    assert grad.any()
    assert sizes == {(9, True), (27, False)}


def test_memory_holds_no_more_than_it_shows() -> None:
    objective = bb.create_objective("contrastive", memory=4)
    for _ in range(2):  # batches larger than the memory
        z, labels = batch()
        objective(z, labels)
        assert objective.memory.z.equal(z[-4:])
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in objective.memory.buffers())


def test_memory_knows_an_item_by_its_id() -> None:
    """An item never meets its own older embedding."""
    z, labels = batch(4)
    objective, plain = bb.create_objective("contrastive", memory=4), bb.create_objective("contrastive")
    ids = torch.arange(4) + 7
    objective(z, labels, ids=ids)
    again = objective(z, labels, ids=ids)
    both = torch.cat([z, z])
    expected = plain(z, labels, both, labels.repeat(2), ids=ids, ref_ids=ids.repeat(2))
    torch.testing.assert_close(again, expected)


def test_memory_travels_with_the_state() -> None:
    one, two = (bb.create_objective("supcon", memory=20) for _ in range(2))
    one(*batch())
    two.load_state_dict(one.state_dict())
    for _ in range(3):  # half full, full, and with some forgotten
        z, labels = batch()
        assert one(z, labels).equal(two(z, labels))
    assert one.memory.points() is not None


def test_memory_where_it_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="takes no memory"):
        bb.create_objective("normalized_softmax", num_classes=3, dim=4, memory=8)
    with pytest.raises(ValueError, match="negative"):
        bb.create_objective("supcon", memory=-1)
    with pytest.raises(ValueError, match="a memory or mining, not both"):
        bb.create_objective("lifted_structure", memory=8, mining="multi_similarity")
    with pytest.raises(ValueError, match="leave out memory="):
        bb.create_objective("supcon", memory=8)(*batch(), *batch())
    with pytest.raises(ValueError, match="mining or references"):
        bb.create_objective("lifted_structure", mining="multi_similarity")(*batch(), *batch())


# ---- miners that draw


DRAWN = ["distance_weighted(reads='cosine', dim=4, nonzero_loss_cutoff=3)", "binary(positives=1)"]


@pytest.mark.parametrize("mining", DRAWN)
@pytest.mark.parametrize("loss", ["supcon", "triplet", "lifted_structure", "tuplet_margin", "n_pairs", "angular"])
def test_all_walks_of_a_block_see_the_same_draws(loss: str, mining: str) -> None:
    """Values, gradients and gradients with a graph belong to one draw; another seed draws others."""
    draw = mining.replace("cosine", "distance") if loss in ("triplet", "lifted_structure") else mining
    space = {"geometry": "euclidean(normalize=True)"} if loss == "lifted_structure" else {}
    z, labels = batch(12)

    def value(z: Tensor, block: int | None = 5, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        objective = bb.create_objective(loss, mining=draw, block=block, **space)
        return objective(z, labels)

    assert torch.autograd.gradcheck(value, (z,))
    (first,), (with_graph,) = (torch.autograd.grad(value(z), z, create_graph=graph) for graph in (False, True))
    torch.testing.assert_close(with_graph.detach(), first, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(value(z, block=12), value(z, block=None), rtol=1e-11, atol=1e-11)
    assert len({value(z, seed=seed).item() for seed in range(5)}) > 1
