"""Targets: metric axioms, SciPy and loops as oracles, unknown pairs, and what labels are refused."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.metrics import jaccard_score
from torch import Tensor

import beyond_binary as bb
from beyond_binary.distances import KnownDistances
from beyond_binary.targets import LabelError, estimates, innermost, reads_classes
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.distributions import Estimated
from beyond_binary.targets.pose import numbers_per_point
from beyond_binary.targets.tables import PairScores, Precomputed
from beyond_binary.targets.words import WordVectors

FINITE = st.floats(-100, 100, allow_subnormal=False).map(lambda v: round(v, 6))
Labels = st.SearchStrategy[np.ndarray]


def arrays(*shape: int, elements: st.SearchStrategy[Any] = FINITE, dtype: Any = np.float64) -> Labels:
    return st.integers(1, 6).flatmap(lambda n: hnp.arrays(dtype, (n, *shape), elements=elements))


MAPS = arrays(4, 3, elements=st.integers(0, 4), dtype=np.int64)
BITS = arrays(4, elements=st.integers(0, 1), dtype=np.int64)
MASSES = arrays(5, elements=st.integers(0, 9).map(float)).map(lambda a: a + (a.sum(1, keepdims=True) == 0))
PATHS = arrays(3, elements=st.integers(-1, 2), dtype=np.int64)
TEXTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5).map(" ".join),
        st.lists(st.sampled_from("abcdef"), max_size=5).map(" ".join),
    ),
    min_size=1,
    max_size=6,
).map(np.array)
ITEMS = arrays(elements=st.integers(0, 5), dtype=np.int64)
TABLE = cdist(*2 * [np.random.default_rng(7).normal(size=(6, 3))])
PAIRS = np.array([[i, j, TABLE[i, j]] for i in range(6) for j in range(i)])


def covariances(n: int, m: int = 2) -> np.ndarray:
    """Means beside random covariances [n m 1+m]."""
    rng = np.random.default_rng(n)
    half = rng.normal(size=(n, m, m))
    return np.concatenate([rng.normal(size=(n, m, 1)), half @ half.transpose(0, 2, 1)], 2)


CLASS_NUMBERS = arrays(elements=st.integers(-(2**60), 2**60) | st.integers(0, 2), dtype=np.int64)
LABELS: dict[str, Labels] = {
    "classes": CLASS_NUMBERS,
    "euclidean": arrays() | arrays(3),
    "circular": arrays() | arrays(2),
    "circular(period=24)": arrays(),
    "pose": arrays(4, 2) | arrays(8),
    "pose(reduce='sum', root=(1, 2))": arrays(4, 2),
    "pose(scale=True, dims=3)": arrays(4, 3) | arrays(12),
    "pose(mirror=(1, 0, 3, 2))": arrays(4, 2),
    "layout": MAPS,
    "layout(exchangeable=(1, 2, 4))": MAPS,
    "multi_label": BITS,
    "tree": PATHS,
    "tree(lengths=(4.0, 2.0, 0.5))": PATHS,
    "manhattan": arrays() | arrays(3),
    "cosine": arrays(3).map(lambda a: a + (a == 0).all(1, keepdims=True)),
    "histogram": MASSES,
    "histogram(width=0.5, circular=True)": MASSES,
    "gaussian": arrays(4).map(np.abs),
    "gaussian(covariance='full')": st.integers(1, 5).map(covariances),
    "precomputed": ITEMS,
    "pair_scores": ITEMS,
    "estimated": ITEMS,
    "captions": TEXTS,
    "captions(relaxed=False)": TEXTS,
    "sentences": arrays(2, 3).map(lambda a: a + (a == 0).all(2, keepdims=True)),
    "scaled('euclidean', factor=2.5)": arrays(2),
    "scaled('classes', factor=2.5)": CLASS_NUMBERS,
    "sum(('circular', 'classes'))": arrays(2, elements=st.integers(0, 3).map(float)),
    "sum(('euclidean', 'pose'), columns=(1, 6))": arrays(7),
    "within('euclidean', radius=5.0)": arrays(2),
    "nearest('euclidean', k=2)": arrays(2),
    "nearest('classes', k=2)": CLASS_NUMBERS,
}
VECTORS = WordVectors(
    torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), {w: i for i, w in enumerate("abcdef")}
)
MADE = {
    "captions": Captions(VECTORS),
    "captions(relaxed=False)": Captions(VECTORS, relaxed=False),
    "estimated": Estimated(num_classes=6, dim=4),
    "precomputed": Precomputed(TABLE),
    "pair_scores": PairScores(PAIRS),
}
NO_TRIANGLE = ("layout", "within", "nearest", "cosine", "captions", "sentences")
every_target = pytest.mark.parametrize("spec", LABELS)


def create(spec: Any) -> Any:
    return bb.create_target(MADE.get(spec, spec))


def distances(spec: Any, labels: Any, other: Any = None, valid: Tensor | None = None) -> np.ndarray:
    target = create(spec)
    code = target.encode(labels)
    y = target.distance(code, code if other is None else target.encode(other), valid)
    return y.double().numpy()


def test_every_registered_target_is_here() -> None:
    assert {spec.split("(")[0] for spec in LABELS} == set(bb.list_targets())


@every_target
@settings(max_examples=25)
@given(data=st.data())
def test_metric_axioms(spec: str, data: st.DataObject) -> None:
    y = distances(spec, data.draw(LABELS[spec]))
    assert (y.diagonal() <= (1e-12 if "full" in spec else 0)).all()
    assert (y >= 0).all()
    if spec.startswith("nearest"):
        return
    np.testing.assert_allclose(y, y.T, rtol=0, atol=1e-6 if spec == "layout" else 1e-10)
    if not spec.startswith(NO_TRIANGLE):
        through = (y[:, :, None] + y[None, :, :]).min(1)
        assert (y <= through + 1e-9).all()


@every_target
@settings(max_examples=10)
@given(data=st.data())
def test_blocks_of_rows_equal_the_whole(spec: str, data: st.DataObject) -> None:
    labels = data.draw(LABELS[spec])
    target = create(spec)
    code = target.encode(labels)
    valid = ~torch.eye(len(code), dtype=torch.bool)
    rows = [target.distance(code[i : i + 2], code, valid[i : i + 2]) for i in range(0, len(code), 2)]
    torch.testing.assert_close(torch.cat(rows), target.distance(code, code, valid), rtol=0, atol=0, equal_nan=True)
    assert torch.cat([target.encode(labels[:1]), target.encode(labels[1:])]).equal(code)


OTHERS = [name for name, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if there.is_available()]


@pytest.mark.parametrize("device", OTHERS or [pytest.param("cuda", marks=pytest.mark.skip(reason="no other device"))])
@every_target
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_other_devices_give_what_the_cpu_gives(device: str, spec: str, data: st.DataObject) -> None:
    labels = data.draw(LABELS[spec])
    target = copy.deepcopy(create(spec))
    code = target.encode(labels)
    there = code.to(device)
    valid = ~torch.eye(len(code), dtype=torch.bool)
    y, expected = target.distance(there, there, valid.to(device)), target.distance(code, code, valid)
    assert (y.device.type, y.dtype) == (device, expected.dtype)
    near = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(y.cpu(), expected, **near)
    objective = bb.create_objective("rank_n_contrast", target=target)
    z = torch.randn(len(code), 4, generator=torch.Generator().manual_seed(0))
    loss = objective(z, labels)
    objective = copy.deepcopy(bb.create_objective("rank_n_contrast", target=create(spec))).to(device)
    torch.testing.assert_close(objective(z.to(device), labels).cpu(), loss, **near)


@every_target
def test_forms_of_labels_and_empty_ones(spec: str) -> None:
    shapes = {
        "layout": (5, 4, 3), "pose": (5, 4, 2), "pose(scale=True, dims=3)": (5, 4, 3), "within": (5, 2),
        "euclidean": (5, 2), "nearest('euclidean', k=2)": (5, 2), "multi_label": (5, 4), "tree": (5, 3), "cosine": (5, 2),
        "histogram": (5, 3), "gaussian": (5, 4), "scaled('euclidean', factor=2.5)": (5, 2),
        "captions": (5, 2), "sentences": (5, 2, 3), "sum(('circular', 'classes'))": (5, 2), "sum(('euclidean', 'pose'), columns=(1, 6))": (5, 7),
    }  # fmt: skip
    shape = shapes.get(spec, shapes.get(spec.split("(")[0], (5,)))
    labels = np.random.default_rng(0).integers(0, 2 if spec == "multi_label" else 5, shape)
    labels = labels + (spec.startswith(("histogram", "cosine", "sentences")) and labels.sum(-1, keepdims=True) == 0)
    if spec.startswith("captions"):
        labels = np.array(list("abcdef"))[labels]
    if "full" in spec:
        labels = np.concatenate([labels[:, :2, None], np.repeat(np.eye(2, dtype=int)[None], 5, 0)], 2)
    if "dims=3" in spec:
        labels = np.repeat(labels[:, :, :1], 3, 2)
    target = create(spec)
    code = target.encode(labels)
    text = labels.dtype.kind == "U"
    for form in (labels.tolist(), *(() if text else (torch.from_numpy(labels), labels.astype(np.int32)))):
        assert target.encode(form).equal(code)
    assert target.encode(labels[::-1]).equal(code.flip(0))
    nothing = target.encode(labels[:0])
    assert nothing.shape == (0, *code.shape[1:])
    assert target.distance(nothing, code).shape == (0, 5)
    assert target.distance(code, nothing).shape == (5, 0)
    assert target.gives in ("same", "order", "magnitude")
    assert isinstance(target, type(bb.create_target(target)))


@given(arrays(3), arrays(3))
def test_euclidean_is_scipys(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(distances("euclidean", a, b), cdist(a, b), rtol=1e-12, atol=1e-12)
    one = a[:, 0], b[:, 0]
    np.testing.assert_allclose(distances("euclidean", *one), np.abs(one[0][:, None] - one[1][None]), rtol=1e-12)


def test_labels_keep_their_precision() -> None:
    far = 1e6 + 1e-9 * np.arange(4) * 2.0**7
    np.testing.assert_array_equal(distances("euclidean", far), np.abs(far[:, None] - far[None]))
    assert len(np.unique(distances("euclidean", far)[0])) == 4
    big = 2**60 + np.arange(4)
    np.testing.assert_array_equal(distances("classes", big), 1.0 - np.eye(4))
    assert bb.create_target("euclidean").encode(torch.zeros(3, dtype=torch.float32)).dtype == torch.float32
    assert bb.create_target("euclidean").encode([1, 2]).dtype == torch.float64


@given(arrays(2), st.integers(-3, 3))
def test_circular_goes_the_shorter_way(labels: np.ndarray, turns: int) -> None:
    y = distances("circular(period=24)", labels)
    for i, a in enumerate(labels):
        for j, b in enumerate(labels):
            ways = [min(abs(p - r + 24 * t) for t in range(-20, 21)) for p, r in zip(a, b, strict=True)]
            assert y[i, j] == pytest.approx(np.mean(ways), abs=1e-9)
    assert (y <= 12 + 1e-9).all()
    np.testing.assert_allclose(distances("circular(period=24)", labels + 24 * turns), y, atol=1e-9)


def test_circular_wraps() -> None:
    assert distances("circular", [359.0, 1.0, 181.0])[0].tolist() == [0, 2, 178]
    assert distances("circular(period=1)", [0.0, 1.0, -0.25])[0].tolist() == [0, 0, 0.25]


@settings(max_examples=25)
@given(MAPS)
def test_layout_is_scikit_learns_jaccard(maps: np.ndarray) -> None:
    y = distances("layout", maps)
    for i, a in enumerate(maps):
        for j, b in enumerate(maps):
            present = sorted({*a.flat, *b.flat})
            score = jaccard_score(a.ravel(), b.ravel(), labels=present, average="macro")
            assert y[i, j] == pytest.approx(1 - score, abs=1e-6)


def test_exchangeable_regions_are_matched_the_best_way() -> None:
    rng = np.random.default_rng(5)
    maps = rng.integers(0, 4, (5, 4, 4))
    swapped = np.array([0, 2, 1, 3])[maps]
    spec = "layout(regions=4, exchangeable=(1, 2))"
    assert (distances("layout(regions=4)", maps, swapped).diagonal() > 0).all()
    np.testing.assert_array_equal(distances(spec, maps, swapped).diagonal(), 0)
    plain = [distances("layout(regions=4)", maps, other) for other in (maps, swapped)]
    np.testing.assert_array_equal(distances(spec, maps), np.minimum(*plain))


# ---- vectors, sets and distributions against SciPy and POT


@given(arrays(3), arrays(3))
def test_manhattan_and_cosine_are_scipys(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(distances("manhattan", a, b), cdist(a, b, "cityblock"), rtol=1e-12, atol=1e-12)
    a, b = a + (a == 0).all(1, keepdims=True), b + (b == 0).all(1, keepdims=True)
    np.testing.assert_allclose(distances("cosine", a, b), cdist(a, b, "cosine"), rtol=1e-7, atol=1e-12)


def test_cosine_keeps_the_digits_of_near_pairs() -> None:
    y = distances("cosine", [[1.0, 0.0], [1.0, 1e-9]])
    assert y[0, 1] == pytest.approx(5e-19, rel=1e-6)


@given(BITS, BITS)
def test_multi_label_is_scipys_jaccard(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(
        distances("multi_label", a, b), cdist(a.astype(bool), b.astype(bool), "jaccard"), atol=1e-12
    )


@given(PATHS)
def test_tree_by_walking(paths: np.ndarray) -> None:
    """Path length in the graph whose nodes are the prefixes of all paths."""
    lengths = (4.0, 2.0, 0.5)

    def walk(path: np.ndarray) -> list[tuple[int, ...]]:
        whole = tuple(itertools.takewhile(lambda node: node >= 0, path.tolist()))
        return [whole[: i + 1] for i in range(len(whole))]

    y, plain = distances("tree(lengths=(4.0, 2.0, 0.5))", paths), distances("tree", paths)
    for i, a in enumerate(paths):
        for j, b in enumerate(paths):
            edges = set(walk(a)) ^ set(walk(b))
            assert plain[i, j] == len(edges)
            assert y[i, j] == sum(lengths[len(edge) - 1] for edge in edges)


@settings(max_examples=25)
@given(MASSES, MASSES)
def test_histograms_are_scipys_and_pots_wasserstein(a: np.ndarray, b: np.ndarray) -> None:
    places = 0.5 * np.arange(5)
    line, circle = distances("histogram(width=0.5)", a, b), distances("histogram(width=0.5, circular=True)", a, b)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            assert line[i, j] == pytest.approx(wasserstein_distance(places, places, p, q), abs=1e-12)
            gap = np.abs(places[:, None] - places)
            around = ot.emd2(p / p.sum(), q / q.sum(), np.minimum(gap, 2.5 - gap))
            assert circle[i, j] == pytest.approx(around, abs=1e-9)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_gaussians_are_pots_bures_wasserstein(m: int) -> None:
    labels = covariances(6, m)
    y = distances("gaussian(covariance='full')", labels)
    for i, j in itertools.product(range(6), repeat=2):
        a, b = labels[i], labels[j]
        expected = ot.gaussian.bures_wasserstein_distance(a[:, 0], b[:, 0], a[:, 1:], b[:, 1:]) if i != j else 0
        assert y[i, j] == pytest.approx(float(expected), abs=1e-9)
    std = np.sqrt(labels[:, range(m), range(1, m + 1)])
    across = np.concatenate([labels[..., :1], std[:, :, None] ** 2 * np.eye(m)], 2)
    plain = distances("gaussian", np.concatenate([labels[..., 0], std], 1))
    np.testing.assert_allclose(distances("gaussian(covariance='full')", across), plain, atol=1e-9)


def estimates_by_loops(
    batches: list[tuple[np.ndarray, np.ndarray]], c: int, weight: float, t: float, keep: float
) -> Any:
    """Codes of the last of several training batches, with class means that follow from batch to batch."""
    means: dict[int, np.ndarray] = {}
    for z, labels in batches:
        unit = [row / math.sqrt(row @ row) for row in z]
        for k in sorted(set(labels.tolist())):
            now = np.mean([u for u, label in zip(unit, labels, strict=True) if label == k], axis=0)
            means[k] = keep * means[k] + (1 - keep) * now if k in means else now
    codes = []
    for u, label in zip(unit, labels, strict=True):
        power = {k: math.exp(u @ m / math.sqrt(m @ m) / t) for k, m in means.items()}
        share = [power.get(k, 0.0) / sum(power.values()) for k in range(c)]
        codes.append([(1 - weight) * (k == label) + weight * share[k] for k in range(c)])
    return np.array(codes)


@pytest.mark.parametrize(("weight", "kind"), [(0.0, "hellinger"), (0.3, "hellinger"), (1.0, "euclidean")])
def test_estimated_distributions_by_loops(weight: float, kind: str) -> None:
    rng = np.random.default_rng(9)
    batches = [(rng.normal(size=(8, 3)), rng.integers(0, 4, 8)) for _ in range(3)]
    target = Estimated(weight, 0.2, 0.7, kind, num_classes=6, dim=3).double()  # type: ignore[arg-type]
    for z, labels in batches:
        leaf = torch.tensor(z, requires_grad=True)
        code = target.encode(labels, leaf)
    expected = estimates_by_loops(batches, 6, weight, 0.2, 0.7)
    assert not code.requires_grad
    np.testing.assert_allclose(code, expected, atol=1e-12)
    y = target.distance(code, code)
    for i, p in enumerate(expected):
        for j, q in enumerate(expected):
            gap = np.sqrt(p) - np.sqrt(q) if kind == "hellinger" else p - q
            assert y[i, j] == pytest.approx(math.sqrt(gap @ gap / 2), abs=1e-7)
    if weight == 0:
        classes = (torch.tensor(labels)[:, None] != torch.tensor(labels)).double()
        torch.testing.assert_close(y, classes, rtol=0, atol=1e-15)
    before = target.proxies.clone()
    target.eval().encode(labels, leaf)
    assert torch.equal(target.proxies, before)


@settings(max_examples=50)
@given(
    arrays(4).flatmap(lambda z: st.tuples(st.just(z), hnp.arrays(np.int64, len(z), elements=st.integers(0, 5)))),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.02, 1.0]),
    st.sampled_from(["hellinger", "euclidean"]),
)
def test_estimates_are_distributions_and_their_distance_a_metric(
    batch: tuple[np.ndarray, np.ndarray], weight: float, temperature: float, kind: Any
) -> None:
    target = Estimated(weight, temperature, kind=kind, num_classes=6, dim=4)
    z, labels = torch.from_numpy(batch[0]), batch[1]
    code = target.encode(labels, z)
    assert (code >= 0).all()
    torch.testing.assert_close(code.sum(1), torch.ones(len(z)).double(), rtol=0, atol=1e-12)
    y = target.distance(code, code)
    assert ((y >= 0) & (y <= 1 + 1e-12)).all()
    assert (y.diagonal() == 0).all()
    torch.testing.assert_close(y, y.T, rtol=0, atol=0)
    assert (y <= (y[:, :, None] + y).amin(1) + 1e-12).all()
    assert torch.cat([target.distance(row, code) for row in code.split(2)]).equal(y)
    target.eval()
    parts = [target.encode(labels[i : i + 2], z[i : i + 2]) for i in range(0, len(z), 2)]
    torch.testing.assert_close(torch.cat(parts), code, rtol=0, atol=1e-12)


def test_an_objective_fills_in_what_an_estimated_target_needs() -> None:
    objective = bb.create_objective("log_ratio", target="estimated(weight=0.5)", num_classes=5, dim=4)
    z = torch.randn(20, 4, requires_grad=True)
    labels = torch.arange(20) % 5
    objective(z, labels).backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert "target.proxies" in objective.state_dict()
    with pytest.raises(
        ValueError, match=r"give create_objective num_classes= and dim= .*evaluate with target 'classes'"
    ):
        bb.create_target("estimated")
    with pytest.raises(ValueError, match=r"weight in 0\.\.1"):
        Estimated(1.5, num_classes=5, dim=4)
    with pytest.raises(ValueError, match="5"):
        objective(z, labels + 1)


@pytest.mark.parametrize(
    ("spec", "loss"),
    [
        ("scaled('estimated(weight=0.5)', factor=3.0)", "log_ratio"),
        ("within('estimated', radius=0.6)", "supcon"),
        ("nearest(\"scaled(target='estimated', factor=2.0)\", k=3)", "supcon"),
    ],
)
def test_an_estimated_target_inside_another_learns_with_the_objective(spec: str, loss: str) -> None:
    objective = bb.create_objective(loss, target=spec, num_classes=5, dim=4)
    inner = innermost(objective.target)
    assert isinstance(inner, Estimated)
    torch.manual_seed(0)
    z, labels = torch.randn(20, 4), torch.arange(20) % 5
    objective.eval()(z, labels)
    assert not inner.proxies.any()  # nothing moves in evaluation mode
    value = objective.train()(z, labels)
    assert inner.proxies.any()
    assert objective.double() is objective
    assert inner.proxies.dtype == torch.float64
    again = bb.create_objective(loss, target=spec, num_classes=5, dim=4).double()
    again.load_state_dict(objective.state_dict())
    assert torch.equal(innermost(again.target).proxies, inner.proxies)
    if loss == "log_ratio":  # which reads ratios alone
        plain = bb.create_objective(loss, target="estimated(weight=0.5)", num_classes=5, dim=4)
        assert value.item() == pytest.approx(plain(z, labels).item(), rel=1e-5)


def test_estimates_keep_single_precision_under_autocast() -> None:
    def learned(half: bool) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        objective = bb.create_objective("log_ratio", target="estimated", num_classes=5, dim=16)
        z, labels = torch.randn(20, 16, requires_grad=True), torch.arange(20) % 5
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = objective(z, labels)
        return value, torch.autograd.grad(value, z)[0], objective.target.proxies

    for ours, expected in zip(learned(True), learned(False), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_an_estimated_target_is_refused_where_its_distances_would_stay(tmp_path: Path) -> None:
    made = Estimated(num_classes=3, dim=2)
    for part in ("estimated", "scaled('estimated', factor=2.0)", made, bb.targets.algebra.Scaled(made, 2.0)):
        with pytest.raises(ValueError, match="without embeddings, where 'estimated' is 'classes'"):
            bb.targets.algebra.Sum(["circular", part])
    for target in (made, bb.targets.algebra.Scaled(made, 2.0)):
        with pytest.raises(ValueError, match="distances that stay"):
            KnownDistances(target, [0, 1, 2], tmp_path)


def test_the_estimated_target_is_found_inside_a_spec() -> None:
    for spec, found in (
        ("estimated", True), ("classes", False), ("scaled(target='estimated', factor=2)", True),
        ("within(\"scaled('estimated', 2.0)\", radius=1)", True), ("captions('estimated')", False),
        ("scaled('classes', factor=2.0)", False), ("sum(('circular', 'classes'))", False),
    ):  # fmt: skip
        assert estimates(spec) == found
        assert reads_classes(spec) == (found or spec == "classes")


# ---- tables


def test_precomputed_reads_a_mapped_file_and_names_what_is_wrong(tmp_path: Path) -> None:
    np.save(tmp_path / "table.npy", TABLE.astype(np.float32))
    target = bb.create_target(f"precomputed({str(tmp_path / 'table.npy')!r})")
    items = torch.tensor([4, 0, 4, 2])
    y = target.distance(items, items[:3])
    assert y.dtype == torch.float32
    np.testing.assert_array_equal(y, TABLE.astype(np.float32)[items][:, items[:3]])
    for i, j, value in ((5, 2, -1.0), (3, 3, 0.5), (4, 1, math.inf), (2, 0, 9.0)):
        wrong = TABLE.copy()
        wrong[i, j] = value
        with pytest.raises(ValueError, match=f"\\[{i}, {j}\\] is {value}"):
            Precomputed(wrong)
        Precomputed(wrong, check=False)
    unknown = TABLE.copy()
    unknown[1, 2] = unknown[2, 1] = math.nan
    assert np.isnan(distances(Precomputed(unknown), range(6))).sum() == 2
    with pytest.raises(ValueError, match="square table"):
        Precomputed(TABLE[:3])
    with pytest.raises(ValueError, match="floating distances, got int64"):
        Precomputed(np.zeros((2, 2), int))


@pytest.mark.parametrize("form", ["array", "npy", "csv", "tsv"])
def test_pairs_without_a_score_are_unknown(form: str, tmp_path: Path) -> None:
    rows = np.array([[7, 2, 4.0], [2, 0, 5.0], [3, 7, 0.5]])
    table: Any = rows
    if form == "npy":
        np.save(table := tmp_path / "t.npy", rows)
    elif form != "array":
        separator = {"csv": ",", "tsv": "\t"}[form]
        table = tmp_path / f"t.{form}"
        names = "" if form == "tsv" else "a,b,score\n"
        table.write_text(names + "\n".join(separator.join(f"{v:g}" for v in row) for row in rows) + "\n")
    spec = PairScores(table, highest=5.0) if form == "array" else f"pair_scores({str(table)!r}, highest=5.0)"
    y = distances(spec, [7, 2, 0, 3, 99])
    expected = np.full((5, 5), np.nan)
    np.fill_diagonal(expected, 0)
    expected[0, 1] = expected[1, 0] = 1
    expected[1, 2] = expected[2, 1] = 0
    expected[0, 3] = expected[3, 0] = 4.5
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("header", ["", "first,second,score\n"])
def test_pairs_of_named_items(header: str, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(f'{header}b.jpg, 7 ,4\n7,"a, b.jpg",5\nc.jpg,b.jpg,0.5\n')
    target = bb.create_target(f"pair_scores({str(table)!r}, highest=5.0)")
    names = np.array(["b.jpg", "7", "a, b.jpg", "c.jpg", "new.jpg", "other.jpg"])
    for labels in (names, names[:, None], names.tolist()):
        y = distances(target, labels)
        expected = np.full((6, 6), np.nan)
        np.fill_diagonal(expected, 0)
        for i, j, value in ((0, 1, 1), (1, 2, 0), (0, 3, 4.5)):
            expected[i, j] = expected[j, i] = value
        np.testing.assert_array_equal(y, expected)
    for wrong in (np.arange(6), names.reshape(3, 2)):
        with pytest.raises(ValueError, match=r"by name and needs text .*data\.label '\[file\]'"):
            target.encode(wrong)
    table.write_text("a,b,1\nb,c\n")
    with pytest.raises(ValueError, match=r"two items and a score in each row of .*, got \['b', 'c'\]"):
        PairScores(table)


def test_numbers_far_beyond_a_table_are_unknown() -> None:
    target = PairScores([[0, 1, 2.0], [2, 3, 1.0]])  # 2^62 * 4 would wrap around to item 0
    y = distances(target, [2**62, 1, 2**62 + 2, 3])
    np.testing.assert_array_equal(np.isnan(y), ~np.eye(4, dtype=bool))


def test_a_table_of_named_items(tmp_path: Path) -> None:
    names = ["b", "ä", "c d", "e", "f", "g"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for source in (names, str(tmp_path / "names.txt")):
        target = Precomputed(TABLE, names=source)
        np.testing.assert_array_equal(distances(target, [["e"], ["ä"], ["b"]]), TABLE[[3, 1, 0]][:, [3, 1, 0]])
    with pytest.raises(LabelError, match="'cd' of item 1 is none of its 6 names; did you mean 'c d'") as found:
        target.encode(["b", "cd"])
    assert found.value.row == 1
    with pytest.raises(ValueError, match="by name and needs text"):
        target.encode([0, 1])
    with pytest.raises(ValueError, match="5 names for a table of 6 items"):
        Precomputed(TABLE, names=names[:5])
    with pytest.raises(ValueError, match="names that differ, but number 5 is 'b'"):
        Precomputed(TABLE, names=[*names[:5], "b"])


@pytest.mark.parametrize(
    ("rows", "highest", "message"),
    [
        ([[0, 1, 2.0], [1, 0, 3.0]], None, "items 0 and 1 have more than one score"),
        ([[0, 1, -2.0]], None, "row 0 is \\[0.0, 1.0, -2.0\\]; expected"),
        ([[0, 1, 2.0], [0, 2, 6.0]], 5.0, "row 1 .*score of at most 5.0"),
        ([[0, 1.5, 2.0]], None, "row 0"),
        ([[0, -1, 2.0]], None, "row 0"),
        ([[0, 1]], None, "\\[m 3\\], got \\[1, 2\\]"),
    ],
)
def test_tables_of_scores_that_do_not_fit(rows: Any, highest: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairScores(np.array(rows), highest)


@given(PATHS)
def test_trees_of_names_are_those_of_numbers(paths: np.ndarray) -> None:
    """Text says the same as numbers, as whole paths and in parts."""
    parts = [[("ant", "bee", "cat")[node] for node in itertools.takewhile(lambda node: node >= 0, p)] for p in paths]
    whole = ["/".join(part) for part in parts]
    split = [[" / ".join(part[:1]), "/".join(part[1:])] for part in parts]
    for spec in ("tree", "tree(lengths=(4.0, 2.0, 0.5))"):
        expected = distances(spec, paths)
        for labels in (whole, np.array(whole), split, np.array(whole)[:, None]):
            np.testing.assert_array_equal(distances(spec, labels), expected)
    assert bb.create_target("tree").encode(whole[:1]).shape == (1, 16)  # whatever else is in the batch


@given(BITS)
def test_sets_of_names_are_those_of_bits(bits: np.ndarray) -> None:
    names = ("red", "round", "old car", "ä")
    sets = [[name for name, there in zip(names, row, strict=True) if there] for row in bits]
    target = bb.create_target(f"multi_label(names={names!r})")
    for labels in (["; ".join(s) for s in sets], [[";".join(s[::-1]), s[0] if s else ""] for s in sets]):
        assert target.encode(np.array(labels)).equal(torch.from_numpy(bits).to(torch.uint8))
    np.testing.assert_array_equal(distances(target, ["; ".join(s) for s in sets]), distances("multi_label", bits))


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tags.txt").write_text("red\nround\n")
    target = bb.create_target(f"multi_label(names={str(tmp_path / 'tags.txt')!r})")
    with pytest.raises(LabelError, match="'rond' of item 1 is none of its 2 names; did you mean 'round'") as found:
        target.encode(["red", "red;rond"])
    assert found.value.row == 1
    with pytest.raises(ValueError, match=r"with names needs text .*data\.label '\[tags\]'"):
        target.encode([[0, 1]])
    with pytest.raises(LabelError, match="item 1 has 3 levels, more than 2"):
        bb.create_target("tree(lengths=(1.0, 1.0))").encode(["a/b", "a/b/c"])


# ---- pose


def pose_by_loops(
    a: np.ndarray, b: np.ndarray, root: tuple[int, ...] | None, scale: bool, reduce: str, dims: int = 2
) -> float:
    """One pose distance, joint by joint."""

    def centred(joints: np.ndarray) -> dict[int, np.ndarray]:
        seen = {i: j[:dims] for i, j in enumerate(joints) if not np.isnan(j).any() and (len(j) == dims or j[dims] != 0)}
        anchors = [p for i, p in seen.items() if root is None or i in root]
        if not anchors:
            return {}
        seen = {i: p - np.mean(anchors, 0) for i, p in seen.items()}
        size = math.sqrt(np.mean([p @ p for p in seen.values()]))
        return {i: p / size for i, p in seen.items()} if scale and size > 0 else seen

    left, right = centred(a), centred(b)
    gaps = [float(np.linalg.norm(left[i] - right[i])) for i in left.keys() & right.keys()]
    return math.nan if not gaps else sum(gaps) if reduce == "sum" else float(np.mean(gaps))


@pytest.mark.parametrize("root", [None, (1, 2)])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("hidden", ["none", "mask", "nan"])
@pytest.mark.parametrize("dims", [2, 3])
def test_pose_is_the_loops(root: tuple[int, ...] | None, scale: bool, reduce: str, hidden: str, dims: int) -> None:
    rng = np.random.default_rng(1)
    joints = rng.normal(size=(9, 5, dims))
    if hidden == "mask":
        seen = rng.random((9, 5, 1)) < 0.5
        seen[7], seen[8] = False, True
        joints = np.concatenate([joints, seen], 2)
    elif hidden == "nan":
        joints[rng.random((9, 5)) < 0.4, 0] = np.nan
        joints[7] = np.nan
    y = distances(f"pose(root={root}, scale={scale}, reduce={reduce!r}, dims={dims})", joints)
    expected = [[pose_by_loops(a, b, root, scale, reduce, dims) for b in joints] for a in joints]
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
    assert np.isnan(y).any() == (hidden != "none")
    if hidden != "none":
        assert np.isnan(y[7]).all()


@pytest.mark.parametrize("root", [None, (0, 1)])
def test_mirrored_poses_are_the_same_on_request(root: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(6)
    joints = rng.normal(size=(5, 5, 2))
    mirror = (1, 0, 3, 2, 4)
    image = joints[:, mirror] * [-1, 1]
    plain, aware = f"pose(root={root})", f"pose(root={root}, mirror={mirror})"
    assert (distances(plain, joints, image).diagonal() > 0.1).all()
    np.testing.assert_allclose(distances(aware, joints, image).diagonal(), 0, atol=1e-12)
    expected = np.minimum(distances(plain, joints), distances(plain, joints, image))
    np.testing.assert_allclose(distances(aware, joints), expected, atol=1e-12)


def test_pose_takes_out_translation_and_on_request_scale() -> None:
    rng = np.random.default_rng(2)
    joints, moves, sizes = (
        rng.normal(size=(6, 4, 2)),
        rng.normal(size=(6, 1, 2)),
        rng.uniform(0.5, 3, (6, 1, 1)),
    )
    for spec in ("pose", "pose(root=(0, 3))", "pose(scale=True)", "pose(reduce='sum')"):
        y = distances(spec, joints)
        np.testing.assert_allclose(distances(spec, joints + moves), y, atol=1e-12)
        scaled = distances(spec, joints * sizes + moves)
        assert np.allclose(scaled, y) == ("scale=True" in spec)
    np.testing.assert_allclose(distances("pose", joints * 2), 2 * distances("pose", joints))
    np.testing.assert_array_equal(distances("pose", joints.reshape(6, -1)), distances("pose", joints))
    np.testing.assert_allclose(distances("pose(reduce='sum')", joints), 4 * distances("pose", joints))


@pytest.mark.parametrize("dims", [2, 3])
def test_flat_poses_hold_a_visibility_on_request(dims: int) -> None:
    rng = np.random.default_rng(11)
    joints = np.concatenate([rng.normal(size=(6, 5, dims)), rng.random((6, 5, 1)) < 0.6], 2)
    expected = distances(f"pose(dims={dims})", joints)
    flat = f"pose(dims={dims}, visibility=True)"
    np.testing.assert_array_equal(distances(flat, joints.reshape(6, -1)), expected)
    np.testing.assert_array_equal(distances(flat, joints), expected)
    np.testing.assert_array_equal(
        distances(flat, joints[..., :dims]), distances(f"pose(dims={dims})", joints[..., :dims])
    )
    both = np.concatenate([rng.integers(0, 2, (6, 1)), joints.reshape(6, -1)], 1)
    total = distances(f"sum(('classes', {flat!r}), columns=(1, {5 * dims + 5}))", both)
    np.testing.assert_array_equal(total, expected + (both[:, :1] != both[:, 0]))


def test_points_that_move_are_as_wide_as_the_pose_reads_them() -> None:
    for spec, width in (
        ("euclidean", 2), ("pose", 2), ("pose(visibility=True)", 3), ("pose(dims=3)", 3),
        ("scaled(\"within('pose(dims=3, visibility=True)', radius=1.0)\", factor=2.0)", 4),
    ):  # fmt: skip
        assert numbers_per_point(bb.create_target(spec)) == width
    with pytest.raises(ValueError, match="points alone, not those of a sum"):
        numbers_per_point(bb.create_target("sum(('classes', 'pose'), columns=(1, 4))"))


# ---- algebra


@given(arrays(2), st.floats(0, 50))
def test_within_is_a_radius(labels: np.ndarray, radius: float) -> None:
    np.testing.assert_array_equal(
        distances(f"within('euclidean', radius={radius})", labels), distances("euclidean", labels) > radius
    )


@settings(max_examples=50)
@given(arrays(elements=st.integers(0, 4).map(float)), st.integers(1, 4), st.randoms(use_true_random=False))
def test_nearest_by_loops(labels: np.ndarray, k: int, random: Any) -> None:
    n = len(labels)
    valid = torch.tensor([[random.random() < 0.7 for _ in range(n)] for _ in range(n)]).reshape(n, n)
    y = distances(f"nearest('euclidean', k={k})", labels, valid=valid)
    gap = np.abs(labels[:, None] - labels[None])
    for i in range(n):
        usable = [j for j in range(n) if valid[i, j]]
        for j in usable:
            nearer = sum(gap[i, other] < gap[i, j] for other in usable)
            assert y[i, j] == (0 if nearer < k else 1), (gap[i], valid[i], i, j)


@pytest.mark.parametrize("wrap", ["within({}, radius=1.0)", "nearest({}, k=2)"])
def test_unknown_pairs_stay_unknown(wrap: str) -> None:
    joints = np.random.default_rng(3).normal(size=(5, 3, 2))
    joints[2] = np.nan
    y = distances(wrap.format("'pose'"), joints, valid=~torch.eye(5, dtype=torch.bool))
    unknown = np.zeros((5, 5), dtype=bool)
    unknown[2] = unknown[:, 2] = True
    np.testing.assert_array_equal(np.isnan(y), unknown)
    assert set(np.unique(y[~unknown])) == {0, 1}
    inner = wrap.format("\"within('pose', radius=1.0)\"")
    np.testing.assert_array_equal(np.isnan(distances(inner, joints)), unknown)


def test_nearest_counts_only_valid_keys() -> None:
    """The query itself, at distance 0, is not one of its neighbours."""
    target = bb.create_target("nearest('euclidean', k=1)")
    code = target.encode([0.0, 1.0, 3.0])
    others = ~torch.eye(3, dtype=torch.bool)
    assert (target.distance(code, code, others) == 0)[others].tolist() == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    assert (target.distance(code, code) == 0).tolist() == torch.eye(3, dtype=torch.bool).tolist()


def test_a_sum_reads_each_target_its_columns() -> None:
    rng = np.random.default_rng(8)
    angle, kind, joints = 360 * rng.random(6), rng.integers(0, 3, 6), rng.normal(size=(6, 8))
    joints[2] = np.nan
    labels = np.concatenate([angle[:, None], kind[:, None], joints], 1)
    with pytest.raises(ValueError, match="finite labels, but row 2"):
        bb.create_target("sum(('circular', 'classes', 'pose'), columns=(1, 1, 8))").encode(labels)
    joints[2] = 0
    labels[2, 2:] = 0
    y = distances("sum(('circular', \"scaled('classes', factor=90.0)\", 'pose'), columns=(1, 1, 8))", labels)
    expected = distances("circular", angle) + 90 * (kind[:, None] != kind) + distances("pose", joints)
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_a_sum_with_an_unknown_pair_is_unknown() -> None:
    labels = [[0.0, 0], [1.0, 1], [3.0, 2]]
    y = distances(bb.targets.algebra.Sum(["euclidean", PairScores([[0, 1, 2.0]])]), labels)
    np.testing.assert_array_equal(y, [[0, 3, np.nan], [3, 0, np.nan], [np.nan, np.nan, 0]])


# ---- what is refused


@pytest.mark.parametrize(
    ("spec", "labels", "message"),
    [
        ("classes", [0.0, 1.0], "integer labels, got torch.float32; continuous labels want"),
        ("classes", np.zeros((3, 2), int), "one label per item \\[n\\], got shape \\[3, 2\\]"),
        (
            "classes",
            ["cat", "dog"],
            "got \\['cat', 'dog'\\]; map class names to numbers, .*return_inverse=True\\)\\[1\\]$",
        ),
        ("classes", np.array(["cat", "dog"]), "map class names to numbers, for example np.unique"),
        ("classes", 3, "one label per item"),
        ("euclidean", [[0.0, 1.0], [math.nan, 2.0]], "finite labels, but row 1 is \\[nan, 2.0\\]"),
        ("euclidean", [0.0, math.inf], "finite labels, but row 1"),
        ("euclidean", ["a"], "needs numeric labels"),
        ("euclidean", [True, False], "needs numeric labels"),
        ("euclidean", [[1.0], [1.0, 2.0]], "needs numeric labels"),
        ("euclidean", 1.0, "one label per item"),
        ("circular", [0.0, -math.inf], "finite labels, but row 1"),
        ("pose", np.zeros((3, 5)), "cannot read 5 numbers per item as joints"),
        ("pose(visibility=True)", np.zeros((3, 8)), "reads 3 numbers a joint and cannot read 8"),
        ("pose", np.zeros(3), "needs joints \\[n j 2\\]"),
        ("pose", np.zeros((3, 4, 5)), "needs 2 numbers a joint \\(or one more for visibility\\), got 5"),
        ("pose(root=(0, 4))", np.zeros((3, 4, 2)), "root \\(0, 4\\) names joints beyond the 4"),
        ("layout", np.zeros((2, 3, 3)), "integer maps \\[n h w\\], got torch.float64"),
        ("layout", np.zeros((2, 3), int), "integer maps \\[n h w\\]"),
        ("layout", np.full((1, 2, 2), 5), "values in 0..4, got 5..5"),
        ("within('euclidean', radius=1)", [math.nan], "finite labels"),
        ("nearest('classes', k=1)", [0.5], "integer labels"),
        ("multi_label", [[0, 2]], "needs 0 and 1 alone, got 0..2"),
        ("multi_label", [0, 1], "integers \\[n l\\]"),
        ("multi_label", [[0], [0, 1]], "all rows of one length"),
        ("tree", [[0.5]], "integers \\[n levels\\]"),
        ("tree(lengths=(1.0,))", [[0, 1]], "1 lengths but the labels 2 levels"),
        ("cosine", [[1.0], [0.0]], "row 1 is zero"),
        ("histogram", [[1.0, 2.0], [0.0, 0.0]], "positive sum, but row 1"),
        ("histogram", [[1.0, -2.0]], "at least 0 with a positive sum, but row 0"),
        ("histogram", [1.0, 2.0], "histograms \\[n bins\\]"),
        ("gaussian", [[0.0, 1.0, 1.0]], "side by side \\[n 2m\\]"),
        ("gaussian", [[0.0, 1.0], [0.0, -1.0]], "row 1 has a negative standard deviation"),
        ("gaussian(covariance='full')", [[[0.0, -1.0]]], "row 0 is not symmetric and positive"),
        ("gaussian(covariance='full')", [[0.0, 1.0]], "\\[n m 1\\+m\\]"),
        ("sum(('circular', 'classes'))", [[0.0, 1.5]], "integer labels"),
        ("sum(('circular', 'classes'))", [0.0], "labels of 2 columns"),
        ("pose(mirror=(1, 0))", np.zeros((3, 4, 2)), "mirror names 2 joints, but there are 4"),
    ],
)
def test_labels_that_do_not_fit(spec: str, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bb.create_target(spec).encode(labels)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("euclidian", "unknown target 'euclidian'; did you mean 'euclidean'"),
        ("clases", "did you mean 'classes'"),
        ("pose(scales=True)", "target 'pose' has no option scales; its options: root, scale, reduce, dims"),
        ("pose(reduce='max')", "reduce must be one of 'mean', 'sum', got 'max'"),
        ("pose(dims=4)", "dims must be 2 or 3"),
        ("circular(period=0)", "positive period"),
        ("circular(period=-1)", "positive period"),
        ("within('euclidean', radius=-1)", "radius of at least 0"),
        ("within('euclidean')", "missing a required argument: 'radius'"),
        ("within('euclid', radius=1)", "unknown target 'euclid'"),
        ("nearest('euclidean', k=0)", "k of at least 1"),
        ("nearest('euclidean', k=1.5)", "k must be an int, got 1.5"),
        ("nearest('euclidean', k=True)", "k must be an int, got True"),
        ("pose(root=2)", "target 'pose': root must be a sequence whose items are each an int or None, got 2"),
        ("pose(root=(0.5,))", "root must be a sequence .* got \\(0.5,\\)"),
        ("pose(scale=1)", "scale must be True or False, got 1"),
        ("within('euclidean', radius='a')", "target 'within': radius must be a float, got 'a'"),
        ("within(3, radius=1.0)", "expected a target or a spec such as 'euclidean', got 3"),
        ("circular(period='a')", "target 'circular': period must be a float, got 'a'"),
        ("layout(regions='x')", "target 'layout': regions must be an int, got 'x'"),
        ("layout(exchangeable=(1, 1))", "at most 5 different regions of 0..4"),
        ("layout(exchangeable=(5,))", "at most 5 different regions of 0..4"),
        ("pose(mirror=(1, 2, 0))", "be that one's partner"),
        ("pose(mirror=(1, 0, 2), root=(0, 2))", "must be the root itself"),
        ("histogram(width=0)", "width must be positive"),
        ("tree(lengths=(1.0, -1.0))", "finite and at least 0"),
        ("scaled('euclidean', factor=0)", "positive, finite factor"),
        ("sum(('euclidean',), columns=(1, 2))", "a number of columns for each"),
        ("sum(())", "sum needs targets"),
        ("layout(regions=300)", "regions must be 1 to 256, got 300"),
    ],
)
def test_specs_that_do_not_fit(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bb.create_target(spec)


def loss_of_pose(loss: str, joints: np.ndarray, z: Tensor, **options: Any) -> Tensor:
    target = options.pop("target", "pose")
    return bb.create_objective(loss, target=target, **options)(z, joints)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("log_ratio", {}),
        ("triplet", {"target": "within('pose', radius=1.0)", "margin": 1.0}),
        ("supcon", {"target": "nearest('pose', k=2)"}),
        ("contrastive", {"target": "nearest('pose', k=2)"}),
        ("multi_similarity", {"target": "within('pose', radius=1.2)", "mining": "multi_similarity"}),
    ],
)
@pytest.mark.parametrize("block", [2, None])
def test_unknown_pairs_are_left_out_of_losses(loss: str, options: dict[str, Any], block: int | None) -> None:
    joints = np.random.default_rng(4).normal(size=(9, 4, 2))
    z = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    with_unknown = joints.copy()
    with_unknown[[3, 8]] = np.nan
    known = [0, 1, 2, 4, 5, 6, 7]
    value = loss_of_pose(loss, with_unknown, z, block=block, **options)
    expected = loss_of_pose(loss, joints[known], z[known], block=block, **options)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert value.item() > 1e-3
    (grad,), (expected_grad,) = torch.autograd.grad(value, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(grad, expected_grad)
    assert grad[[3, 8]].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        "pose",
        "circular",
        "layout",
        "within('euclidean', radius=0.5)",
        "tree",
        "multi_label",
        "manhattan",
        "cosine",
        "histogram",
    ],
)
def test_targets_compile_in_one_graph(spec: str) -> None:
    special = {
        "pose": torch.randn(6, 3, 2),
        "circular": 360 * torch.rand(6),
        "layout": torch.randint(5, (6, 3, 3)),
    }
    special |= {
        "tree": torch.randint(3, (6, 3)),
        "multi_label": torch.randint(2, (6, 5)),
        "histogram": torch.rand(6, 4),
    }
    labels, z = special.get(spec, torch.rand(6, 2)), torch.randn(6, 4, requires_grad=True)
    objective = bb.create_objective("supcon" if spec.startswith("within") else "log_ratio", target=spec)
    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")(z, labels)
    expected = objective(z, labels)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(compiled, z), torch.autograd.grad(expected, z), rtol=1e-3, atol=1e-4)


def test_what_pose_and_pair_scores_refuse() -> None:
    joints = np.zeros((3, 2, 2))
    joints[1, 0, 1] = np.inf
    with pytest.raises(ValueError, match="item 1 has an infinite joint; NaN is invisible"):
        bb.create_target("pose").encode(joints)
    with pytest.raises(ValueError, match="an item is at distance 0 from itself; leave such rows out"):
        PairScores([[0, 1, 2.0], [1, 1, 3.0]])
    assert PairScores([[0, 1, 2.0], [1, 1, 0.0]]).distance(torch.tensor([1]), torch.tensor([1])).item() == 0


def test_scaled_and_sum_stay_relative() -> None:
    nearest = "nearest('euclidean', k=2)"
    assert bb.create_target(f'scaled("{nearest}", factor=2.0)').relative
    assert bb.create_target(f"sum(('classes', \"{nearest}\"))").relative
    assert not bb.create_target("sum(('classes', 'euclidean'))").relative


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("target", "width"), [("euclidean", 3), ("euclidean", 12), ("manhattan", 12), ("cosine", 12)])
def test_labels_of_half_precision_are_compared_in_single_precision(target, width, kind) -> None:
    labels = torch.rand(6, width).to(kind)
    made = bb.create_target(target)
    coarse, fine = (made.encode(given) for given in (labels, labels.float()))
    assert torch.equal(made.distance(coarse, coarse), made.distance(fine, fine))


def test_columns_and_tables_of_pandas_are_labels() -> None:
    """Whatever their index is; they may be read-only."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"class": [0, 1, 1, 2], "x": [0.0, 1.0, 2.0, 3.0], "y": 1.0})[1:]
    assert bb.create_target("classes").encode(frame["class"]).tolist() == [1, 1, 2]
    assert bb.create_target("euclidean").encode(frame[["x", "y"]]).tolist() == [[1, 1], [2, 1], [3, 1]]
    some = np.arange(3.0)
    some.flags.writeable = False
    assert bb.create_target("euclidean").encode(some).flatten().tolist() == [0, 1, 2]
    z = frame[["x", "y"]]
    assert bb.evaluate(z, frame["class"], ids=frame["class"].index) == bb.evaluate(
        z.to_numpy(), [1, 1, 2], ids=[1, 2, 3]
    )
