import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from beyond_binary import neighbour_search as search
from beyond_binary import neighbours
from beyond_binary.fingerprint import fingerprint
from beyond_binary.neighbours import label_neighbours, neighbour_recall
from beyond_binary.targets import create_target


@dataclass(frozen=True)
class Table:
    """A target whose code is an item's number and whose distances are given."""

    table: Tensor
    gives: str = "magnitude"

    def encode(self, labels, z=None):
        return torch.as_tensor(labels)

    def distance(self, code_q, code_k, valid=None):
        return self.table[code_q[:, None], code_k[None, :]]


def loop_neighbours(table, k, ids=None):
    """Plain sorting of (distance, index) per row: the oracle."""
    n = len(table)
    ids = range(n) if ids is None else ids
    indices, distances = [], []
    for i in range(n):
        row = sorted((table[i][j], j) for j in range(n) if ids[i] != ids[j] and np.isfinite(table[i][j]))[:k]
        row += [(np.nan, -1)] * (k - len(row))
        distances.append([d for d, _ in row])
        indices.append([j for _, j in row])
    return np.array(indices), np.array(distances)


@pytest.mark.parametrize("tile", [1, 7, 64, 1000])
def test_euclidean_agrees_with_scikit_learn(tile):
    labels = np.random.default_rng(0).normal(size=(64, 3))
    target = create_target("euclidean")
    indices, distances = label_neighbours(target, target.encode(labels), 5, tile=tile)
    # kneighbors() without points leaves each point out of its own list
    expected_distances, expected = NearestNeighbors(n_neighbors=5).fit(labels).kneighbors()
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)
    assert indices.dtype == torch.int64
    assert distances.dtype == torch.float64


@pytest.mark.parametrize(
    ("spec", "shape"),
    [("pose(root=(0, 1))", (40, 6, 2)), ("circular(period=1)", (40, 2)), ("pose(scale=True)", (40, 6, 2))],
)
def test_other_targets_agree_with_scikit_learn_on_their_own_distances(spec, shape):
    target = create_target(spec)
    code = target.encode(np.random.default_rng(1).normal(size=shape))
    table = target.distance(code, code).numpy().clip(0)
    expected_distances, expected = NearestNeighbors(n_neighbors=4, metric="precomputed").fit(table).kneighbors()
    indices, distances = label_neighbours(target, code, 4, tile=9)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_ties_unknown_pairs_and_equal_ids_follow_the_plain_loop(data):
    n = data.draw(st.integers(2, 9))
    level = st.sampled_from([0.0, 1.0, 2.0, np.nan, np.inf])  # few levels: ties everywhere
    table = np.array(data.draw(st.lists(st.lists(level, min_size=n, max_size=n), min_size=n, max_size=n)))
    ids = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=n, max_size=n))
    k, tile = data.draw(st.integers(1, n - 1)), data.draw(st.integers(1, 10))
    indices, distances = label_neighbours(
        Table(torch.tensor(table)),
        torch.arange(n),
        k,
        ids=None if ids is None else torch.tensor(ids),
        tile=tile,
    )
    expected, expected_distances = loop_neighbours(table, k, ids)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(distances, expected_distances)


def test_bool_distances_list_the_same_class_first_in_order():
    target = create_target("classes")
    indices, distances = label_neighbours(target, target.encode([0, 1, 0, 1, 0]), 3)
    assert indices.tolist() == [[2, 4, 1], [3, 0, 2], [0, 4, 1], [1, 0, 2], [0, 2, 1]]
    assert distances.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1], [0, 0, 1]]


def test_a_label_equal_to_the_items_own_is_a_neighbour_but_the_item_itself_is_not():
    target = create_target("euclidean")
    indices, distances = label_neighbours(target, target.encode([1.0, 1.0, 5.0]), 1)
    assert indices.tolist() == [[1], [0], [0]]
    assert distances.tolist() == [[0.0], [0.0], [4.0]]


@pytest.mark.parametrize("k", [0, 4, 5])
def test_k_that_cannot_be_met_is_refused(k):
    with pytest.raises(ValueError, match=rf"1 <= k < 4 .* got k={k} for 4 items"):
        label_neighbours(create_target("euclidean"), torch.zeros(4, 1), k)


