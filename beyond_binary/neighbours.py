"""Nearest neighbours in label space: the one place that searches by a target's own distance."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import distributed
from .fingerprint import fingerprint
from .neighbour_search import (
    Around,
    Lists,
    as_joints,
    by_descent,
    by_faiss,
    by_landmarks,
    close_together,
    side_by_side,
    slack,
    upper_bounds,
    within_reach,
)
from .parallel import in_parallel
from .registry import suggest
from .targets import Target
from .unfinished import Unfinished, read_tensors, write_tensors

Method = Literal["auto", "exact", "plain", "ivf", "hnsw", "nn_descent"]
Found = tuple[Tensor, Tensor]

QUICK = 8192
"""From so many items on `exact` bounds distances before it computes them."""
RANKED = 16
"""Rows whose candidates are ranked together."""
LARGE = 250_000
"""From so many items on `auto` takes an approximate method where it can."""
SIDE = 256
"""Items in a block's row, at least, where distances are computed by blocks over all cores."""
MANY = 3000
"""From so many items on these are worth the start of processes."""
ROUNDS = 2
"""How often `nn_descent` looks around what it found, for labels that are no vectors."""
MOST_HITS = 16
"""Pairs for each neighbour wanted that `exact` keeps in memory; with more of them (ties) it gives way to `plain`."""
log = logging.getLogger(__name__)


