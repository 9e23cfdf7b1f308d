"""What the log-ratio paper's batches ask of an objective: some items as anchors, neighbours of the whole set as positives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FIRST, build, facts_of, inputs, takes_anchors, value_and_grads
from oracles import Case

import beyond_binary as bb
from beyond_binary.neighbours import label_neighbours
from beyond_binary.targets import create_target
from beyond_binary.targets.algebra import Within
from beyond_binary.targets.tables import Listed, Precomputed


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("case", [c for c in FIRST if takes_anchors(c) and not facts_of(c).penalty], ids=str)
def test_anchors_alone_are_rows_against_the_whole_batch(case: Case, block: int | None) -> None:
    z, labels, proxies = inputs(case)
    got = value_and_grads(build(case, anchors=3, block=block), z, labels, proxies)
    ids = torch.arange(len(z))
    loss = build(case, block=None)(z[:3], labels[:3], z, labels, ids=ids[:3], ref_ids=ids)
    torch.testing.assert_close(got, [loss.detach(), *torch.autograd.grad(loss, [z])])
    assert got[1][3:].abs().max() > 0  # as keys, the others learn
    every = value_and_grads(build(case, anchors=99, block=block), z, labels, proxies)
    torch.testing.assert_close(every, value_and_grads(build(case, block=block), z, labels, proxies))


@pytest.mark.parametrize("case", [case for case in FIRST if not takes_anchors(case)], ids=str)
def test_losses_that_are_no_mean_over_items_take_no_anchors(case: Case) -> None:
    with pytest.raises(ValueError, match="takes no anchors"):
        build(case, anchors=1)


def test_no_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bb.create_objective("triplet", anchors=0)


@pytest.mark.parametrize("memory", [0, 20])
def test_listed_neighbours_of_a_whole_set_are_the_positives_of_every_batch(memory: int) -> None:
    draw = torch.Generator().manual_seed(7)
    poses, z = torch.randn(40, 3, generator=draw), torch.randn(40, 8, generator=draw, dtype=torch.float64)
    numbers = torch.randperm(400, generator=draw)[:40]
    near = label_neighbours(create_target("euclidean"), poses, 6)[0]
    near[5, 3:] = -1
    table = torch.ones(40, 40, dtype=torch.double).fill_diagonal_(0)
    for row, found in enumerate(near.tolist()):
        table[row, [i for i in found if i >= 0]] = 0
    plain = Within(Precomputed(table.numpy(), check=False), radius=0.5)
    listed = bb.create_objective("triplet", target=Listed(numbers, near), memory=memory, block=3)
    dense = bb.create_objective("triplet", target=plain, memory=memory, block=None)
    for part in torch.randperm(40, generator=draw).split(10):
        got, expected = listed(z[part], numbers[part], ids=numbers[part]), dense(z[part], part, ids=numbers[part])
        torch.testing.assert_close(got, expected)
        assert got > 0


def test_an_item_is_the_same_as_itself_and_lists_need_not_be_mutual() -> None:
    target = Listed([7, 3, 9], [[1, -1], [2, -1], [-1, -1]])
    code = target.encode(torch.tensor([3, 7, 9, 3]))
    assert code.tolist() == [[3, 9, -1], [7, 3, -1], [9, -1, -1], [3, 9, -1]]
    assert target.distance(code, code).int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        ([1, 1], [[0], [0]], "different ids"),
        ([0, -1], [[0], [0]], "of at least 0"),
        ([0, 1], [[0]], r"needs neighbours \[2 k\]"),
        ([0, 1], [[0.0], [1.0]], "integers, got torch.float32"),
        ([0, 1], [[2], [0]], "rows of the 2 items, or -1, got 0 to 2"),
    ],
)
def test_lists_that_do_not_fit_are_refused(ids: list[int], table: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Listed(ids, table)


def test_an_item_without_a_list_is_an_error() -> None:
    with pytest.raises(ValueError, match="item 5 is none of the 2 that have lists"):
        Listed([4, 6], [[1], [0]]).encode([4, 5])
