"""Exact nearest neighbours in label space: the one place that searches by a target's own distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .targets import Target


@torch.no_grad()
def label_neighbours(
    target: Target, code: Tensor, k: int, *, ids: Tensor | None = None, tile: int = 256
) -> tuple[Tensor, Tensor]:
    """The `k` items nearest to each item by `target.distance`, nearest first, equal distances by position.

    An item is never its own neighbour, nor is another one with the same id. Neither is an item at an unknown
    (NaN) or infinite distance: where fewer than `k` items remain, the row ends in index -1 with distance NaN.

    Args:
        target: the target that encoded `code`.
        code: [n ...] what the target encodes per item, on any device.
        k: neighbours per item, less than n.
        ids: [n] int64; equal ids are one thing. Default: every item is its own thing.
        tile: rows computed at a time; memory is O(tile x n), time O(n^2).

    Returns:
        indices [n k] int64 and distances [n k] float64, on the CPU.

    Raises:
        ValueError: `k` is not in 1 .. n - 1.
    """
    n = len(code)
    if not 1 <= k < n:
        raise ValueError(f"expected 1 <= k < {n} (an item is not its own neighbour), got k={k} for {n} items")
    own = getattr(target, "neighbours", None)  # a quicker search of the target's own
    if own is not None and (found := own(code, k, ids)) is not None:
        return found
    ids = torch.arange(n, device=code.device) if ids is None else ids.to(code.device)
    # filled in place: small results kept between large tiles would fragment the heap
    indices, distances = torch.empty(n, k, dtype=torch.int64), torch.empty(n, k, dtype=torch.float64)
    for rows in (slice(first, first + tile) for first in range(0, n, tile)):
        never = ids[rows, None] == ids
        indices[rows], distances[rows] = _nearest(target.distance(code[rows], code), never, k)
    return indices, distances


def _nearest(distance: Tensor, never: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where and what the `k` smallest of each row [q n] are, ties by index; -1 and NaN where none is left."""
    distance = distance if distance.is_floating_point() else distance.float()
    distance = distance.masked_fill(never | distance.isnan(), torch.inf)
    last = distance.topk(k, largest=False).values.amax(1, keepdim=True)
    nearer, level = distance < last, distance == last
    # topk breaks ties as it likes; here the first of the level ones fill what the nearer ones leave
    chosen = nearer | level & (level.cumsum(1) <= k - nearer.sum(1, keepdim=True))
    indices = chosen.nonzero()[:, 1].view(-1, k)
    nearest, order = distance.gather(1, indices).sort(stable=True, dim=1)
    nothing = nearest.isinf()
    return indices.gather(1, order).masked_fill(nothing, -1), nearest.masked_fill(nothing, torch.nan)
