"""Targets of numbered items: a table of annotated pairs, all distances between items, or a list of neighbours for each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from . import TARGETS, Gives
from .names import item_names, number_of, read_names, stand_in
from .sets import as_integers


@TARGETS.register("pair_scores")
class PairScores:
    """Distances of annotated pairs of items; every other pair is unknown (NaN), and an item is 0 from itself.

    Labels: the item's number, integers [n], or its name, text [n] or [n 1], where the table has names. A pair counts both
    ways. `scores` are distances, unless `highest` says that they are similarities (STS: 5), which become
    `highest - score`.

    Args:
        table: array [m 3] with two numbers and a score a row, or an `.npy` file, or a `.csv` or `.tsv` file (with or
            without a header) of such rows. Items of such a file may be names, for example those of the images.
        highest: the score of two items that are the same; None: scores are distances.
    """

    gives: ClassVar[Gives] = "magnitude"

    def __init__(self, table: Any, highest: float | None = None) -> None:
        self._number: dict[str, int] | None = None
        if isinstance(table, str | Path):
            rows, self._number = _rows(Path(table))
        else:
            rows = np.asarray(table, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
            raise ValueError(f"pair_scores needs rows of two item numbers and a score [m 3], got {list(rows.shape)}")
        items, scores = rows[:, :2].astype(np.int64), rows[:, 2]
        distance = scores if highest is None else highest - scores
        bad = ~np.isfinite(rows).all(1) | (items != rows[:, :2]).any(1) | (items < 0).any(1) | (distance < 0)
        if bad.any():
            raise ValueError(
                f"pair_scores: row {np.flatnonzero(bad)[0]} is {rows[bad][0].tolist()}; expected two item numbers of at "
                f"least 0 and a distance of at least 0{'' if highest is None else f' (score of at most {highest})'}"
            )
        if (odd := (items[:, 0] == items[:, 1]) & (distance != 0)).any():
            raise ValueError(
                f"pair_scores: row {np.flatnonzero(odd)[0]} is {rows[odd][0].tolist()}, but an item is at distance 0 from "
                "itself; leave such rows out"
            )
        self.highest = highest
        self._width = int(items.max()) + 1
        pair = np.concatenate([items @ [self._width, 1], items @ [1, self._width]])  # both ways
        self._pairs, first, which = np.unique(pair, return_index=True, return_inverse=True)
        self._distances = np.concatenate([distance, distance])[first]
        if (clash := self._distances[which] != np.concatenate([distance, distance])).any():
            a, b = sorted(divmod(int(pair[clash][0]), self._width))
            raise ValueError(f"pair_scores: items {a} and {b} have more than one score")

    def __repr__(self) -> str:
        return f"PairScores({len(self._pairs)} pairs)"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Item numbers [n] int64; a name that is not in the table has a number of its own."""
        if self._number is not None:
            names = item_names(labels, "pair_scores")
            return torch.tensor([self._number.get(name, stand_in(name)) for name in names], dtype=torch.int64)
        return as_integers(labels, "pair_scores", "[n] (the items' numbers)", 1)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] float64, NaN for pairs that are not in the table."""
        q, k = code_q.cpu().numpy(), code_k.cpu().numpy()
        q_known, k_known = ((code >= 0) & (code < self._width) for code in (q, k))
        pair = np.where(q_known, q, 0)[:, None] * self._width + np.where(k_known, k, 0)
        pair[~(q_known[:, None] & k_known)] = -1
        place = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        y = np.where(self._pairs[place] == pair, self._distances[place], np.nan)
        y[q[:, None] == k[None, :]] = 0
        return torch.from_numpy(y).to(code_q.device)


def _rows(path: Path) -> tuple[np.ndarray[Any, Any], dict[str, int] | None]:
    """Numbers [m c] of an .npy, .csv or .tsv file; and the number of each name, where its items are names."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64), None
    if path.suffix not in (".csv", ".tsv"):
        raise ValueError(f"expected an .npy, .csv or .tsv file, got {path}")
    separator = "," if path.suffix == ".csv" else "\t"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator) if row]
    if rows and not _are_numbers(rows[0][2:]):
        rows = rows[1:]  # a header
    for row in rows:
        if len(row) != 3 or not _are_numbers(row[2:]):
            raise ValueError(f"pair_scores: expected two items and a score in each row of {path}, got {row}")
    if all(_are_numbers(row[:2]) for row in rows):
        return np.array(rows, dtype=np.float64).reshape(-1, 3), None
    number = {name: place for place, name in enumerate(dict.fromkeys(name for row in rows for name in row[:2]))}
    return np.array([[number[a], number[b], float(score)] for a, b, score in rows]), number


