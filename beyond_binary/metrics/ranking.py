"""What the metrics of a tile share: its queries ranked once against all references, ties kept as ties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..topk import largest


class Top(NamedTuple):
    """The first `p` positions of each query. A group is a run of references with equal similarity.

    Attributes:
        x: similarity, falling [q p] (-inf where the query has no more references).
        order: which reference [q p].
        group: number of the position's group within its row [q p].
        size: references in the position's group, those beyond position `p` included, float64 [q p].
        within: place of the position inside its group, from 1, float64 [q p].
        cut: rows whose last group goes on beyond position `p` [c].
    """

    x: Tensor
    order: Tensor
    group: Tensor
    size: Tensor
    within: Tensor
    cut: Tensor


class Hit(NamedTuple):
    """Where each query meets its first right reference, all float64 [q]; arbitrary where there is none.

    Attributes:
        nearer: references nearer than the nearest right one.
        tied: references exactly as near as it, itself included.
        right: right references among the tied.
    """

    nearer: Tensor
    tied: Tensor
    right: Tensor


@dataclass(frozen=True)
class Ranking:
    """One tile of queries against all references; the sole argument of a metric.

    A metric would naturally be a function of `(x, y, valid)`, like a loss. But all metrics rank the same
    tile, and ranking is what costs; so they take the three together with what is derived from them once, on
    first use.

    Storage order never counts: where references are equally near, metrics give the expectation over all
    orders that the ties allow (McSherry & Najork, ECIR 2008). A collapsed model thus scores like a random
    ranking.

    Attributes:
        x: similarity [q k], higher is nearer, -inf where not valid.
        y: label distance [q k]; bool (True = different) where the target gives only "same", else floating.
        valid: pairs that count [q k].
        depth: positions that the metrics read; where `y` is bool, at least as many as any query has right
            answers.
        gap: `x` to the distance in the embedding; None where `x` stands for none (the dot product).
        mean_error: weights of the references [q k], each row's sum 1, to the label distance [q] between each query's
            label and the weighted mean of theirs; None where labels have no mean.
        between: positions of references [m] to their label distances from each other [m m].
        part: for a sum of targets, number of a target to its label distances alone [q k].
    """

    x: Tensor
    y: Tensor
    valid: Tensor
    depth: int = 1
    gap: Callable[[Tensor], Tensor] | None = torch.neg
    mean_error: Callable[[Tensor], Tensor] | None = None
    between: Callable[[Tensor], Tensor] | None = None
    part: Callable[[int], Tensor] | None = None

    @staticmethod
    def of(x: Tensor, y: Tensor, valid: Tensor, gives: str, depth: int = 1, **more: Any) -> Ranking:
        """Rank a tile of a target that gives "same", "order" or "magnitude". `x` is overwritten.

        Pairs whose label distance is NaN (unknown) become invalid.
        """
        if y.is_floating_point():
            valid = valid & ~y.isnan()
        if gives == "same" and y.dtype != torch.bool:
            y = y != 0
        return Ranking(x.masked_fill_(~valid, -torch.inf), y, valid, depth, **more)

    @cached_property
    def references(self) -> Tensor:
        """Number of valid references of each query, int64 [q]."""
        return self.valid.view(torch.uint8).sum(1)

    @cached_property
    def right(self) -> Tensor:
        """Valid references that are the same as the query, bool [q k]."""
        return (~self.y if self.y.dtype == torch.bool else self.y == 0) & self.valid

    @cached_property
    def relevant(self) -> Tensor:
        """R, the number of right references of each query among all references, int64 [q]."""
        return self.right.view(torch.uint8).sum(1)

    @cached_property
    def top(self) -> Top:
        """The first `depth` positions of each query, and which of them are tied."""
        depth = max(1, self.depth, int(self.relevant.max()) if self.y.dtype == torch.bool else 0)
        x, order = largest(self.x, min(depth + 1, self.x.shape[1]))
        beyond, x, order = x[:, depth:], x[:, :depth], order[:, :depth]
        starts = torch.ones_like(x, dtype=torch.bool)
        starts[:, 1:] = x[:, 1:] != x[:, :-1]
        group = starts.cumsum(1) - 1
        size = torch.zeros_like(x, dtype=torch.double)
        size.scatter_add_(1, group, torch.ones_like(size))
        first = size.cumsum(1) - size
        cut = ((beyond == x[:, -1:]) & (beyond > -torch.inf)).any(1).nonzero()[:, 0]
        size[cut, group[cut, -1]] = (self.x[cut] == x[cut, -1:]).sum(1).double()
        position = torch.arange(1, x.shape[1] + 1, device=x.device)
        return Top(x, order, group, size.gather(1, group), position - first.gather(1, group), cut)

    def expect(self, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """Expected gain at each of the top positions, float64 [q p]; 0 where there is no reference.

        Args:
            gain: gain of a label distance, element by element.
        """
        top = self.top
        gains = gain(self.y.gather(1, top.order)).double().masked_fill(top.x == -torch.inf, 0)
        total = torch.zeros_like(gains).scatter_add_(1, top.group, gains)
        if len(top.cut):
            tied = self.x[top.cut] == top.x[top.cut, -1:]
            gains = torch.where(tied, gain(self.y[top.cut]).double(), 0)
            total[top.cut, top.group[top.cut, -1]] = gains.sum(1)
        return total.gather(1, top.group) / top.size

    @cached_property
    def log_line(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope and R2 of the line through (log label distance, log embedding distance) of each query, and its points.

        Float64 [q], points int64 [q]: 0 where there is no line, for all label distances are alike.
        """
        if self.gap is None:
            nothing = torch.zeros(len(self.x), device=self.x.device, dtype=torch.double)
            return nothing, nothing, nothing.long()
        gap = self.gap(self.x)
        ok = self.valid & (gap > 0) & (self.y > 0) & gap.isfinite() & self.y.isfinite()
        count = ok.sum(1)
        u, v = (values.double().masked_fill(~ok, 1).log_() for values in (self.y, gap))
        apart = (u.masked_fill(~ok, -torch.inf).amax(1) > u.masked_fill(~ok, torch.inf).amin(1)) & (count > 1)
        u, v = ((w - w.sum(1, keepdim=True) / count.clamp_min(1)[:, None]).masked_fill_(~ok, 0) for w in (u, v))
        uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
        slope = uv / torch.where(apart, uu, 1)
        return slope, slope * uv / torch.where(vv > 0, vv, 1), torch.where(apart, count, 0)

    @cached_property
    def found(self) -> Tensor:
        """Probability that the reference at each of the top positions is right, float64 [q p]."""
        return self.expect(lambda y: y == 0)

    @cached_property
    def hit(self) -> Hit:
        """The first right reference of each query, also when it lies beyond the top positions."""
        top, found = self.top, self.found
        at = (found > 0).float().argmax(1, keepdim=True)
        nearer = (at + 1 - top.within.gather(1, at))[:, 0]
        tied = top.size.gather(1, at)[:, 0]
        right = (found * top.size).round().gather(1, at)[:, 0]
        deep = ((found.amax(1) == 0) & (self.relevant > 0)).nonzero()[:, 0]
        if len(deep):
            x, same = self.x[deep], self.right[deep]
            best = x.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
            nearer[deep] = (x > best).sum(1).double()
            tied[deep] = (x == best).sum(1).double()
            right[deep] = ((x == best) & same).sum(1).double()
        return Hit(nearer, tied, right)


Scores = tuple[Tensor, Tensor]
"""Value of each query, float64 [q], and the number of references it rests on [q] (0: undefined, left out)."""
