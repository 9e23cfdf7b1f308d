"""Losses of a whole block, of a form that is no sum over rows, walked in tiles.

Three ways to see the pairs without holding them: `Pairs.reduce` (a function of rows, computed again in the backward
pass), `Pairs.apart` (each row's negatives reduced in place, the positives as a list) and `walked` (a loss that knows
its own gradient).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .blocks import Block, Miner, centred, differentiate, gradients, opened, row_parts
from .geometry import Geometry, Pull, Shared
from .points import Points
from .targets import Target
from .tiles import Tile, split


@dataclass(frozen=True)
class Same:
    """Valid pairs of the same as a list [p]; in the plain form all pairs of the block, of which `use` says which count.

    Attributes:
        row: their queries.
        column: their keys.
        x: their similarities or distances, with gradient.
        use: those that count.
    """

    row: Tensor
    column: Tensor
    x: Tensor
    use: Tensor

    def mean(self, value: Tensor, use: Tensor | None = None) -> Tensor:
        """Mean of one value a pair, over those of `use` (all); 0 without any."""
        use = self.use if use is None else self.use & use
        return torch.where(use, value, 0).sum() / use.sum().clamp_min(1)


Finish = Callable[[Tensor], Sequence[Tensor]]
"""From the gradient of a tile's results: leaves that of x in the tile, returns those of what all tiles share."""


