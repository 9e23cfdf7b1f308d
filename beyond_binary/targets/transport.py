"""Exact word mover's distances between items of several captions, with a solve only where bounds do not settle it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .vectors import exact_cdist

Array = np.ndarray[Any, Any]
SLACK = 1e-5
"""What bounds are lowered by, relatively, as they are rounded."""

FAR = np.float32(1e9)
"""Cost of a word that is not there."""


@dataclass(frozen=True)
class Texts:
    """Captions of items as words [n captions width], -1 for none, and each word's share of its caption.

    The share of a word that is repeated stands at its first place. `vectors` are the words' by number.
    """

    words: Array
    share: Array
    width: Array
    vectors: Array

    @classmethod
    def of(cls, code: Tensor, vectors: Tensor) -> Texts:
        """The texts of a code [n captions width] of sorted words, under fewer word numbers."""
        code = code.cpu()
        known = code >= 0
        used, numbers = torch.unique(code[known], return_inverse=True)
        words = np.full(code.shape, -1, dtype=np.int32)
        words[known.numpy()] = numbers.numpy()
        words = words[:, :, : max(int(known.sum(2).max()) if known.numel() else 0, 1)]
        there = words >= 0
        first = there.copy()
        first[:, :, 1:] &= words[:, :, 1:] != words[:, :, :-1]
        share = np.zeros(words.shape)
        share[first] = np.bincount(np.cumsum(first)[there.ravel()], minlength=1)[1:]
        width = there.sum(2)
        return cls(words, share / np.maximum(width, 1)[:, :, None], width, vectors.cpu()[used].numpy())

    def __getitem__(self, items: Any) -> Texts:
        """Some of the items."""
        return Texts(self.words[items], self.share[items], self.width[items], self.vectors)


class From:
    """Exact distances from one item to others.

    Words that two captions share stay where they are, whatever the vectors: an optimal plan moves only what is left
    of each, so that both the second bound and the solve are about the rest.
    """

    def __init__(self, texts: Texts, item: int) -> None:
        own = texts[[item]]
        self.words, self.share, self.width = own.words[0], own.share[0], own.width[0]
        mine, place = np.unique(self.words, return_inverse=True)
        self.place = place.reshape(self.words.shape)
        self.costs = exact_cdist(torch.tensor(texts.vectors[mine]), torch.tensor(texts.vectors)).numpy()
        self.solved = 0

    def to(self, others: Texts, bounds: Array, limit: float = np.inf, mean: bool = False) -> Array:
        """Distances [k] to other items, infinite where it is more than `limit`.

        Best matches are found by their bounds: as long as the least of a caption is a bound, it gives way to a better
        bound and that to what it bounds, and an item is left as soon as its bounds exceed the limit.

        Args:
            others: the k items.
            bounds: [k captions captions'] lower bounds between own and other captions, infinite where there is none.
            limit: largest distance that is needed.
            mean: mean of the best matches instead of their sum.
        """
        missing = np.isinf(bounds)
        bounds = np.where(missing, np.inf, bounds.astype(np.float64) * (1 - SLACK))
        stage = np.where(missing, 2, 0)
        while True:
            of_own, of_others = bounds.min(2, keepdims=True), bounds.min(1, keepdims=True)
            total = _total(bounds, mean)
            open_ = (stage < 2) & (total <= limit)[:, None, None] & ((bounds == of_own) | (bounds == of_others))
            if not open_.any():
                return np.where(total <= limit, total, np.inf)
            bare = open_ & (stage == 0)
            ready = open_ & ~bare.any((1, 2), keepdims=True)  # a solve waits until no quick bound is left to be tried
            for now, value, chosen in ((0, reduced, bare), (1, solve, ready)):
                for at in self._alike(others, chosen):
                    better = value(*self._rests(others, *at))
                    bounds[at] = better if now else np.maximum(better * (1 - SLACK), bounds[at])
                    stage[at] += 1
                    self.solved += now * len(better)

    def _alike(self, others: Texts, chosen: Array, part: int = 256) -> Iterator[tuple[Array, Array, Array]]:
        """Pairs of captions (item, own, other) in parts of similar widths."""
        item, own, other = np.nonzero(chosen)
        order = np.argsort(self.width[own] * others.width[item, other])
        for some in np.split(order, range(part, len(order), part)):
            if len(some):
                yield item[some], own[some], other[some]

    def _rests(self, others: Texts, item: Array, own: Array, other: Array) -> tuple[Array, Array, Array]:
        """What two captions do not share, [words pairs] and [words' pairs], and the costs from word to word."""
        width, width_k = self.width[own].max(), others.width[item, other].max()
        words, share, place = (np.ascontiguousarray(x[own, :width].T) for x in (self.words, self.share, self.place))
        words_k, share_k = (np.ascontiguousarray(x[item, other, :width_k].T) for x in (others.words, others.share))
        both = np.minimum(share[:, None], share_k) * (words[:, None] == words_k)
        rest, rest_k = (np.where(x > 1e-12, x, 0) for x in (share - both.sum(1), share_k - both.sum(0)))
        return rest, rest_k, self.costs[place[:, None], words_k]


def _total(bounds: Array, mean: bool) -> Array:
    """Sums [k] of the best matches of captions [k captions captions'] both ways, or their mean."""
    matches = [bounds.min(2), bounds.min(1)]
    sums = [functools.reduce(np.add, np.where(np.isinf(x), 0, x).T) for x in matches]
    return (sums[0] + sums[1]) / (sum(np.isfinite(x).sum(1) for x in matches) if mean else 1)


def nearest(
    texts: Texts, bounds: Array, row: int, k: int, never: Array, mean: bool = False
) -> tuple[Array, Array, int]:
    """The `k` items nearest to one, nearest first, equal distances by position.

    Items come in the order of their bounds, `k` of them, then as many again as there were, until a bound exceeds the
    k-th smallest distance so far.

    Args:
        texts: all items.
        bounds: [n captions captions'] lower bounds between the captions of the item and those of each item.
        row: the item.
        k: how many.
        never: [n] items that are not to be found.
        mean: mean of the best matches instead of their sum.

    Returns:
        where they are [k] and their distances [k], -1 and NaN where none is left, and the number of solves.
    """
    start = From(texts, row)
    least = _total(bounds, mean) * (1 - SLACK)
    order = np.argsort(least, kind="stable")
    order = order[~never[order]]
    where, distance, limit, seen = np.zeros(0, np.int64), np.zeros(0), np.inf, 0
    while len(order) and least[order[0]] <= limit:
        items, order = np.split(order, [max(k, seen)])
        seen += len(items)
        items = items[least[items] <= limit]
        where = np.append(where, items)
        distance = np.append(distance, start.to(texts[items], bounds[items], limit, mean))
        best = np.lexsort((where, distance))[:k]
        where, distance = where[best], distance[best]
        limit = distance[-1] if len(distance) == k else np.inf
    lack = k - len(where)
    return np.append(where, np.full(lack, -1)), np.append(distance, np.full(lack, np.nan)), start.solved


def reduced(a: Array, b: Array, costs: Array) -> Array:
    """Lower bounds [m] of the least costs of moving masses a [i m] to b [j m] with costs [i j m].

    The one-sided relaxation of `a` (each mass to its nearest), and the one of `b` under what the costs are then larger
    than that: a feasible solution of the dual problem. The larger of this and of the same from the other side.
    """
    costs = costs + np.where((a > 0)[:, None] & (b > 0), 0, FAR)
    bounds = []
    for x, y, c in ((a, b, costs), (b, a, costs.swapaxes(0, 1))):
        least = np.where(x > 0, c.min(1), 0)
        rest = (c - least[:, None]).min(0)
        bounds.append((x * least).sum(0) + np.where(y > 0, y * rest, 0).sum(0))
    return np.maximum(*bounds)


def solve(a: Array, b: Array, costs: Array) -> Array:
    """Least costs [m] of moving masses a [i m] to b [j m], equal in sum, by POT's network simplex."""
    from ot.lp.emd_wrap import emd_c

    total, total_b = a.sum(0), b.sum(0)
    b = b * (total / np.maximum(total_b, 1e-300))
    a, b, costs = (np.ascontiguousarray(np.moveaxis(x, -1, 0), dtype=np.float64) for x in (a, b, costs))
    values = np.zeros(len(a))
    for i in np.flatnonzero(np.minimum(total, total_b) > 1e-9):  # less is rounding
        values[i], status = emd_c(a[i], b[i], costs[i], 1_000_000, 1)[1::3]
        if status != 1:
            raise RuntimeError(f"POT's network simplex ended with status {status}")
    return values