def _are_numbers(cells: Sequence[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


@TARGETS.register("precomputed")
class Precomputed:
    """Distances that were computed before, looked up by the items' numbers.

    Labels: the item's number, integers [n], a row of the table; or with `names` its name, text [n] or [n 1]. NaN in the
    table is an unknown pair.

    Args:
        table: distances [items items] as an array, or an `.npy` file, which is mapped and not loaded.
        check: read the whole table once, to see that it holds distances: nothing negative or infinite, 0 from each
            item to itself, the same both ways.
        names: the items' names in the order of the table, or a text file with one name a line. None: items have numbers.
    """

    gives: ClassVar[Gives] = "magnitude"

    def __init__(self, table: Any, check: bool = True, names: Sequence[str] | str | None = None) -> None:
        mapped = isinstance(table, str | Path)
        self._table = np.load(table, mmap_mode="r", allow_pickle=False) if mapped else np.asarray(table)
        if self._table.ndim != 2 or len(self._table) != self._table.shape[1]:
            raise ValueError(f"precomputed needs a square table [items items], got {list(self._table.shape)}")
        if self._table.dtype.kind != "f":
            raise ValueError(f"precomputed needs floating distances, got {self._table.dtype}")
        self._number = None if names is None else read_names(names)
        if self._number is not None and len(self._number) != len(self._table):
            raise ValueError(f"precomputed: {len(self._number)} names for a table of {len(self._table)} items")
        if check:
            self._check()

    def __repr__(self) -> str:
        return f"Precomputed({len(self._table)} items)"

    def _check(self, side: int = 1024) -> None:
        n = len(self._table)
        for i in range(0, n, side):
            for j in range(0, i + 1, side):
                here, there = self._table[i : i + side, j : j + side], self._table[j : j + side, i : i + side].T
                same = (here == there) | (np.isnan(here) & np.isnan(there))
                own = np.arange(i, i + here.shape[0])[:, None] == np.arange(j, j + here.shape[1])
                bad = (here < 0) | np.isinf(here) | ~same | (own & (here != 0))
                if bad.any():
                    a, b = (int(p[0]) for p in np.nonzero(bad))
                    raise ValueError(
                        f"precomputed: expected finite distances of at least 0, equal both ways and 0 from an item to "
                        f"itself, but [{i + a}, {j + b}] is {here[a, b]} and [{j + b}, {i + a}] is {there[a, b]}"
                    )

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Item numbers [n] int64."""
        if self._number is not None:
            rows = enumerate(item_names(labels, "precomputed"))
            return torch.tensor(
                [number_of(name, self._number, row, "precomputed") for row, name in rows], dtype=torch.int64
            )
        code = as_integers(labels, "precomputed", "[n] (the items' numbers)", 1)
        bad = (code < 0) | (code >= len(self._table))
        if not torch.compiler.is_compiling() and bad.any():
            raise ValueError(f"precomputed: item {int(code[bad][0])} is not one of the table's {len(self._table)}")
        return code

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in the table's precision."""
        q, k = code_q.cpu().numpy(), code_k.cpu().numpy()
        order = np.argsort(q, kind="stable")  # rows of a mapped file in the order of the file
        y = np.empty((len(q), len(k)), self._table.dtype)
        for row in order:
            y[row] = self._table[q[row]][k]
        return torch.from_numpy(y).to(code_q.device)


class Listed:
    """Same if the key is on the query's list of neighbours, or is the query's own item; else different.

    With the nearest items of a whole training set on the lists this is M(Binary) (Kim et al., CVPR 2019), which
    `nearest` is among the keys at hand alone. Not symmetric. A code holds its list, so that keys may come from a memory
    or from other processes.

    Labels: the item's id, integers [n].

    Args:
        ids: of all items, different integers of at least 0 [n].
        table: rows of their neighbours among these items, -1 for none [n k], as `label_neighbours` gives them.

    Raises:
        ValueError: ids or a table of another kind.
    """

    gives: ClassVar[Gives] = "same"

    def __init__(self, ids: Any, table: Any) -> None:
        ids, table = torch.as_tensor(ids), torch.as_tensor(table)
        if ids.ndim != 1 or ids.is_floating_point() or len(ids.unique()) < len(ids) or bool((ids < 0).any()):
            raise ValueError("Listed needs different ids of at least 0 [n], integers")
        if table.ndim != 2 or len(table) != len(ids) or table.is_floating_point():
            raise ValueError(
                f"Listed needs neighbours [{len(ids)} k], integers, got {table.dtype} {list(table.shape)}; "
                "make them by label_neighbours(target, code, k)[0]"
            )
        if table.numel() and not -1 <= int(table.min()) <= int(table.max()) < len(ids):
            span = f"{int(table.min())} to {int(table.max())}"
            raise ValueError(f"Listed: neighbours are rows of the {len(ids)} items, or -1, got {span}")
        self._ids, order = ids.long().sort()
        self._codes = torch.cat([ids[:, None], torch.where(table < 0, -1, ids[table])], 1).long()[order]

    def __repr__(self) -> str:
        return f"Listed({len(self._ids)} items, {self._codes.shape[1] - 1} neighbours)"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Each item's id, then those of its neighbours, -1 for none [n 1+k] int64."""
        wanted = as_integers(labels, "Listed", "[n] (the items' ids)", 1).cpu()
        place = torch.searchsorted(self._ids, wanted).clamp_max(len(self._ids) - 1)
        unknown = self._ids[place] != wanted
        if unknown.any():
            raise ValueError(f"Listed: item {int(wanted[unknown][0])} is none of the {len(self._ids)} that have lists")
        return self._codes[place]

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Whether the key is another item that is not on the query's list [q k] bool."""
        different = torch.ones(len(code_q), len(code_k), dtype=torch.bool, device=code_q.device)
        for listed in code_q.unbind(1):  # a column at a time: no [q k lists]
            different &= listed[:, None] != code_k[None, :, 0]
        return different
