from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from beyond_binary.neighbours import label_neighbours
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