def test_only_tiles_of_rows_are_asked_of_the_target():
    seen = []

    class Watching(Table):
        def distance(self, code_q, code_k, valid=None):
            seen.append((len(code_q), len(code_k)))
            return super().distance(code_q, code_k)

    label_neighbours(Watching(torch.rand(10, 10)), torch.arange(10), 2, tile=4)
    assert seen == [(4, 10), (4, 10), (2, 10)]


# ---- quick searches ------------------------------------------------------------------


def spread(shape, clusters=12, near=0.05):
    """Clustered labels with exact doubles among them, far from the origin."""
    rng = np.random.default_rng(3)
    labels = 5 + rng.normal(size=(clusters, *shape[1:]))[rng.integers(clusters, size=shape[0])]
    labels += near * rng.normal(size=shape)
    labels[::7] = labels[3]
    return labels


VECTORS = [
    ("euclidean", (900, 5)),
    ("euclidean", (900,)),
    ("manhattan", (900, 6)),
    ("cosine", (900, 6)),
    ("histogram", (900, 6)),
    ("gaussian", (900, 4)),
    ("scaled('euclidean', factor=3.0)", (900, 3)),
    ("pose", (900, 16, 2)),
    ("pose(root=(0, 1), reduce='sum', scale=True)", (900, 5, 2)),
    ("pose(dims=3)", (900, 7, 3)),
]


@pytest.mark.parametrize(("spec", "shape"), VECTORS)
@pytest.mark.parametrize(("dtype", "near"), [(np.float64, 1e-4), (np.float32, 0.05), (np.float32, 1.0)])
def test_exact_search_by_bounds_equals_the_plain_one(spec, shape, dtype, near, monkeypatch):
    monkeypatch.setattr(neighbours, "QUICK", 0)
    target = create_target(spec)
    code = target.encode(abs(spread(shape, near=near)).astype(dtype))
    ids = torch.arange(len(code)) // 2
    expected = label_neighbours(target, code, 9, ids=ids, method="plain")
    assert neighbours.as_joints(target, code) is not None
    found = label_neighbours(target, code, 9, ids=ids, method="exact")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e12, 1e30])
def test_exact_search_knows_no_scale(scale, monkeypatch):
    monkeypatch.setattr(neighbours, "QUICK", 0)
    target = create_target("pose")
    code = target.encode(scale * np.random.default_rng(4).normal(size=(600, 6, 2)))
    expected = label_neighbours(target, code, 5, method="plain")
    assert torch.equal(label_neighbours(target, code, 5)[0], expected[0])


def test_bounds_leave_the_pairs_out_that_are_out_of_reach():
    """Few hits, and none missing: what is ranked at the end is little more than the neighbours."""
    points = torch.randn(3000, 4, 2, dtype=torch.double)
    bounds, order = neighbours.upper_bounds(points, torch.arange(3000), 10)
    assert order.sort().values.tolist() == list(range(3000))
    table = (points[:, None] - points).norm(dim=3).sum(2).fill_diagonal_(torch.inf)
    assert (bounds >= table.kthvalue(10).values - 1e-9).all()
    rows, items, sums = search.within_reach(points, bounds * (1 + 1e-9), 10**9)
    np.testing.assert_allclose(sums, table[rows, items], rtol=1e-9)
    assert set(zip(rows.tolist(), items.tolist(), strict=True)) >= set(
        map(tuple, (table <= bounds[:, None]).nonzero().tolist())
    )
    assert len(rows) < 3000 * 10 * 4
    assert search.within_reach(points, bounds, 100) is None


def test_items_with_too_few_others_around_are_searched_plainly(monkeypatch):
    monkeypatch.setattr(neighbours, "QUICK", 0)
    target = create_target("euclidean")
    code = target.encode(spread((400, 3)))
    ids = torch.arange(400).clamp(min=390)  # 391 items are one thing
    expected = label_neighbours(target, code, 12, ids=ids, method="plain")
    found = label_neighbours(target, code, 12, ids=ids, method="exact")
    assert torch.equal(found[0], expected[0])
    assert (expected[0][0] == -1).any()
    np.testing.assert_array_equal(found[1], expected[1])


