"""Losses of a whole block that know their gradient: one walk over tiles for the value, a second for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .blocks import Pairs, opened
from .geometry import Shared
from .points import Points
from .tiles import Tile

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
        parts = [slice(start, start + rows) for start in range(0, len(q), rows)]

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
            found = torch.autograd.grad(value, leaves, grad, create_graph=True, materialize_grads=True)
            return None, None, None, None, *found
        return None, None, None, None, *(g * grad for g in grads)