@dataclass(frozen=True)
class Pairs:
    """A block of pairs as losses see it that are no sum over rows.

    Attributes:
        q: queries, their embeddings raw and with gradient.
        k: keys; the same object when a batch is compared with itself, the proxies when the loss has some.
        block: how pairs are compared.
        tile: rows in a tile, or None: the plain formula is wanted (reference, higher derivatives, `torch.compile`).
    """

    q: Points
    k: Points
    block: Block
    tile: int | None

    @staticmethod
    def of(q: Points, k: Points, geometry: Geometry, target: Target, miner: Miner | None, tile: int | None) -> Pairs:
        """Pairs of queries and keys."""
        return Pairs(q, k, Block(geometry, target, miner, q.code, k.code, q.id, k.id, tile=tile), tile)

    @property
    def plain(self) -> bool:
        """Whether the plain formula on the whole block is wanted."""
        return self.tile is None

    def between(self, q: Points, k: Points, rows: int | None = None) -> Pairs:
        """Other points, compared in the same way (without the miner), with as many or `rows` rows in a tile."""
        return Pairs.of(q, k, self.block.geometry, self.block.target, None, rows or self.tile)

    def swapped(self) -> Pairs:
        """Keys as rows against queries."""
        return self.between(self.k, self.q)

    def double(self) -> Pairs:
        """The same pairs in double precision."""
        q = Points(self.q.z.double(), self.q.code, self.q.id)
        k = q if self.k is self.q else Points(self.k.z.double(), self.k.code, self.k.id)
        return replace(self, q=q, k=k)

    def of_keys(self) -> Pairs:
        """Keys against keys."""
        return self.between(self.k, self.k)

    def prepared(self) -> tuple[Tensor, Tensor]:
        """Embeddings of queries and keys as the geometry compares them (normalised, for instance)."""
        q = self.q.each(self.block.geometry.prepare)
        return q, q if self.k.z is self.q.z else self.k.each(self.block.geometry.prepare).to(q.dtype)

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and valid of the whole block, [q k] each; x with an ordinary graph."""
        x = self.block.geometry.pairs(*self.prepared())
        return x, *self.block.labels(slice(None), x)

    def reduce(self, fn: Callable[..., Tensor], rows: Sequence[Tensor] = (), shared: Sequence[Tensor] = ()) -> Tensor:
        """`fn(x, y, valid, *rows, *shared)` for tiles of rows, its results one below the other: [q ...].

        Memory is that of a tile, because the backward pass computes each tile again.

        Args:
            fn: a function of rows: x, y, valid are [rows k] each; returns [rows ...]. It must not hold other tensors
                that want a gradient.
            rows: tensors [q ...] with gradient, of which fn gets the tile's rows.
            shared: tensors with gradient that every tile sees whole.
        """
        if self.plain:
            return fn(*self.dense(), *rows, *shared)
        q, k = self.prepared()
        result: Tensor = _Reduced.apply(self, fn, len(rows), q, k, *rows, *shared)
        return result

    def apart(
        self,
        fn: Callable[..., Tensor],
        in_place: Callable[..., tuple[Tensor, Finish]],
        then: Callable[..., Tensor],
        shared: Sequence[Tensor] = (),
        extra: Sequence[Tensor] = (),
    ) -> Tensor:
        """`then(results, same, *extra)`: a scalar of each row's results on its negatives, and of the list of positives.

        The results [q ...] are `fn(x, negative, *shared)`. `in_place(tile, *shared)` gives the same without a graph, on
        tiles in which all that is no valid negative is infinitely far; it may overwrite the tile, and returns the
        results and a function that turns their gradient into those of x (which it leaves in `tile.x`) and of `shared`.
        The block is walked twice, for the results and for the gradient, in memory of a tile and of the list of
        positives, of which one number each is kept.
        """
        if self.plain:
            return _all_apart(*self.dense(), fn, then, shared, extra)
        found: Tensor = _Apart.apply(self, (fn, in_place, then), len(shared), *self.prepared(), *shared, *extra)
        return found


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, fn: Callable[..., Tensor], split: int, *inputs: Tensor) -> Tensor:
        ctx.pairs, ctx.fn, ctx.split = pairs, fn, split
        ctx.save_for_backward(*inputs)
        q, k, *extra = (z.detach() for z in inputs)
        q, k = centred(pairs.block.geometry, q, k)
        assert pairs.tile is not None
        results = []
        for part in row_parts(len(q), pairs.tile):
            x = pairs.block.geometry.block(q[part], k)
            own = [z[part] if i < split else z for i, z in enumerate(extra)]
            results.append(fn(x, *pairs.block.labels(part, x), *own))
        return torch.cat(results)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pairs, block = ctx.pairs, ctx.pairs.block
        if torch.is_grad_enabled():
            inputs = [z.view_as(z) for z in ctx.saved_tensors]
            x = block.geometry.pairs(*inputs[:2])
            again = ctx.fn(x, *block.labels(slice(None), x), *inputs[2:])
            return None, None, None, *differentiate(again, inputs, grad)
        q, k, *extra = (z.detach() for z in ctx.saved_tensors)
        whole, memory = [torch.zeros_like(z) for z in (q, k, *extra)], Shared()
        q, k = centred(block.geometry, q, k)
        for part in row_parts(len(q), pairs.tile):
            x, pull = block.geometry.tile(q[part], k, memory)
            own = [z[part] if i < ctx.split else z for i, z in enumerate(extra)]
            with torch.enable_grad():
                leaves = [z.detach().requires_grad_() for z in (x, *own)]
                result = ctx.fn(leaves[0], *block.labels(part, x), *leaves[1:])
                grad_x, *rest = gradients(result, leaves, grad[part])
            pull(grad_x, whole[0][part], whole[1])
            for i, g in enumerate(rest):
                (whole[2 + i][part] if i < ctx.split else whole[2 + i]).add_(g)
        return None, None, None, *whole


def _all_apart(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    fn: Callable[..., Tensor],
    then: Callable[..., Tensor],
    shared: Sequence[Tensor],
    extra: Sequence[Tensor],
) -> Tensor:
    """What `Pairs.apart` gives, by the plain formula."""
    positive, negative = split(y, valid)
    row, column = (torch.arange(n, device=x.device) for n in x.shape)
    row, column = row[:, None].expand_as(x).flatten(), column.expand_as(x).flatten()
    return then(fn(x, negative, *shared), Same(row, column, x.flatten(), positive.flatten()), *extra)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, forms: Sequence[Callable[..., Any]], split: int, *inputs: Tensor) -> Tensor:
        q, k, *rest = (z.detach() for z in inputs)
        q, k = centred(pairs.block.geometry, q, k)
        shared, extra = rest[:split], rest[split:]
        assert pairs.tile is not None
        found, memory = [], Shared()
        for part in row_parts(len(q), pairs.tile):
            tile, near, pull = _negatives(pairs.block, q, k, part, memory)
            result, finish = forms[1](tile, *shared)
            found.append((result, near, tile.same.row + part.start, tile.same.flat % len(k)))
        ctx.sizes = [len(near) for _, near, *_ in found]
        result, near, row, column = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.pairs, ctx.forms, ctx.split = pairs, forms, split
        with torch.enable_grad():
            leaves = [z.requires_grad_() for z in (result, near, *extra)]
            loss = forms[2](result, Same(row, column, near, torch.ones_like(row, dtype=torch.bool)), *extra)
            grads = gradients(loss, leaves) if any(ctx.needs_input_grad) else []
        ctx.last = (tile, pull, finish) if grads else None
        ctx.save_for_backward(*inputs, *grads)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.needs_input_grad) - 3
        inputs, grads = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        pairs, block, stop = ctx.pairs, ctx.pairs.block, 2 + ctx.split
        if torch.is_grad_enabled():
            inputs = [z.view_as(z) for z in inputs]
            x = block.geometry.pairs(*inputs[:2])
            (y, valid), (fn, _, then) = block.labels(slice(None), x), ctx.forms
            again = _all_apart(x, y, valid, fn, then, inputs[2:stop], inputs[stop:])
            return None, None, None, *differentiate(again, inputs, grad)
        slope, near, *of_extra = (g * grad for g in grads)
        q, k, *shared = (z.detach() for z in inputs[:stop])
        whole = [torch.zeros_like(z) for z in inputs[:stop]]
        q, k = centred(block.geometry, q, k)
        (last, ctx.last), memory = (ctx.last, None), Shared()
        for part, some in reversed(list(zip(row_parts(len(q), pairs.tile), near.split(ctx.sizes), strict=True))):
            if last is None:
                tile, _, pull = _negatives(block, q, k, part, memory)
                finish = ctx.forms[1](tile, *shared)[1]
            else:  # of the last tile, or of a small block's only one, everything is there still
                (tile, pull, finish), last = last, None
            for z, g in zip(whole[2:], finish(slope[part]), strict=True):
                z.add_(g)
            tile.put(tile.same, some)
            tile.put(tile.off, 0.0)
            pull(tile.x, whole[0][part], whole[1])
        return None, None, None, *whole, *of_extra


def _negatives(block: Block, q: Tensor, k: Tensor, part: slice, shared: Shared) -> tuple[Tile, Tensor, Pull]:
    """A tile in which all but valid negatives is infinitely far, its positives' x, and what pulls a gradient back."""
    x, pull = block.geometry.tile(q[part], k, shared)
    tile = opened(block, x, part, shared)
    near = tile.take(tile.same)
    for places in (tile.same, tile.off):
        tile.put(places, -torch.inf if block.geometry.kind == "similarity" else torch.inf)
    return tile, near, pull


