"""Items sorted by class, classes of equal size side by side, so that what is done per class is done in a few batches."""

from __future__ import annotations

import torch
from torch import Tensor


def by_class(code: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
    """Order of the items by the size of their class, then by class.

    Args:
        code: class of each item [n].

    Returns:
        order [n] of the items; the classes [c] in that order; and (number of classes, their size) of each size.
    """
    classes, inverse, size = torch.unique(code, return_inverse=True, return_counts=True)
    by_size = size.argsort(stable=True)
    sizes, many = torch.unique_consecutive(size[by_size], return_counts=True)
    rank = torch.empty_like(by_size).scatter_(0, by_size, torch.arange(len(classes), device=code.device))
    runs = list(zip(many.tolist(), sizes.tolist(), strict=True))
    return rank[inverse].argsort(stable=True), classes[by_size], runs


def sizes(runs: list[tuple[int, int]], like: Tensor) -> Tensor:
    """Size of each class, int64 [c] on the device of `like`."""
    return torch.tensor([m for g, m in runs for _ in range(g)], device=like.device)


def log_sums(x: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """Log-sum-exp over the rows of each class, rows in the order of `by_class`: [n ...] to [c ...]."""
    parts = x.split([g * m for g, m in runs])
    return torch.cat([p.unflatten(0, run).logsumexp(1) for p, run in zip(parts, runs, strict=True)])


def slot_log_sums(x: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Log-sum-exp over the rows of each slot [slots k], of any values: shapes depend on no data. Empty ones are low.

    Args:
        x: finite values [n k].
        slot: number of each row [n].
        slots: how many there are.
    """
    index = slot[:, None].expand_as(x)
    with torch.no_grad():
        top = torch.full((slots, x.shape[1]), LOW, dtype=x.dtype, device=x.device)
        top.scatter_reduce_(0, index, x, "amax")
    total = torch.zeros_like(top).scatter_add(0, index, (x - top.gather(0, index)).exp())
    return torch.where(total > 0, torch.where(total > 0, total, 1).log() + top, LOW)


LOW = -1e30
"""The logarithm of nothing: finite, so that no gradient becomes NaN."""


def equal_ids(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs whose ids are equal, found by sorting.

    Args:
        q: ids of the queries [n].
        k: ids of the keys [m].
    """
    known, order = k.sort()
    low = torch.searchsorted(known, q)
    many = torch.searchsorted(known, q, right=True) - low
    row = torch.arange(len(q), device=q.device).repeat_interleave(many)
    before = many.cumsum(0) - many
    return row, order[torch.arange(len(row), device=q.device) + (low - before)[row]]


def common_classes(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
    """Queries and keys of the classes that both have, sorted by both sizes of their class and then by class.

    Args:
        q: classes of the queries [n].
        k: classes of the keys [m].

    Returns:
        queries and keys in that order; and (number of classes, queries of each, keys of each) of each pair of sizes.
    """
    classes, both = torch.unique(torch.cat([q, k]), return_inverse=True)
    slot_q, slot_k = both[: len(q)], both[len(q) :]
    size_q, size_k = (slot.bincount(minlength=len(classes)) for slot in (slot_q, slot_k))
    shared = ((size_q > 0) & (size_k > 0)).nonzero()[:, 0]
    key = size_q[shared] * (len(k) + 1) + size_k[shared]
    key, order = key.sort(stable=True)
    rank = torch.full_like(size_q, -1).scatter_(0, shared[order], torch.arange(len(shared), device=q.device))
    runs, many = torch.unique_consecutive(key, return_counts=True)
    sorted_q, sorted_k = (rank[slot].argsort(stable=True)[int((rank[slot] < 0).sum()) :] for slot in (slot_q, slot_k))
    sizes_of = [
        (g, both // (len(k) + 1), both % (len(k) + 1)) for g, both in zip(many.tolist(), runs.tolist(), strict=True)
    ]
    return sorted_q, sorted_k, sizes_of