@torch.no_grad()
def label_neighbours(
    target: Target,
    code: Tensor,
    k: int,
    *,
    ids: Tensor | None = None,
    tile: int = 256,
    method: Method = "auto",
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Found:
    """The `k` items nearest to each item by `target.distance`, nearest first, equal distances by position.

    An item is never its own neighbour, nor is another one with the same id. Neither is an item at an unknown
    (NaN) or infinite distance: where fewer than `k` items remain, the row ends in index -1 with distance NaN.

    Methods, all deterministic, all with the target's own distances of what they find:

    - `plain`: every distance, by tiles; O(n^2) calls of the target's work.
    - `exact`: the same result. From 8,192 items on, for labels that are vectors (euclidean, cosine, manhattan,
      gaussian, histogram, pose with all joints visible, scaled ones), bounds by matrix products leave only a few
      distances to compute; captions are searched over all cores, each pair once; else it is `plain`.
    - `ivf`, `hnsw`: approximate, for the same labels: faiss (extra `faiss`) looks for candidates by Euclidean distance,
      in the nearest cells, or along a graph. The graph is built by one thread, as many would build it differently
      each time.
    - `nn_descent`: approximate, for any target: pynndescent (extra `nn_descent`) looks for candidates among the vectors,
      or, where labels are none, among the items' distances from 64 of them; then twice among the neighbours of the
      neighbours, by the target's own distance. For metrics.
    - `auto`: `exact` below 250,000 items and where the extras are not installed, beyond that `hnsw` or `nn_descent`.

    Approximate methods measure their recall (see `neighbour_recall`) and log it (level INFO).

    Args:
        target: the target that encoded `code`.
        code: [n ...] what the target encodes per item, on any device.
        k: neighbours per item, less than n.
        ids: [n] int64; equal ids are one thing. Default: every item is its own thing.
        tile: rows computed at a time by `plain`; memory is O(tile x n).
        method: how to search, see above.
        cache: folder that keeps results, by a hash of target, codes, ids, k and method; None: none kept. A search for
            captions that is interrupted is kept there too, and the same call goes on with it.
        progress: show a progress bar where distances are computed one by one or all.

    Returns:
        indices [n k] int64 and distances [n k] float64, on the CPU.

    Raises:
        ValueError: `k` is not in 1 .. n - 1, an unknown method, or one that does not fit the target.
        ImportError: the method needs an extra that is not installed.
    """
    n = len(code)
    if not 1 <= k < n:
        raise ValueError(f"expected 1 <= k < {n} (an item is not its own neighbour), got k={k} for {n} items")
    if method not in get_args(Method):
        raise ValueError(f"unknown method {method!r}{suggest(method, get_args(Method))}")
    ids = torch.arange(n, device=code.device) if ids is None else ids.to(code.device)
    if method == "auto":
        method = _choose(target, code)
    file = (
        None if cache is None else Path(cache) / f"neighbours-{fingerprint(target, code, ids, k, method)}.safetensors"
    )
    kept = {} if file is None else read_tensors(file)
    if {"indices", "distances"} <= kept.keys():
        return kept["indices"], kept["distances"]
    draft = None if file is None else file.with_suffix(".unfinished")
    found = _search(target, code, k, ids, tile, method, progress, draft)
    if method in ("ivf", "hnsw", "nn_descent"):
        recall = neighbour_recall(target, code, found[1], ids=ids)
        log.info("label neighbours of %d items by %s: recall@%d %.4f of a sample", n, method, k, recall)
    if file is not None and draft is not None:
        write_tensors(file, {"indices": found[0], "distances": found[1]})
        draft.unlink(missing_ok=True)
    return found


def shared_neighbours(target: Target, code: Tensor, **options: Any) -> Callable[[int], np.ndarray]:
    """A function k -> the indices [n k] of `label_neighbours`, found once for each k, by one process for all.

    Args:
        target: the target that encoded `code`.
        code: [n ...] what the target encodes per item.
        **options: of `label_neighbours`.
    """

    @functools.cache
    def search(k: int) -> np.ndarray:
        return distributed.from_first(lambda: label_neighbours(target, code, k, **options)[0].numpy())

    return search


@torch.no_grad()
def neighbour_recall(
    target: Target, code: Tensor, distances: Tensor, *, ids: Tensor | None = None, sample: int = 256
) -> float:
    """Share of the true neighbours that a search found, against every distance of a sample of items.

    A found neighbour counts if it is not farther than the true k-th one, so that ties are no errors.

    Args:
        target: the target that encoded `code`.
        code: [n ...] what the target encodes per item.
        distances: [n k] what `label_neighbours` returned.
        ids: as for `label_neighbours`.
        sample: how many items, evenly spaced.
    """
    n, k = distances.shape
    ids = torch.arange(n, device=code.device) if ids is None else ids.to(code.device)
    rows = torch.linspace(0, n - 1, min(sample, n)).long()
    true = _plain(target, code, k, ids, 64, rows)[1]
    last = true.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
    hits = (distances[rows] <= last).sum()
    return float(hits / (~true.isnan()).sum().clamp_min(1))


def _choose(target: Target, code: Tensor) -> Method:
    if len(code) < LARGE or getattr(target, "neighbours", None) is not None:
        return "exact"
    if as_joints(target, code) is not None and find_spec("faiss"):
        return "hnsw"
    return "nn_descent" if find_spec("pynndescent") else "exact"


def _search(
    target: Target, code: Tensor, k: int, ids: Tensor, tile: int, method: Method, progress: bool, draft: Path | None
) -> Found:
    own = getattr(target, "neighbours", None)  # a quicker search of the target's own
    if method == "exact" and own is not None:
        indices, distances = own(code, k, ids, progress, draft)
        return indices, distances
    if method == "exact" and getattr(target, "slow", False) and len(code) >= 4 * SIDE:
        return _by_blocks(target, code.cpu(), k, ids.cpu(), progress, draft)
    joints = None if method == "plain" else as_joints(target, code)
    if method == "exact" and joints is not None and len(code) >= QUICK:
        return _exact(target, code, k, ids, tile, joints.cpu(), progress)
    if method in ("plain", "exact"):
        return _plain(target, code, k, ids, tile, torch.arange(len(code)), progress)
    wanted = min(3 * k + 10, len(code) - 1)
    if method == "nn_descent" and joints is not None:
        return _ranked(target, code, k, ids, by_descent(joints.cpu().flatten(1), wanted))
    if method == "nn_descent":
        points = by_landmarks(target, code).cpu()
        order = close_together(points)
        found = _ranked(target, code, k, ids, by_descent(points, wanted).in_order(order))
        for _ in range(ROUNDS):
            found = _ranked(target, code, k, ids, Around(order, found[0].numpy()))
        return found
    if joints is None:
        raise ValueError(f"method {method!r} needs labels that are vectors, not {target}; take 'nn_descent' or 'exact'")
    return _ranked(target, code, k, ids, by_faiss(joints.cpu().flatten(1), wanted, graph=method == "hnsw"))


def _plain(target: Target, code: Tensor, k: int, ids: Tensor, tile: int, rows: Tensor, progress: bool = False) -> Found:
    # filled in place: small results kept between large tiles would fragment the heap
    indices, distances = torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k, dtype=torch.float64)
    for first in tqdm(range(0, len(rows), tile), desc="label neighbours", unit="tile", disable=not progress):
        part = slice(first, first + tile)
        never = ids[rows[part], None] == ids
        indices[part], distances[part] = _nearest(target.distance(code[rows[part]], code), never, k)
    return indices, distances


