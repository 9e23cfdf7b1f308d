"""The adapter for users of pytorch-metric-learning: its losses, miners and defaults as the oracle of the whole table."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from pml import CLASSES, DIM, assert_same, distances, losses, miners
from torch import Tensor

import beyond_binary as bb
from beyond_binary.geometry import create_geometry
from beyond_binary.migrate import DISTANCES, MINERS, OTHER, PEERS, REQUIRED, TupleObjective, from_pml, keywords, tables

SIZES = {"num_classes": CLASSES, "embedding_size": DIM}
CHANGED: dict[str, dict[str, Any]] = {
    "ArcFaceLoss": {"margin": 20.0, "scale": 30},
    "CircleLoss": {"m": 0.25, "gamma": 128},
    "ContrastiveLoss": {"pos_margin": 0.2652, "neg_margin": 0.5409},
    "CosFaceLoss": {"margin": 0.2, "scale": 20},
    "FastAPLoss": {"num_bins": 17},
    "HistogramLoss": {"n_bins": 16},
    "LiftedStructureLoss": {"neg_margin": 0.5},
    "MarginLoss": {"margin": 0.1, "beta": 1.0},
    "MultiSimilarityLoss": {"alpha": 3, "beta": 40, "base": 0.4},
    "NTXentLoss": {"temperature": 0.2},
    "NormalizedSoftmaxLoss": {"temperature": 0.1},
    "ProxyAnchorLoss": {"margin": 0.2, "alpha": 16},
    "ProxyNCALoss": {"softmax_scale": 9},
    "SignalToNoiseRatioContrastiveLoss": {"pos_margin": 0.1, "neg_margin": 0.8},
    "SoftTripleLoss": {"centers_per_class": 3, "la": 10, "gamma": 0.2, "margin": 0.05},
    "SphereFaceLoss": {"margin": 3, "scale": 2},
    "SubCenterArcFaceLoss": {"sub_centers": 2, "margin": 20.0},
    "SupConLoss": {"temperature": 0.2},
    "TripletMarginLoss": {"margin": 0.2, "smooth_loss": True},
    "TupletMarginLoss": {"margin": 10.0, "scale": 16},
}


def batch() -> tuple[Tensor, Tensor]:
    labels = torch.arange(CLASSES).repeat_interleave(CLASSES)  # in order, as many of each as classes: for SmoothAPLoss
    return torch.randn(len(labels), DIM, dtype=torch.float64, requires_grad=True), labels


def theirs_of(name: str, **arguments: Any) -> Any:
    extra = SIZES if "num_classes" in PEERS[name].arguments and name != "MarginLoss" else {}
    return getattr(losses, name)(**extra, **arguments)


def default_of(kind: type, argument: str) -> Any:
    """A default that may stand in the signature of a base class."""
    for base in kind.__mro__:
        found = inspect.signature(base.__init__).parameters.get(argument)
        if found is not None:
            return REQUIRED if found.default is inspect.Parameter.empty else found.default
    raise AssertionError(f"{kind.__name__} has no argument {argument}")


@pytest.mark.parametrize("name", PEERS)
def test_arguments_and_defaults_are_theirs(name) -> None:
    kind = getattr(losses, name)
    for argument, (default, _) in PEERS[name].arguments.items():
        assert default_of(kind, argument) == default, argument
    own = {p.name for p in inspect.signature(kind.__init__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert own - {"self"} <= PEERS[name].arguments.keys()


def test_nothing_of_theirs_is_forgotten() -> None:
    bases = ("Base", "EmbeddingRegularizer", "WeightRegularizer")
    for module, known in ((losses, {**PEERS, **OTHER}), (miners, MINERS)):
        exported = {n for n, v in vars(module).items() if inspect.isclass(v) and not n.startswith(bases)}
        assert exported == set(known)


@pytest.mark.filterwarnings("ignore:__array_wrap__", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(("name", "arguments"), [*((name, {}) for name in PEERS), *CHANGED.items()])
def test_values_and_gradients_are_theirs(name, arguments) -> None:
    z, labels = batch()
    torch.set_default_dtype(torch.float64)  # that of some of their results
    try:
        theirs = theirs_of(name, **arguments).double()
        if name == "AngularLoss":
            theirs.alpha = torch.deg2rad(torch.tensor(40.0))
        if name == "MarginLoss":
            theirs.beta = torch.tensor([arguments.get("beta", 1.2)])
        extra = SIZES if "num_classes" in PEERS[name].arguments and name != "MarginLoss" else {}
        ours = from_pml(name, **extra, **arguments).double()
        inputs = [(z, z)]
        if ours.objective.proxies is not None:
            weight = ours.objective.proxies.weight
            (leaf,) = theirs.parameters()
            leaf.data = (weight if leaf.shape == weight.shape else weight.T).detach().clone().contiguous()
            inputs.append((weight, leaf))
        unit = torch.nn.functional.normalize(z) if name == "AngularLoss" else z  # it forgets to normalise the negatives
        assert_same(ours(z, labels), theirs(unit, labels), *inputs)
    finally:
        torch.set_default_dtype(torch.float32)


# ---- tuples of a miner

PAIRS = {
    "ContrastiveLoss": {},
    "MultiSimilarityLoss": {"beta": 40},
    "NTXentLoss": {},
    "SupConLoss": {},
    "CircleLoss": {},
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("references", [False, True])
def test_pairs_of_a_miner(name, references) -> None:
    z, labels = batch()
    others, other_labels = (
        (torch.randn(9, DIM, dtype=torch.float64), torch.arange(9) % 3) if references else (None, None)
    )
    mined = miners.MultiSimilarityMiner(epsilon=0.3)(z, labels, others, other_labels)
    positive, negative = mined[0] % 2 == 0, mined[2] % 2 == 0  # not what our own miner would give
    mined = (mined[0][positive], mined[1][positive], mined[2][negative], mined[3][negative])
    kept = len(torch.cat([mined[0], mined[2]]).unique())
    assert len(mined[0]) + len(mined[2]) > 10
    ours = from_pml(name, **PAIRS[name])(z, labels, mined, others, other_labels)
    theirs = theirs_of(name, **PAIRS[name])(z, labels, mined, ref_emb=others, ref_labels=other_labels)
    assert_same(ours, theirs * (len(z) / kept if name == "MultiSimilarityLoss" else 1), (z, z))
    assert abs(ours - from_pml(name, **PAIRS[name])(z, labels, None, others, other_labels)) > 1e-4
    torch.testing.assert_close(from_pml(name, **PAIRS[name])(z, None, mined, others), ours)


@pytest.mark.parametrize(("name", "arguments"), [
    ("TripletMarginLoss", {"margin": 0.1}), ("TripletMarginLoss", {"smooth_loss": True}), ("MarginLoss", {}),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["all", "hard", "semihard"])
@pytest.mark.parametrize("references", [False, True])
def test_triplets_of_a_miner(name, arguments, kind, references) -> None:
    z, labels = batch()
    others, other_labels = (
        (torch.randn(9, DIM, dtype=torch.float64), torch.arange(9) % 3) if references else (None, None)
    )
    mined = miners.TripletMarginMiner(margin=0.2, type_of_triplets=kind)(z, labels, others, other_labels)
    mined = tuple(part[::3] for part in mined)
    assert len(mined[0]) > 5
    theirs = theirs_of(name, **arguments)
    if name == "MarginLoss":
        theirs.beta = torch.tensor([1.2], dtype=torch.float64)
    ours = from_pml(name, **arguments).double()
    if name == "MarginLoss":
        ours.objective.boundary.beta.data = theirs.beta[0]
    expected = theirs(z, labels, mined, ref_emb=others, ref_labels=other_labels)
    assert_same(ours(z, labels, mined, others, other_labels), expected, (z, z))
    assert abs(ours(z, labels, None, others, other_labels) - expected) > 1e-4


def test_triplets_count_as_pairs_where_theirs_takes_masks() -> None:
    z, labels = batch()
    mined = miners.TripletMarginMiner(margin=0.2, type_of_triplets="hard")(z, labels)
    assert_same(from_pml("SupConLoss")(z, labels, mined), losses.SupConLoss()(z, labels, mined), (z, z))
    with pytest.raises(ValueError, match="contrastive counts each once"):
        from_pml("ContrastiveLoss")(z, labels, mined)


def test_the_objective_stays_as_it_was() -> None:
    z, labels = batch()
    objective = bb.create_objective("triplet", mining="multi_similarity", block=3)
    before = objective(z, labels)
    wrapped = TupleObjective(objective)
    wrapped(z, labels, miners.TripletMarginMiner(type_of_triplets="hard")(z, labels))
    assert torch.equal(objective(z, labels), before)
    assert torch.equal(wrapped(z, labels), before)
    assert len(list(TupleObjective(bb.create_objective("proxy_anchor", num_classes=3, dim=2)).parameters())) == 1


def test_no_tuples_give_zero_with_a_graph() -> None:
    z, labels = batch()
    empty = torch.zeros(0, dtype=torch.int64)
    for name, parts in (("ContrastiveLoss", 4), ("TripletMarginLoss", 3)):
        value = from_pml(name)(z, labels, (empty,) * parts)
        assert value.item() == 0
        assert torch.autograd.grad(value, z)[0].abs().max() == 0


def test_tuples_that_cannot_be_taken() -> None:
    z, labels = batch()
    one = torch.tensor([0])
    four = (one, one + 5, one, one + 1)
    for name, extra, told in (
        ("ProxyAnchorLoss", SIZES, "proxy_anchor takes no indices_tuple"),
        ("FastAPLoss", {}, "fastap takes no indices_tuple"),
        ("LiftedStructureLoss", {}, "lifted_structure takes no indices_tuple"),
        ("TupletMarginLoss", {}, "tuplet_margin takes no indices_tuple"),
        ("MarginLoss", {"num_classes": CLASSES}, "beta_per_class takes no indices_tuple"),
    ):
        with pytest.raises(ValueError, match=told):
            from_pml(name, **extra)(z, labels, four)
    with pytest.raises(ValueError, match="memory takes no indices_tuple"):
        TupleObjective(bb.create_objective("contrastive", memory=4))(z, labels, four)
    points = torch.rand(len(z), 2)
    for loss in ("log_ratio", "soft_contrastive"):
        graded = TupleObjective(bb.create_objective(loss, target="euclidean"))
        graded(z, points)
        with pytest.raises(ValueError, match=f"{loss} reads .*'indices_tuple' gives"):
            graded(z, points, four)
    wrapped = from_pml("ContrastiveLoss")
    with pytest.raises(ValueError, match=r"3 .triplets. or 4 .pairs. tensors, got 2"):
        wrapped(z, labels, (one, one))
    with pytest.raises(ValueError, match="names item 25 of 25"):
        wrapped(z, labels, (one, one + 25, one, one))
    with pytest.raises(ValueError, match="names item -1 of 25"):
        wrapped(z, labels, (one, one - 1, one, one))
    with pytest.raises(ValueError, match=r"places .k. of one length"):
        wrapped(z, labels, (one, torch.tensor([1, 2]), one, one))
    with pytest.raises(ValueError, match="more than once"):
        wrapped(z, labels, (torch.tensor([0, 0]), torch.tensor([5, 5]), one, one + 1))


def test_names_without_a_peer() -> None:
    for name, arguments, told in (
        ("RankedListLoss", {}, "no peer for RankedListLoss; see docs/migration.md"),
        ("TripletLoss", {}, "did you mean .*TripletMarginLoss"),
        ("ContrastiveLoss", {"distance": 1}, "distance= is geometry="),
        ("TripletMarginLoss", {"swap": True}, "swapped_triplet"),
        ("ArcFaceLoss", {"num_classes": 3}, "needs embedding_size="),
    ):
        with pytest.raises(ValueError, match=told):
            keywords(name, **arguments)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_theirs(name) -> None:
    geometry = create_geometry(DISTANCES[name][0])
    z = torch.randn(7, DIM, dtype=torch.float64)
    theirs = eval(f"distances.{name}", {"distances": distances})(z)
    ready = geometry.prepare(z)
    off = ~torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(geometry.block(ready, ready)[off], theirs[off], rtol=1e-6, atol=1e-7)


def test_the_page_has_the_tables() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "migration.md").read_text()
    assert tables() in page, "run python -m beyond_binary.migrate and put what it prints into docs/migration.md"
