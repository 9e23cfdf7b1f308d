"""Targets: metric axioms, SciPy and loops as oracles, unknown pairs, and what labels are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from sklearn.metrics import jaccard_score
from torch import Tensor

import beyond_binary as bb

FINITE = st.floats(-100, 100, allow_subnormal=False).map(lambda v: round(v, 6))
Labels = st.SearchStrategy[np.ndarray]


def arrays(*shape: int, elements: st.SearchStrategy[Any] = FINITE, dtype: Any = np.float64) -> Labels:
    return st.integers(1, 6).flatmap(lambda n: hnp.arrays(dtype, (n, *shape), elements=elements))


MAPS = arrays(4, 3, elements=st.integers(0, 4), dtype=np.int64)
CLASS_NUMBERS = arrays(elements=st.integers(-(2**60), 2**60) | st.integers(0, 2), dtype=np.int64)
LABELS: dict[str, Labels] = {
    "classes": CLASS_NUMBERS,
    "euclidean": arrays() | arrays(3),
    "circular": arrays() | arrays(2),
    "circular(period=24)": arrays(),
    "pose": arrays(4, 2) | arrays(8),
    "pose(reduce='sum', root=(1, 2))": arrays(4, 2),
    "pose(scale=True, dims=3)": arrays(4, 3) | arrays(12),
    "layout": MAPS,
    "within('euclidean', radius=5.0)": arrays(2),
    "nearest('euclidean', k=2)": arrays(2),
    "nearest('classes', k=2)": CLASS_NUMBERS,
}
every_target = pytest.mark.parametrize("spec", LABELS)


def distances(spec: str, labels: Any, other: Any = None, valid: Tensor | None = None) -> np.ndarray:
    target = bb.create_target(spec)
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
    assert (y.diagonal() == 0).all()
    assert (y >= 0).all()
    if spec.startswith("nearest"):
        return
    np.testing.assert_allclose(y, y.T, rtol=0, atol=1e-6 if spec == "layout" else 1e-10)
    if not spec.startswith(("layout", "within")):
        through = (y[:, :, None] + y[None, :, :]).min(1)
        assert (y <= through + 1e-9).all()


@every_target
@settings(max_examples=10)
@given(data=st.data())
def test_blocks_of_rows_equal_the_whole(spec: str, data: st.DataObject) -> None:
    labels = data.draw(LABELS[spec])
    target = bb.create_target(spec)
    code = target.encode(labels)
    valid = ~torch.eye(len(code), dtype=torch.bool)
    rows = [target.distance(code[i : i + 2], code, valid[i : i + 2]) for i in range(0, len(code), 2)]
    assert torch.cat(rows).equal(target.distance(code, code, valid))
    assert torch.cat([target.encode(labels[:1]), target.encode(labels[1:])]).equal(code)


@every_target
def test_forms_of_labels_and_empty_ones(spec: str) -> None:
    shape = {"layout": (5, 4, 3), "pose": (5, 4, 2), "within": (5, 2), "euclidean": (5, 2)}
    shape["nearest"] = (5,) if "classes" in spec else (5, 2)
    numbers = np.random.default_rng(0).integers(0, 5, shape.get(spec.split("(")[0], (5,)))
    labels = np.repeat(numbers[:, :, :1], 3, 2) if "dims=3" in spec else numbers
    target = bb.create_target(spec)
    code = target.encode(labels)
    for form in (labels.tolist(), torch.from_numpy(labels), labels.astype(np.int32)):
        assert target.encode(form).equal(code)
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
        ("pose", np.zeros(3), "needs joints \\[n j 2\\]"),
        ("pose", np.zeros((3, 4, 5)), "needs 2 numbers a joint \\(or one more for visibility\\), got 5"),
        ("pose(root=(0, 4))", np.zeros((3, 4, 2)), "root \\(0, 4\\) names joints beyond the 4"),
        ("layout", np.zeros((2, 3, 3)), "integer maps \\[n h w\\], got torch.float64"),
        ("layout", np.zeros((2, 3), int), "integer maps \\[n h w\\]"),
        ("layout", np.full((1, 2, 2), 5), "values in 0..4, got 5..5"),
        ("within('euclidean', radius=1)", [math.nan], "finite labels"),
        ("nearest('classes', k=1)", [0.5], "integer labels"),
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
@pytest.mark.parametrize("spec", ["pose", "circular", "layout", "within('euclidean', radius=0.5)"])
def test_targets_compile_in_one_graph(spec: str) -> None:
    special = {
        "pose": torch.randn(6, 3, 2),
        "circular": 360 * torch.rand(6),
        "layout": torch.randint(5, (6, 3, 3)),
    }
    labels, z = special.get(spec, torch.rand(6, 2)), torch.randn(6, 4, requires_grad=True)
    objective = bb.create_objective("supcon" if spec.startswith("within") else "log_ratio", target=spec)
    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")(z, labels)
    expected = objective(z, labels)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(compiled, z), torch.autograd.grad(expected, z), rtol=1e-3, atol=1e-4)
