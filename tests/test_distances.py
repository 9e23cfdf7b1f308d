"""All distances of a run in a file: the same as the target's, named by content, continued after an interruption."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import beyond_binary as bb
from beyond_binary import distances as module
from beyond_binary.distances import KnownDistances, label_distances
from beyond_binary.fingerprint import fingerprint
from beyond_binary.targets import LabelError
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.tables import PairScores, Precomputed
from beyond_binary.targets.words import WordVectors

VECTORS = WordVectors(
    torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), {w: i for i, w in enumerate("abcdef")}
)


@dataclass
class Table:
    """Given distances, which counts the tiles that it is asked for and stops after some."""

    table: Tensor
    gives: str = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        return torch.as_tensor(labels)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        if len(code_q) > 1:  # else it is the look at a tile's other half
            if len(ASKED) == STOP[0]:
                raise KeyboardInterrupt
            ASKED.append((int(code_q[0]), int(code_k[0])))
        return self.table[code_q[:, None], code_k]


ASKED: list[tuple[int, int]] = []
STOP = [-1]


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()
    STOP[0] = -1


def write(target: Any, code: Any, folder: Path, **options: Any) -> Path:
    return label_distances(target, torch.as_tensor(code), folder, progress=False, **options)


def interrupt(after: int, target: Any, code: Any, folder: Path) -> None:
    """Stop writing after some tiles of side 8."""
    STOP[0] = after
    with pytest.raises(KeyboardInterrupt):
        write(target, code, folder, side=8)
    STOP[0] = -1


def table_of(n: int) -> Table:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(n))
    return Table(torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist"))


@pytest.mark.parametrize(
    ("spec", "shape"), [("euclidean", (23, 2)), ("classes", (23,)), ("pose", (23, 4, 2)), ("captions", ())]
)
@pytest.mark.parametrize("side", [5, 23, 100])
def test_the_file_holds_what_the_target_gives(spec: str, shape: tuple[int, ...], side: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = Captions(VECTORS) if spec == "captions" else bb.create_target(spec)
    labels: Any = rng.integers(0, 4, shape) if spec == "classes" else rng.normal(size=shape)
    if spec == "captions":
        labels = [[" ".join(rng.choice(list("abcdef"), 4)) for _ in range(2)] for _ in range(23)]
    if spec == "pose":
        labels[3] = np.nan
    code = target.encode(labels)
    path = write(target, code, tmp_path / "new", side=side)
    assert path.parent == tmp_path / "new"
    assert os.listdir(path.parent) == [path.name]
    written = np.load(path)
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, written.T)
    expected = target.distance(code, code).float()
    if spec == "pose":
        assert np.isnan(written[3]).sum() == 22
        expected[3, 3] = 0
    np.testing.assert_allclose(written, expected, rtol=1e-6, atol=1e-6)
    read = bb.create_target(f"precomputed({str(path)!r})")
    items = read.encode(torch.arange(23))
    np.testing.assert_array_equal(read.distance(items, items), written)


def test_each_half_is_computed_once_and_the_file_only_once(tmp_path: Path) -> None:
    target = table_of(20)
    path = write(target, torch.arange(20), tmp_path, side=8)
    assert ASKED == [(0, 0), (0, 8), (0, 16), (8, 8), (8, 16), (16, 16)]
    assert write(table_of(20), torch.arange(20), tmp_path, side=7) == path
    assert len(ASKED) == 6


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    target, code = table_of(20), torch.arange(20)
    for stop in (2, 4):
        interrupt(stop, target, code, tmp_path)
        assert not list(tmp_path.glob("*.npy"))
    path = write(target, code, tmp_path, side=8)
    assert sorted(ASKED) == [(0, 0), (0, 8), (0, 16), (8, 8), (8, 16), (16, 16)]
    np.testing.assert_array_equal(np.load(path), target.table)
    assert os.listdir(tmp_path) == [path.name]


def test_what_another_side_left_is_removed(tmp_path: Path) -> None:
    target, code = table_of(20), torch.arange(20)
    interrupt(2, target, code, tmp_path)
    path = write(target, code, tmp_path, side=5)
    assert os.listdir(tmp_path) == [path.name]


def test_another_distance_back_is_refused_beyond_the_diagonal(tmp_path: Path) -> None:
    target = table_of(20)
    target.table = target.table + 0.5 * ((torch.arange(20)[:, None] - torch.arange(20)) > 9)
    with pytest.raises(ValueError, match="the same both ways"):
        write(target, torch.arange(20), tmp_path, side=8)


def test_what_was_cut_off_or_lost_is_computed_again(tmp_path: Path) -> None:
    target, code = table_of(20), torch.arange(20)
    interrupt(3, target, code, tmp_path)
    (journal,) = tmp_path.glob("*.done")
    journal.write_text(journal.read_text()[:-2])  # the last line was not written in full
    path = write(target, code, tmp_path, side=8)
    assert len(ASKED) == 7
    path.unlink()
    ASKED.clear()
    interrupt(3, target, code, tmp_path)
    next(tmp_path.glob("*.part")).unlink()
    write(target, code, tmp_path, side=8)
    assert len(ASKED) == 3 + 6
    np.testing.assert_array_equal(np.load(path), target.table)


def test_names_follow_from_all_that_distances_depend_on() -> None:
    def name(target: Any, labels: Any) -> str:
        return fingerprint(target, target.encode(labels))

    texts = [["a b", "c"], ["d", "e f"]]
    other = WordVectors(VECTORS.vectors + 1, VECTORS.index)
    used = Captions(VECTORS)
    used.encode([["f f f"]])
    assert name(used, texts) == name(Captions(VECTORS), texts)
    names = [
        name(Captions(VECTORS), texts), name(Captions(other), texts), name(Captions(VECTORS, relaxed=False), texts),
        name(Captions(VECTORS, reduce="mean"), texts), name(Captions(VECTORS), texts[::-1]),
        name(bb.create_target("euclidean"), [1.0, 2.0]), name(bb.create_target("manhattan"), [1.0, 2.0]),
        name(bb.create_target("euclidean"), [[1.0, 2.0]]), name(bb.create_target("circular"), [1.0, 2.0]),
        name(bb.create_target("circular(period=24)"), [1.0, 2.0]),
        name(bb.create_target("within('circular(period=24)', radius=1.0)"), [1.0, 2.0]),
        name(Precomputed([[0, 1.0], [1.0, 0]]), [0, 1]), name(Precomputed([[0, 2.0], [2.0, 0]]), [0, 1]),
        name(PairScores([[0, 1, 1.0]]), [0, 1]), name(PairScores([[0, 1, 2.0]]), [0, 1]),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="cannot tell from its content"):
        fingerprint(Table(iter([])), torch.arange(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, np.inf])
@pytest.mark.parametrize("at", [(5, 2), (3, 3)])
def test_what_is_no_distance_is_refused(value: float, at: tuple[int, int], tmp_path: Path) -> None:
    target = table_of(6)
    target.table[at] = target.table[at[::-1]] = value
    with pytest.raises(ValueError, match=f"of items ({at[0]} and {at[1]}|{at[1]} and {at[0]}) are not"):
        write(target, torch.arange(6), tmp_path, side=4)
    with pytest.raises(ValueError, match="looks at which others are there"):
        write(
            bb.create_target("scaled(\"nearest('euclidean', k=2)\", factor=2.0)"),
            torch.tensor([[0.0], [1.0], [3.0], [7.0]]),
            tmp_path,
        )


@pytest.mark.slow
def test_processes_write_the_same(tmp_path: Path) -> None:
    target = bb.create_target("euclidean")
    code = target.encode(np.random.default_rng(0).normal(size=(40, 2)))
    one, two = (write(target, code, tmp_path / str(w), side=10, workers=w) for w in (1, 2))
    assert one.read_bytes() == two.read_bytes()


def test_a_file_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"no room for the 0\.0 GB of distances between 5 items"):
        write(table_of(5), torch.arange(5), tmp_path)


def hold(path: Path, ready: Any, release: Any) -> None:
    with module._journal(path):
        ready.set()
        release.wait(60)


def test_two_processes_take_turns(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    context = multiprocessing.get_context("fork")
    ready, release, entered = context.Event(), context.Event(), context.Event()
    never = context.Event()
    never.set()
    first = context.Process(target=hold, args=(tmp_path / "x.done", ready, release))
    first.start()
    assert ready.wait(60)
    second = context.Process(target=hold, args=(tmp_path / "x.done", entered, never))
    second.start()
    assert not entered.wait(0.3)
    release.set()
    assert entered.wait(60)
    for process in (first, second):
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        ("euclidean", np.random.default_rng(0).normal(size=(9, 3))),
        ("layout", np.random.default_rng(0).integers(0, 3, size=(9, 4, 4))),
        (Captions(VECTORS), np.array([["a b", "c"], ["d", ""], ["e f a", "b"], ["a b", "c"]])),
    ],
)
def test_a_target_with_known_distances_stands_in_for_its_own(spec: Any, labels: Any, tmp_path: Path) -> None:
    target = bb.create_target(spec)
    known = KnownDistances(target, labels, tmp_path, progress=False)
    some, others = labels[::2], labels[::-1]
    expected = target.distance(target.encode(some), target.encode(others)).float()
    assert torch.equal(known.distance(known.encode(some), known.encode(others)), expected)
    assert bb.create_target(known) is known
    assert known.gives == "magnitude"


def test_layouts_whose_distances_are_known_have_their_mean_iou(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(9, 4)), rng.integers(0, 3, size=(9, 4, 4))
    known = KnownDistances(bb.create_target("layout"), labels, tmp_path, progress=False)
    expected = bb.evaluate(z, labels, target="layout", ks=3)
    assert "mean_iou_at_3" in expected
    assert bb.evaluate(z, labels, target=known, ks=3) == pytest.approx(expected, rel=1e-5)
    other = KnownDistances(bb.create_target("euclidean"), z, tmp_path, progress=False)
    with pytest.raises(ValueError, match="needs the target 'layout', not KnownDistances"):
        bb.evaluate(z, z, target=other, metrics=["mean_iou_at_3"])


def test_a_label_whose_distances_are_not_known_is_named(tmp_path: Path) -> None:
    known = KnownDistances(bb.create_target("euclidean"), [[0.0], [1.0]], tmp_path, progress=False)
    with pytest.raises(
        LabelError, match="label of item 1 of 2 is none of the 2 whose distances were computed"
    ) as found:
        known.encode([[1.0], [0.5]])
    assert found.value.row == 1
    with pytest.raises(ValueError, match="says only which labels are the same"):
        KnownDistances(bb.create_target("classes"), [0, 1], tmp_path)