def test_ties_beyond_measure_fall_back(monkeypatch):
    monkeypatch.setattr(neighbours, "QUICK", 0)
    target = create_target("manhattan")
    code = target.encode(np.random.default_rng(5).integers(2, size=(500, 2)).astype(float))
    expected = label_neighbours(target, code, 3, method="plain")
    for most in (16, 0):
        monkeypatch.setattr(neighbours, "MOST_HITS", most)
        found = label_neighbours(target, code, 3, method="exact")
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_labels_that_are_no_vectors_are_searched_plainly():
    joints = np.random.default_rng(6).normal(size=(50, 4, 2))
    pose = create_target("pose")
    assert neighbours.as_joints(pose, pose.encode(joints)) is not None
    joints[3, 1] = np.nan
    assert neighbours.as_joints(pose, pose.encode(joints)) is None
    mirrored = create_target("pose(mirror=(1, 0, 2, 3))")
    assert neighbours.as_joints(mirrored, mirrored.encode(joints)) is None
    for spec, labels in (
        ("circular", np.zeros((3, 1))),
        ("histogram(circular=True)", np.ones((3, 2))),
        ("classes", [0, 1, 2]),
    ):
        target = create_target(spec)
        assert neighbours.as_joints(target, target.encode(labels)) is None


@pytest.mark.parametrize("method", ["ivf", "hnsw", pytest.param("nn_descent", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_approximate_searches_find_most_and_say_how_many(method, caplog):
    pytest.importorskip({"ivf": "faiss", "hnsw": "faiss", "nn_descent": "pynndescent"}[method])
    mirrored = ("pose(mirror=(1, 0, 2, 3))", (1500, 4, 2))
    other = mirrored if method == "nn_descent" else ("euclidean", (1500, 6))
    for spec, shape in (("pose", (1500, 8, 2)), other):
        target = create_target(spec)
        code = target.encode(np.random.default_rng(7).normal(size=shape))
        expected = label_neighbours(target, code, 10, method="plain")
        with caplog.at_level("INFO"):
            found = label_neighbours(target, code, 10, method=method)
        share = (found[1] <= expected[1][:, -1:]).double().mean().item()
        recall = neighbour_recall(target, code, found[1], sample=1500)
        assert recall == pytest.approx(share, abs=1e-6)
        assert recall > (0.98 if "mirror" in spec else 0.6), spec  # landmarks alone find 0.9 of these or less
        assert f"by {method}: recall@10 0." in caplog.messages[-1] or "recall@10 1." in caplog.messages[-1]
        gap = target.distance(code[:40], code).gather(1, found[0][:40])
        assert torch.equal(gap.double(), found[1][:40])  # the target's own distances
        again = label_neighbours(target, code, 10, method=method)
        assert torch.equal(found[0], again[0])
        assert (found[0] != torch.arange(1500)[:, None]).all()
        assert torch.get_num_threads() == 1


def test_lists_in_another_order_of_rows_and_what_lies_around_them():
    lists = search.Lists.of(np.array([[3, -1], [0, 2], [-1, -1], [1, 2]])).in_order(np.array([1, 3, 2, 0]))
    groups = [lists.group(i, 1) for i in range(4)]
    assert [(rows.tolist(), items.tolist()) for rows, items in groups] == [
        ([1], [0, 2]), ([3], [1, 2]), ([2], []), ([0], [3]),
    ]  # fmt: skip
    around = search.Around(np.array([2, 0, 1, 3, 4]), np.array([[1, -1], [3, -1], [4, 0], [-1, -1], [2, -1]]))
    assert [(rows.tolist(), items.tolist()) for rows, items in (around.group(0, 2), around.group(2, 2))] == [
        ([2, 0], [0, 1, 2, 3, 4]), ([1, 3], [1, 3]),
    ]  # fmt: skip
    order = search.close_together(torch.tensor([[0.0], [5.0], [0.1], [5.1]]).repeat(200, 1))
    assert sorted(order.tolist()) == list(range(800))
    assert (np.diff(order % 2) != 0).sum() < 20  # not 400: the two heaps are apart


def test_recall_counts_what_is_as_near_as_the_true_ones():
    target = create_target("euclidean")
    code = target.encode([0.0, 1.0, 1.0, 5.0])
    assert neighbour_recall(target, code, label_neighbours(target, code, 2)[1]) == 1
    missed = torch.tensor([[1.0, 5.0], [0.0, 1.0], [0.0, torch.nan], [4.0, 4.0]])
    assert neighbour_recall(target, code, missed) == 6 / 8


@pytest.mark.parametrize(("method", "module"), [("ivf", "faiss"), ("hnsw", "faiss"), ("nn_descent", "pynndescent")])
def test_what_is_not_installed_is_named_and_not_chosen(method, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    target = create_target("euclidean")
    with pytest.raises(ImportError, match=rf"pip install beyond_binary\[{module.replace('pynnde', 'nn_de')}\]"):
        label_neighbours(target, torch.rand(50, 2), 3, method=method)


def test_auto_is_exact_for_few_items_and_approximate_for_many_where_it_can_be(monkeypatch):
    pose, circular = create_target("euclidean"), create_target("circular")
    code, installed = torch.rand(50, 2), {"faiss", "pynndescent"}
    monkeypatch.setattr(neighbours, "find_spec", lambda name: name in installed or None)
    assert neighbours._choose(pose, code) == "exact"
    monkeypatch.setattr(neighbours, "LARGE", 50)
    assert [neighbours._choose(t, code) for t in (pose, circular)] == ["hnsw", "nn_descent"]
    for relaxed, method in ((True, "nn_descent"), (False, "exact")):
        captions = create_target(f"captions(vectors='embedded:scenes', relaxed={relaxed})")
        assert neighbours._choose(captions, torch.zeros(50, 1, 4, dtype=torch.int32)) == method
    installed -= {"faiss"}
    assert neighbours._choose(pose, code) == "nn_descent"
    installed -= {"pynndescent"}
    assert [neighbours._choose(t, code) for t in (pose, circular)] == ["exact", "exact"]


def test_methods_that_cannot_be_used_say_why():
    with pytest.raises(ValueError, match="unknown method 'exakt'; did you mean 'exact'"):
        label_neighbours(create_target("euclidean"), torch.rand(4, 1), 1, method="exakt")
    with pytest.raises(ValueError, match="'hnsw' needs labels that are vectors, not Circular"):
        label_neighbours(create_target("circular"), torch.rand(4, 1), 1, method="hnsw")


# ---- cache ---------------------------------------------------------------------------


class Counted(Table):
    calls = 0

    def distance(self, code_q, code_k, valid=None):
        Counted.calls += 1
        return super().distance(code_q, code_k)


def test_results_are_kept_by_content(tmp_path):
    table = torch.rand(12, 12)

    def calls(target, code=None, k=2, **options):
        Counted.calls, code = 0, torch.arange(12) if code is None else code
        found = label_neighbours(target, code, k, cache=tmp_path / "kept", **options)
        plain = label_neighbours(Table(target.table), code, k, ids=options.get("ids"))
        assert torch.equal(found[0], plain[0])
        assert torch.equal(found[1], plain[1])
        return Counted.calls

    assert calls(Counted(table)) == 1
    assert calls(Counted(table.clone())) == 0
    assert calls(Counted(table), ids=torch.arange(12)) == 0
    changes = [
        {"target": Counted(table + 1)},
        {"target": Counted(table, gives="order")},
        {"target": Counted(table), "k": 3},
        {"target": Counted(table), "code": torch.arange(12).flip(0)},
        {"target": Counted(table), "ids": torch.arange(12) // 2},
        {"target": Counted(table), "method": "plain"},
    ]
    assert [calls(**change) for change in changes] == [1] * 6
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 7
    assert all(file.suffix == ".safetensors" for file in files)
    for file in files:
        file.write_bytes(file.read_bytes()[:50])  # a file that was cut off is computed again
    assert calls(Counted(table)) == 1
    assert calls(Counted(table)) == 0


def test_wrapped_targets_differ_by_what_they_wrap(tmp_path):
    code = torch.rand(30, 2).double()
    np.save(tmp_path / "table.npy", np.zeros((30, 30)))
    targets = [
        *(create_target(f"scaled('{name}', factor=2.0)") for name in ("euclidean", "manhattan")),
        create_target(f"precomputed('{tmp_path / 'table.npy'}')"),
        create_target("scaled('euclidean', factor=3.0)"),
    ]
    assert len({fingerprint(target, code, 1) for target in targets}) == 4
    assert fingerprint(targets[0], code, 1) == fingerprint(
        create_target("scaled('euclidean', factor=2.0)"), code.clone(), 1
    )


def test_what_cannot_be_told_apart_is_not_kept(tmp_path):
    target = Table(torch.rand(4, 4), gives=lambda: "magnitude")
    with pytest.raises(ValueError, match="cannot tell from its content"):
        label_neighbours(target, torch.arange(4), 1, cache=tmp_path)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(neighbours.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        label_neighbours(create_target("euclidean"), torch.rand(4, 1), 1, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