Tiles = Iterator[tuple[slice, Tile]]
Gradient = Callable[[slice, Tile], None]
"""Overwrites the x of the tile of some rows with the gradient of the loss."""


def walked(pairs: Pairs, loss: Callable[[Tiles], tuple[Tensor, Gradient]], plain: Callable[[Pairs], Tensor]) -> Tensor:
    """A loss of similarities without a miner, computed without a graph; memory that of a tile and what `loss` keeps.

    Args:
        pairs: the pairs.
        loss: sees all tiles once; returns the value, and what finds the gradient of a tile when it comes again.
        plain: the same by the plain form, for higher derivatives.
    """
    q, k = pairs.prepared()
    wanted = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    value: Tensor = _Walked.apply(pairs, loss, plain, wanted, q, k)
    return value


class _Walked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, loss: Any, plain: Any, wanted: bool, q: Tensor, k: Tensor) -> Tensor:
        block, rows = pairs.block, pairs.tile
        assert rows is not None
        parts = row_parts(len(q), rows)

        shared = Shared()

        def tile(part: slice, x: Tensor) -> tuple[slice, Tile]:
            return part, opened(block, x, part, shared)

        value, gradient = loss(tile(part, block.geometry.tile(q[part], k, shared)[0]) for part in parts)
        ctx.pairs, ctx.plain, grads = pairs, plain, []
        if wanted:
            grads = [torch.zeros_like(q), torch.zeros_like(k)]
            for part in parts:
                x, pull = block.geometry.tile(q[part], k, shared)
                gradient(*tile(part, x))
                pull(x, grads[0][part], grads[1])
        ctx.save_for_backward(q, k, *grads)
        return value.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():  # higher-order gradients were asked for: differentiate the plain formula
            leaves = [z.view_as(z) for z in (q, k)]  # preparing them once more changes nothing
            points = [Points(z, p.code, p.id) for z, p in zip(leaves, (ctx.pairs.q, ctx.pairs.k), strict=True)]
            value = ctx.plain(replace(ctx.pairs, q=points[0], k=points[1], tile=None))
            found = differentiate(value, leaves, grad)
            return None, None, None, None, *found
        return None, None, None, None, *(g * grad for g in grads)
