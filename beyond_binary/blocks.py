"""The block engine: any row loss over tiles of rows, its gradient taken inside the forward pass.

For each tile of rows the engine forms x and y against all keys, evaluates the loss, takes its gradient with respect to
x at once and adds what it means for queries and keys to two [n d] buffers. Nothing of size [q k] survives the tile, and
the backward pass only scales the buffers. The dense form computes the same in one block with an ordinary graph: it is
the reference, and it is what higher derivatives and `torch.compile` go through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .geometry import Geometry
from .losses import RowLoss
from .targets import Target

Miner = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """A rectangular block of pairs, all but the embeddings: who is compared, and by which loss.

    Attributes:
        geometry: how embeddings are compared.
        target: how labels are compared.
        loss: the row loss, options bound.
        in_place: its in-place form, options bound, if it has one.
        miner: mask of pairs, options bound, or None.
        code_q: codes of the queries [q ...].
        code_k: codes of the keys [k ...].
        id_q: ids of the queries [q].
        id_k: ids of the keys [k].
        share: 1, or the number of processes when each walks only its part of all rows.
    """

    geometry: Geometry
    target: Target
    loss: RowLoss
    in_place: RowLoss | None
    miner: Miner | None
    code_q: Tensor
    code_k: Tensor
    id_q: Tensor
    id_k: Tensor
    share: int = 1

    def labels(self, rows: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Label distances and valid pairs of some rows, [rows k] each."""
        with torch.no_grad():
            valid = self.id_q[rows, None] != self.id_k[None, :]
            y = self.target.distance(self.code_q[rows], self.code_k, valid)
            if y.is_floating_point():
                valid, y = valid & ~y.isnan(), y.to(x.dtype)
            if self.miner is not None:
                nearness = x.detach() if self.geometry.kind == "similarity" else -x.detach()
                valid = valid & self.miner(nearness, y, valid)
        return y, valid

    def sums(self, value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators [t] of some rows."""
        value, count = (a[:, None] if a.ndim == 1 else a for a in (value, count))
        return torch.where(count > 0, value, 0).sum(0), count.sum(0).to(torch.float64)

    def totals(self, value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators [t] of all processes."""
        if self.share == 1:
            return value, count
        both = distributed.all_sum(torch.stack([value, count]))
        return both[0], both[1]


def dense(block: Block, q: Tensor, k: Tensor) -> Tensor:
    """The loss of a block by the plain formula, with an ordinary graph. Memory O(q k) and more."""
    x = block.geometry.pairs(q, k)
    value, count = block.sums(*block.loss(x, *block.labels(slice(None), x)))
    all_value, all_count = block.totals(value.detach().double(), count)
    all_count = all_count.clamp_min(1)
    loss = (value * (block.share / all_count).to(value.dtype)).sum()
    if block.share == 1:
        return loss
    return loss + ((all_value / all_count).sum().to(loss.dtype) - loss.detach())


def tiled(block: Block, q: Tensor, k: Tensor, rows: int) -> Tensor:
    """The same loss, walked in tiles of `rows` rows; memory O((q + k) d + rows k)."""
    loss: Tensor = _Tiled.apply(block, rows, q, k)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, rows: int, q: Tensor, k: Tensor) -> Tensor:
        ctx.block = block
        value, count, grads = _walk(block, q.detach(), k.detach(), rows, any(ctx.needs_input_grad))
        value, count = block.totals(value, count)
        count = count.clamp_min(1)
        for term, n in zip(grads, count.tolist(), strict=False):
            for grad in term:
                grad.mul_(block.share / n)
        for term in grads[1:]:
            for whole, grad in zip(grads[0], term, strict=True):
                whole.add_(grad)
        ctx.save_for_backward(q, k, *(grads[0] if grads else ()))
        return (value / count).sum().to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():  # higher-order gradients were asked for: differentiate the plain formula
            q, k = q.view_as(q), k.view_as(k)  # two nodes, also where queries and keys are one tensor
            loss = dense(ctx.block, q, k)
            again = torch.autograd.grad(loss, (q, k), grad, create_graph=True, allow_unused=True)
            return None, None, *(torch.zeros_like(z) if g is None else g for g, z in zip(again, (q, k), strict=True))
        return None, None, *(g * grad for g in grads)


def _walk(
    block: Block, q: Tensor, k: Tensor, rows: int, wanted: bool
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Numerators, denominators [t] and, per term, the gradients of its numerator with respect to q and k."""
    if block.geometry.shift_invariant and len(k):
        centre = k.mean(0)
        q, k = q - centre, k - centre
    values: list[Tensor] = []
    counts: list[Tensor] = []
    grads: list[tuple[Tensor, Tensor]] = []
    for start in range(0, max(len(q), 1), rows):
        part = slice(start, start + rows)
        x, pull = block.geometry.tile(q[part], k)
        value, count, grads_x = _tile(block, x, part, wanted)
        values.append(value.double())
        counts.append(count)
        if wanted and not grads:
            grads = [(torch.zeros_like(q), torch.zeros_like(k)) for _ in value]
        for (grad_q, grad_k), grad_x in zip(grads, grads_x, strict=False):
            pull(grad_x, grad_q[part], grad_k)
    return torch.stack(values).sum(0), torch.stack(counts).sum(0), grads


def _tile(block: Block, x: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Numerators, denominators [t] of one tile and the gradient of each numerator with respect to x."""
    y, valid = block.labels(part, x)
    if not wanted:
        with torch.no_grad():
            return *block.sums(*block.loss(x, y, valid)), []
    if block.in_place is not None:
        with torch.no_grad():
            grad = x if block.geometry.kind == "similarity" else x.clone()  # distances are read again by their pull
            return *block.sums(*block.in_place(grad, y, valid)), [grad]
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value, count = block.sums(*block.loss(leaf, y, valid))
        grads = [_gradient(v, leaf) for v in value.unbind()]
    return value.detach(), count, grads


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of a numerator with respect to the tile, zeros where it does not depend on it."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if grad is None else grad
