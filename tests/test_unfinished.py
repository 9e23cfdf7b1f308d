"""Searches by parts: what is found is the same whole or in pieces, and an interrupted one goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from beyond_binary import neighbours, unfinished
from beyond_binary.neighbours import label_neighbours
from beyond_binary.targets import captions, transport
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.words import WordVectors
from beyond_binary.unfinished import Unfinished

WORDS = ["dog", "cat", "runs", "sits", "on", "the", "grass", "red", "ball", "child"]
VECTORS = WordVectors(
    torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), {w: i for i, w in enumerate(WORDS)}
)


def some_texts(n: int) -> list[list[str]]:
    rng = np.random.default_rng(n)
    return [[" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(2)] for _ in range(n)]


@dataclass(frozen=True)
class Table:
    """A target whose code is an item's number and whose distances are given; they are slow enough for blocks."""

    table: Tensor
    gives: str = "magnitude"
    slow: bool = True

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        return torch.as_tensor(labels)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.table[code_q[:, None], code_k[None, :]]


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 40), st.integers(1, 12), st.integers(0, 99))
def test_blocks_of_pairs_find_what_whole_rows_find(n: int, k: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table = torch.randint(6, (n, n), generator=draw).double()  # many ties
    table[torch.rand(n, n, generator=draw) < 0.3] = torch.nan
    table[torch.rand(n, n, generator=draw) < 0.1] = torch.inf
    table = table.triu(1) + table.triu(1).T
    target, ids = Table(table), torch.randint(n, (n,), generator=draw)
    k, code = min(k, n - 1), torch.arange(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "SIDE", 2)
        found = neighbours._by_blocks(target, code, k, ids, False, None)
    expected = label_neighbours(target, code, k, ids=ids, method="plain")
    assert found[0].equal(expected[0])
    assert torch.equal(found[1].nan_to_num(-1), expected[1].nan_to_num(-1))


def test_a_block_that_comes_twice_changes_nothing() -> None:
    a = torch.tensor([[4, 2, -1]]), torch.tensor([[0.5, 1.0, torch.nan]], dtype=torch.float64)
    b = torch.tensor([[7, 4, 2]]), torch.tensor([[0.5, 0.5, 1.0]], dtype=torch.float64)
    indices, distances = neighbours._merged(a, b, 3)
    assert indices.tolist() == [[4, 7, 2]]
    assert distances.tolist() == [[0.5, 0.5, 1.0]]
    for again in (a, b, (indices, distances)):
        assert neighbours._merged((indices, distances), again, 3)[0].equal(indices)


class _Stopped(KeyboardInterrupt):
    """Someone pressed Ctrl-C."""


def stop_after(patch: pytest.MonkeyPatch, where: Any, name: str, calls: int) -> list[int]:
    """Let a function work so many times only; the list counts."""
    whole, count = getattr(where, name), [0]

    def work(*arguments: Any) -> Any:
        if count[0] == calls:
            raise _Stopped
        count[0] += 1
        return whole(*arguments)

    patch.setattr(where, name, work)
    return count


@pytest.mark.parametrize(
    ("relaxed", "where", "name", "steps"),
    [(False, transport, "nearest", 24), (True, neighbours, "_of_block", 78)],  # 24 items; 12 blocks a side
)
def test_an_interrupted_search_for_captions_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relaxed: bool, where: Any, name: str, steps: int
) -> None:
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)  # so that this process does it all
    monkeypatch.setattr(captions, "TILE", 1)  # an item a part
    monkeypatch.setattr(neighbours, "SIDE", 2)
    target = Captions(VECTORS, relaxed=relaxed)
    code = target.encode(some_texts(24))
    whole = label_neighbours(target, code, 4)
    with monkeypatch.context() as patch:
        stop_after(patch, where, name, steps // 3)
        with pytest.raises(_Stopped):
            label_neighbours(target, code, 4, cache=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".unfinished"]
    with monkeypatch.context() as patch:
        count = stop_after(patch, where, name, steps)
        found = label_neighbours(target, code, 4, cache=tmp_path)
    assert count[0] == steps - steps // 3
    assert found[0].equal(whole[0])
    assert found[1].equal(whole[1])
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    with monkeypatch.context() as patch:
        stop_after(patch, where, name, 0)
        assert label_neighbours(target, code, 4, cache=tmp_path)[0].equal(whole[0])


def test_what_is_done_is_saved_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "part.unfinished"
    first = Unfinished(3, 2, 2, file)
    assert first.left() == [0, 1]
    first.indices[0] = torch.tensor([1, 2])
    first.finish(1)
    assert not file.exists()  # a minute is not over
    monkeypatch.setattr(unfinished, "EVERY", 0.0)
    first.finish(1)
    again = Unfinished(3, 2, 2, file)  # as after a kill
    assert again.left() == [0]
    assert again.indices.tolist() == [[1, 2], [-1, -1], [-1, -1]]
    assert Unfinished(3, 1, 2, file).left() == [0, 1]  # another search's
    file.write_bytes(file.read_bytes()[:40])
    assert Unfinished(3, 2, 2, file).left() == [0, 1]
    Unfinished(3, 2, 2).finish(0)  # kept nowhere
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