def _by_blocks(target: Target, code: Tensor, k: int, ids: Tensor, progress: bool, draft: Path | None) -> Found:
    """Every distance once, by blocks of pairs over all cores, for distances that are the same both ways."""
    n = len(code)
    side = min(max(n // 32, SIDE), 4 * SIDE)
    blocks = [(i, j) for i in range(0, n, side) for j in range(i, n, side)]
    best = Unfinished(n, k, len(blocks), draft)
    left = best.left()
    jobs = [(part, *blocks[part]) for part in left]
    shared = (target, code, k, ids, side)
    workers = None if n >= MANY else 1
    with best.kept():
        for part, sides in in_parallel(
            _of_block,
            shared,
            jobs,
            workers=workers,
            title="label neighbours",
            progress=progress,
            done=len(blocks) - len(left),
        ):
            for first, indices, distances in sides:
                rows = slice(first, first + len(indices))
                merged = _merged((best.indices[rows], best.distances[rows]), (indices, distances), k)
                best.indices[rows], best.distances[rows] = merged
            best.finish(part)
    return best.indices, best.distances


def _of_block(shared: Any, job: tuple[int, int, int]) -> tuple[int, list[tuple[int, Tensor, Tensor]]]:
    """Nearest of the block's columns to its rows, and of its rows to its columns: first item, indices, distances."""
    (target, code, k, ids, side), (part, i, j) = shared, job
    rows, columns = slice(i, i + side), slice(j, j + side)
    with torch.no_grad():
        distance = target.distance(code[rows], code[columns]).double()
    distance.masked_fill_(ids[rows, None] == ids[columns], torch.inf)
    found = []
    for first, other, table in [(i, j, distance), (j, i, distance.T.contiguous())][: 1 if i == j else 2]:
        indices, near = smallest(table, min(k, table.shape[1]))
        found.append((first, torch.where(indices < 0, -1, indices + other), near))
    return part, found


def _merged(a: Found, b: Found, k: int) -> Found:
    """The `k` nearest of two tables of the same items, each item once, equal distances by position."""
    indices, order = torch.cat([a[0], b[0]], 1).sort(dim=1, stable=True)
    distances = torch.cat([a[1], b[1]], 1).gather(1, order)
    distances[:, 1:][indices[:, 1:] == indices[:, :-1]] = torch.nan  # of a block that was merged before
    nearest, order = distances.sort(dim=1, stable=True)  # NaN comes last
    return indices.gather(1, order)[:, :k].masked_fill(nearest[:, :k].isnan(), -1), nearest[:, :k]


def _exact(target: Target, code: Tensor, k: int, ids: Tensor, tile: int, joints: Tensor, progress: bool) -> Found:
    """An upper bound of each item's k-th distance first; then everything within that, ranked by the target."""
    n, loose = len(code), 1 + slack(joints[0].numel())
    bounds, order = upper_bounds(joints, ids.cpu(), k)
    reach = torch.where(bounds < 0, bounds, loose * bounds)
    pairs = within_reach(joints, reach, MOST_HITS * k * n)
    if pairs is None:
        return _plain(target, code, k, ids, tile, torch.arange(n), progress)
    found = _ranked(target, code, k, ids, Lists.nearest(*pairs, ids.cpu().numpy(), order.argsort().numpy(), k, loose))
    unknown = (reach < 0).nonzero()[:, 0]
    found[0][unknown], found[1][unknown] = _plain(target, code, k, ids, tile, unknown)
    return found


def _ranked(target: Target, code: Tensor, k: int, ids: Tensor, candidates: Lists | Around) -> Found:
    """The nearest candidates by the target's own distance."""
    indices = torch.full((len(code), k), -1)
    distances = torch.full((len(code), k), torch.nan, dtype=torch.double)

    def rank(first: int) -> None:
        rows, items = candidates.group(first, RANKED)
        never, width = ids[rows, None] == ids[items], min(k, len(items))
        place, near = _nearest(target.distance(code[rows], code[items]), never, width)
        indices[rows, :width] = torch.where(place.cpu() < 0, -1, items[place.cpu()])
        distances[rows, :width] = near.double().cpu()

    for _ in side_by_side(rank, range(0, len(candidates.rows), RANKED)):
        pass
    return indices, distances


def _nearest(distance: Tensor, never: Tensor, k: int) -> Found:
    """The `k` smallest of each row [q n] but for those that are never neighbours, see `smallest`."""
    distance = distance if distance.is_floating_point() else distance.float()
    return smallest(distance.masked_fill(never, torch.inf), k)


def smallest(distance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where and what the `k` smallest of each row [q n] are, ties by index; -1 and NaN where no finite one is left."""
    value, indices = distance.topk(min(k + 1, distance.shape[1]), largest=False)  # NaN counts as largest
    indices = indices[:, :k].sort(1).values
    level = (value[:, k - 1] == value[:, -1]) & value[:, -1].isfinite() & (value.shape[1] > k)
    indices[level] = _first_of_level(distance[level], value[level, k - 1, None], k)
    nearest, order = distance.gather(1, indices).sort(stable=True, dim=1)
    nothing = ~nearest.isfinite()
    return indices.gather(1, order).masked_fill(nothing, -1), nearest.masked_fill(nothing, torch.nan)


def _first_of_level(distance: Tensor, last: Tensor, k: int) -> Tensor:
    """Indices of the `k` smallest of each row whose largest is `last`, where more than these are equal to it.

    topk breaks ties as it likes; here the first of the level ones fill what the nearer ones leave.
    """
    nearer, level = distance < last, distance == last
    chosen = nearer | level & (level.cumsum(1, dtype=torch.int32) <= k - nearer.sum(1, keepdim=True))
    return chosen.nonzero()[:, 1].view(-1, k)
