"""How label-space neighbours are found without comparing everything with everything by a target's own distance.

A searcher names candidates; `rank` then orders them by the target's distance, so that digits and ties are those of the
plain search. `within_reach` names all that can be neighbours, the others most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .faiss_index import faiss_index
from .targets import Target
from .targets.algebra import Scaled
from .targets.distributions import Estimated, Gaussian, Histogram
from .targets.pose import Pose
from .targets.vectors import Cosine, Euclidean, Manhattan

PER_CELL, PROBED = 128, 8  # items in a cell, and the share of all items that is looked at around it: 1 / 8
TILE = (128, 1024)
CHUNK = 1 << 12
LANDMARKS = 64
TINY = 1e-18  # of the largest coordinate; below it float32 rounds absolutely


@dataclass(frozen=True)
class Lists:
    """Candidates of `rows`, one after the other: those of rows[i] are `items[start[i] : start[i + 1]]`."""

    rows: np.ndarray
    start: np.ndarray
    items: np.ndarray

    @staticmethod
    def of(table: np.ndarray) -> Lists:
        """From a table [n c] of every item's candidates, -1 for none."""
        known = table >= 0
        start = np.concatenate([[0], known.sum(1).cumsum()])
        return Lists(np.arange(len(table)), start, table[known].astype(np.int64))

    @staticmethod
    def nearest(
        rows: np.ndarray,
        items: np.ndarray,
        sums: np.ndarray,
        ids: np.ndarray,
        place: np.ndarray,
        k: int,
        loose: float,
    ) -> Lists:
        """From pairs of all items within each row's reach: those not beyond `loose` times the k-th sum of their row.

        Rows are taken in the order of `place`, pairs with equal ids left out.
        """
        other = ids[rows] != ids[items]
        rows, items, sums = rows[other], items[other], sums[other]
        order = np.lexsort((sums, place[rows]))
        rows, items, sums = rows[order], items[order], sums[order]
        start = np.flatnonzero(np.diff(rows, prepend=-1))
        count = np.diff(start, append=len(rows))
        kept = sums <= np.repeat(loose * sums[start + k - 1], count)
        return Lists(
            rows[start], np.concatenate([[0], np.add.reduceat(kept, start, dtype=np.int64).cumsum()]), items[kept]
        )

    def in_order(self, order: np.ndarray) -> Lists:
        """The lists of all items in another order of the rows."""
        length = np.diff(self.start)[order]
        start = np.concatenate([[0], length.cumsum()])
        place = np.arange(start[-1]) + np.repeat(self.start[order] - start[:-1], length)
        return Lists(self.rows[order], start, self.items[place])

    def group(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Some rows from the `first` on, and everything that is a candidate of one of them, by position."""
        last = min(first + size, len(self.rows))
        items = np.unique(self.items[self.start[first] : self.start[last]])
        return torch.from_numpy(self.rows[first:last]), torch.from_numpy(items)


@dataclass(frozen=True)
class Around:
    """Candidates that earlier neighbours name: each row's neighbours, and the neighbours of these.

    Attributes:
        rows: all items, near ones beside each other, so that those of a group share their candidates.
        table: neighbours that are known [n k], -1 for none.
    """

    rows: np.ndarray
    table: np.ndarray

    def group(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """Some rows from the `first` on, and everything that is a candidate of one of them, by position."""
        rows = self.rows[first : first + size]
        near = np.unique(self.table[rows])
        items = np.unique(np.concatenate([rows, near, self.table[near[near >= 0]].ravel()]))
        return torch.from_numpy(rows), torch.from_numpy(items[items >= 0])


def slack(terms: int) -> float:
    """Relative error that float32 sums of so many terms, and whatever they are put through, stay below."""
    return 1e-5 + 4e-7 * terms


def as_joints(target: Target, code: Tensor) -> Tensor | None:
    """Points [n j m] such that the target's distance grows with the sum over j of Euclidean distances, if there are."""
    if code.dtype not in (torch.float32, torch.float64):
        return None
    kind = type(target)
    if kind in (Euclidean, Cosine) or (isinstance(target, Gaussian) and target.covariance == "diagonal"):
        return code[:, None]
    if isinstance(target, Estimated):
        return (code.sqrt() if target.kind == "hellinger" else code)[:, None]
    if kind is Manhattan:
        return code[:, :, None]
    if isinstance(target, Histogram) and not target.circular:
        return code[:, :-1, None]
    if isinstance(target, Pose) and target.mirror is None and bool(code[..., -1].all()):
        return code[..., :-1]
    return as_joints(target.target, code) if isinstance(target, Scaled) else None


def upper_bounds(joints: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sums of joint distances that each item's k-th neighbour does not exceed, from the cells around it.

    Returns:
        bounds [n] float64, -1 where too few items are around; and an order of all items in which near ones are close.
    """
    n, points = len(joints), (joints - joints.mean(0)).flatten(1).float()
    members, around = cells(points, max(n // PROBED, 8 * k))

    def bounds_of(cell: int) -> Tensor:
        """Of the members of a cell."""
        others, found = around(cell), torch.full((len(members[cell]),), -1.0, dtype=torch.double)
        half, keys = points[others].square().sum(1) / 2, points[others].T.contiguous()
        for rows, bound in zip(members[cell].split(PER_CELL), found.split(PER_CELL), strict=True):
            near = torch.addmm(half, points[rows], keys, alpha=-1).topk(min(2 * k + 1, len(others)), largest=False)
            items = others[near.indices]
            sums = _sums((joints[rows, None] - joints[items]).double())
            sums.masked_fill_(ids[rows, None] == ids[items], torch.inf)
            if sums.shape[1] >= k:
                bound.copy_(sums.kthvalue(k).values)
        return found

    order = torch.cat(members)
    bounds = torch.empty(n, dtype=torch.double)
    bounds[order] = torch.cat([*side_by_side(bounds_of, range(len(members)))])
    return bounds.masked_fill(~bounds.isfinite(), -1), order


def _sums(gap: Tensor) -> Tensor:
    """Summed norms of [... j m]. `gap` is overwritten."""
    squared = gap.square_()
    short = gap.shape[-1] <= 3  # reductions over few neighbouring numbers are slow
    return (sum(squared.unbind(-1), torch.zeros(())) if short else squared.sum(-1)).sqrt_().sum(-1)


def cells(points: Tensor, least: int) -> tuple[list[Tensor], Callable[[int], Tensor]]:
    """Members of each cell of a k-means clustering of `points` [n d] (each item is a member once), and a function that
    gives at least `least` items around a cell, the nearest cells' (itself included)."""
    n = len(points)
    count = max(1, n // PER_CELL)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    centres, sample = points[chosen[:count]], points[chosen[: 32 * count]]
    for _ in range(4):
        cell = _closest(sample, centres)
        size = cell.bincount(minlength=count)[:, None]
        centres = torch.where(size > 0, torch.zeros_like(centres).index_add_(0, cell, sample) / size, centres)
    cell = _closest(points, centres)
    size = cell.bincount(minlength=count)
    members = [part for part in cell.argsort(stable=True).split(size.tolist()) if len(part)]
    centres, size = centres[size > 0], size[size > 0]

    def around(own: int) -> Tensor:
        order = (centres - centres[own]).square().sum(1).argsort()
        enough = int((size[order].cumsum(0) < least).sum()) + 1
        return torch.cat([members[i] for i in order[:enough].tolist()])

    return members, around


def _closest(points: Tensor, centres: Tensor) -> Tensor:
    half = centres.square().sum(1) / 2
    return torch.cat([torch.addmm(half, part, centres.T, alpha=-1).argmin(1) for part in points.split(4096)])


def within_reach(joints: Tensor, reach: Tensor, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """All ordered pairs whose summed joint distance is at most the first item's `reach` [n], and a little more.

    A tile of pairs is first bounded from below in float32: the sum over groups of joints of the group's norm never
    exceeds the sum of the joints' norms, and products give it quickly. How coarse the groups are is tried out. Each
    pair is looked at once: items are sorted by their reach, so that the later one's is the larger.

    Returns:
        rows, items and float64 sums of the pairs; None if they are more than `most`.
    """
    order = reach.argsort(stable=True)
    points = joints[order].double()
    points, reach = points - points.mean(0), reach[order]
    scale = points.abs().max().clamp_min(torch.finfo(torch.double).tiny)
    points, reach = points / scale, reach / scale
    n = len(points)
    bound = _best_bound(points, reach)
    found, count = [], 0
    for stripe in side_by_side(lambda top: _stripe(points, reach, bound, top), range(0, n, TILE[0])):
        found.append(stripe)
        count += len(stripe[0])
        if count > most:
            return None
    rows, items, sums = (torch.cat(part) for part in zip(*found, strict=True))
    return order[rows].numpy(), order[items].numpy(), (scale * sums).numpy()


def _stripe(points: Tensor, reach: Tensor, bound: _Bound, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is within reach among the items from `top` on, for a tile's height of them and all later ones."""
    rows = slice(top, top + TILE[0])
    hits = [bound.hits(rows, slice(left, left + TILE[1])) for left in range(top, len(points), TILE[1])]
    i, j = (torch.cat(part) for part in zip(*hits, strict=True))
    i, j = i[i < j], j[i < j]
    chunks = zip(i.split(CHUNK), j.split(CHUNK), strict=True)
    gap = torch.cat([_sums(points.index_select(0, a) - points.index_select(0, b)) for a, b in chunks])
    near, far = gap <= reach[i], gap <= reach[j]
    both = torch.cat([i[near], j[far]]), torch.cat([j[near], i[far]])
    return both[0].int(), both[1].int(), torch.cat([gap[near], gap[far]])


def side_by_side(work: Callable[[int], Any], jobs: Iterable[int]) -> Iterator[Any]:
    """Results of jobs in their order, one thread for each that torch has: many small operations share no work well."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, jobs)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        yield from pool.map(work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class _Bound:
    """Lower bounds of tiles of pairs: sums of norms over `groups` of joints, less the later item's reach."""

    def __init__(self, points: Tensor, reach: Tensor, groups: int) -> None:
        self.squared = groups == 1
        level = reach.square() if self.squared else reach
        level = level * (1 + 2 * slack(groups)) + TINY
        self.level = torch.where(reach < 0, -torch.inf, level).float().neg_()
        self.left, self.right = [], []
        for part in points.tensor_split(groups, dim=1):
            flat = part.flatten(1).float()
            size, one = flat.square().sum(1, keepdim=True), torch.ones(len(flat), 1)
            size *= 1 - slack(flat.shape[1])
            self.left.append(torch.cat([-2 * flat, size, one], 1))
            self.right.append(torch.cat([flat, one, size], 1).T.contiguous())

    def hits(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Positions of pairs in a tile whose bound is within reach of the column."""
        level = self.level[columns]
        shape = (len(self.left[0][rows]), len(level))
        total, part = level.repeat(shape[0], 1), torch.empty(shape)
        for left, right in zip(self.left, self.right, strict=True):
            torch.mm(left[rows], right[:, columns], out=part)
            total.add_(part if self.squared else part.clamp_min_(0).sqrt_())
        place = torch.from_numpy(np.flatnonzero(total.numpy() <= 0))
        return place // shape[1] + rows.start, place % shape[1] + columns.start


def _best_bound(points: Tensor, reach: Tensor) -> _Bound:
    """The grouping of joints whose bounds, and the sums of what they leave, cost least on a tile of all items."""
    j, n = points.shape[1], len(points)
    some = torch.linspace(0, n - 1, min(n, sum(TILE))).long()
    tried, cost = [], []
    for groups in sorted({1, *(max(1, j // 2**step) for step in range(4))}):
        sample = _Bound(points[some], reach[some], groups)
        left = len(sample.hits(slice(0, TILE[0]), slice(TILE[0], len(some)))[0])
        tried.append(groups)
        cost.append(groups + 280 * left / (TILE[0] * (len(some) - TILE[0])))
    return _Bound(points, reach, tried[int(np.argmin(cost))])


def by_faiss(points: Tensor, count: int, *, graph: bool) -> Lists:
    """About the `count` nearest items of each of `points` [n d] by Euclidean distance, from the nearest tenth of cells
    or along a graph."""
    vectors = np.ascontiguousarray((points - points.mean(0)).float().numpy())
    try:
        index = faiss_index(vectors, "hnsw" if graph else "ivf", beam=2 * count)
    except ImportError as error:
        raise ImportError("methods 'ivf' and 'hnsw' need faiss: pip install beyond_binary[faiss]") from error
    return Lists.of(index.search(vectors, count + 1)[1])


def by_descent(points: Tensor, count: int) -> Lists:
    """About the `count` nearest items of each of `points` [n d] by Euclidean distance."""
    threads = torch.get_num_threads()
    try:
        from pynndescent import NNDescent

        vectors = (points - points.mean(0)).float().numpy()
        return Lists.of(NNDescent(vectors, n_neighbors=count + 1, random_state=0).neighbor_graph[0])
    except ImportError as error:
        raise ImportError("method 'nn_descent' needs pynndescent: pip install beyond_binary[nn_descent]") from error
    finally:
        torch.set_num_threads(threads)  # numba gives OpenMP all cores, and torch has its threads from there


def by_landmarks(target: Target, code: Tensor) -> Tensor:
    """Where items lie: their distances from some of them [n l], unknown ones in the middle of the known."""
    some = torch.linspace(0, len(code) - 1, min(LANDMARKS, len(code))).long()
    found = [target.distance(part, code[some]).double() for part in code.split(4096)]
    distances = torch.cat(found)
    distances = distances.masked_fill(~distances.isfinite(), torch.nan)
    return torch.where(distances.isnan(), distances.nanmean(0).nan_to_num(), distances)


def close_together(points: Tensor) -> np.ndarray:
    """An order of `points` [n d] in which near ones are beside each other."""
    return torch.cat(cells((points - points.mean(0)).float(), 1)[0]).numpy()
