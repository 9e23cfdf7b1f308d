"""The block engine: any row loss over tiles of rows, its gradient taken inside the forward pass.

For each tile of rows the engine forms x and y against all keys, evaluates the loss, takes its gradient with respect to
x at once and adds what it means for queries and keys to two [n d] buffers. Nothing of size [q k] survives the tile, and
the backward pass only scales the buffers. The dense form computes the same in one block with an ordinary graph: it is
the reference, and it is what higher derivatives and `torch.compile` go through.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import distributed
from .geometry import Geometry, Shared
from .targets import Target
from .targets.vectors import Classes
from .tiles import Places, Tile, split

if TYPE_CHECKING:
    from .losses import RowLoss

Miner = Callable[[Tensor, Tensor, Tensor], Tensor]


class Join:
    """Which keys equal each query, found by sorting the keys once.

    Args:
        q: integers [q].
        k: integers [k].
    """

    def __init__(self, q: Tensor, k: Tensor) -> None:
        ordered, self.order = k.sort()
        self.first = torch.searchsorted(ordered, q)
        self.count = torch.searchsorted(ordered, q, right=True) - self.first

    def __call__(self, part: slice) -> tuple[Tensor, Tensor]:
        """Row (counted from the part's first) and key of each match, ordered by row."""
        count, first = self.count[part], self.first[part]
        row = torch.repeat_interleave(count)
        offset = first - (count.cumsum(0) - count)
        return row, self.order[torch.arange(len(row), device=row.device) + offset[row]]


def _itself(part: slice) -> tuple[Tensor, Tensor]:
    """What a `Join` of numbers with themselves gives when no two are equal."""
    key = torch.arange(part.start, part.stop)
    return key - part.start, key


def _may_hold_nan(y: Tensor) -> bool:
    """Whether some y is NaN, where it is quicker to look than to go on as if."""
    if torch.compiler.is_compiling() or y.device.type != "cpu" or not y.numel():
        return True
    return bool(y.amax().isnan())


@dataclass(frozen=True)
class Block:
    """A rectangular block of pairs, all but the embeddings: who is compared, and by which loss.

    Attributes:
        geometry: how embeddings are compared.
        target: how labels are compared.
        miner: mask of pairs, options bound, or None.
        code_q: codes of the queries [q ...].
        code_k: codes of the keys [k ...].
        id_q: ids of the queries [q].
        id_k: ids of the keys [k].
        loss: the row loss, options bound (a loss of form `pairs` has none).
        in_place: its in-place form, options bound, if it has one.
        share: 1, or the number of processes when each walks only its part of all rows.
        tile: rows in a tile, None for all: a miner that draws draws by the tile.
    """

    geometry: Geometry
    target: Target
    miner: Miner | None
    code_q: Tensor
    code_k: Tensor
    id_q: Tensor
    id_k: Tensor
    loss: RowLoss | None = None
    in_place: Callable[..., Any] | None = None
    share: int = 1
    tile: int | None = None

    def labels(self, rows: slice, x: Tensor) -> tuple[Tensor, Tensor]:
        """Label distances and valid pairs of some rows, [rows k] each."""
        with torch.no_grad():
            valid = self.id_q[rows, None] != self.id_k[None, :]
            y = self.target.distance(self.code_q[rows], self.code_k, valid)
            if y.is_floating_point():
                valid, y = (valid & ~y.isnan()) if _may_hold_nan(y) else valid, y.to(x.dtype)
            if self.miner is not None:
                nearness = x.detach() if self.geometry.kind == "similarity" else -x.detach()
                valid = valid & self._mined(rows.start or 0, nearness, y, valid)
        return y, valid

    @cached_property
    def _seed(self) -> int:
        return int(torch.randint(1 << 62, ()))

    def _mined(self, start: int, nearness: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        """The miner's mask of rows from `start` on; one that draws draws the same in each walk through the block."""
        assert self.miner is not None
        if torch.compiler.is_compiling():  # there the block is walked once
            return self.miner(nearness, y, valid)
        cuda = nearness.device.type == "cuda"
        masks = []
        with torch.random.fork_rng(devices=[nearness.device] if cuda else []):
            for part in row_parts(len(nearness), self.tile or max(len(nearness), 1)):
                generator = torch.cuda.default_generators[nearness.device.index] if cuda else torch.default_generator
                generator.manual_seed(self._seed + start + part.start)
                masks.append(self.miner(nearness[part], y[part], valid[part]))
        return torch.cat(masks)

    @cached_property
    def _of_class(self) -> Join:
        return Join(self.code_q, self.code_k)

    @cached_property
    def _of_id(self) -> Callable[[slice], tuple[Tensor, Tensor]]:
        if self.id_q is self.id_k and self.id_q.device.type == "cpu" and bool((self.id_q.diff() > 0).all()):
            return lambda part: _itself(slice(part.start, min(part.stop, len(self.id_q))))
        return Join(self.id_q, self.id_k)

    def places(self, part: slice, x: Tensor) -> tuple[Places, Places] | tuple[Tensor, Tensor]:
        """Valid pairs of the same, and pairs that do not count, of some rows: listed for classes, else as masks."""
        if self.miner is not None or not isinstance(self.target, Classes):
            y, valid = self.labels(part, x)
            return split(y, valid)[0], ~valid
        row, column = self._of_class(part)
        other = self.id_q[part][row] != self.id_k[column]
        row, column = row[other], column[other]
        own, twin = self._of_id(part)
        width = len(self.code_k)
        return Places(row, row * width + column), Places(own, own * width + twin)

    def rows(self, x: Tensor, part: slice, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """Numerators and denominators [t] of some rows."""
        assert self.loss is not None
        extra = () if row is None else (row,)
        return _sums(*self.loss(x, *self.labels(part, x), *extra))

    def totals(self, value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators [t] of all processes."""
        if self.share == 1:
            return value, count
        both = distributed.all_sum(torch.stack([value, count]))
        return both[0], both[1]


def _sums(value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    value, count = (a[:, None] if a.ndim == 1 else a for a in (value, count))
    return torch.where(count > 0, value, 0).sum(0), count.sum(0).to(torch.float64)


def dense(block: Block, q: Tensor, k: Tensor, row: Tensor | None = None) -> Tensor:
    """The loss of a block by the plain formula, with an ordinary graph. Memory O(q k) and more."""
    value, count = block.rows(block.geometry.pairs(q, k), slice(None), row)
    all_value, all_count = block.totals(value.detach().double(), count)
    all_count = all_count.clamp_min(1)
    loss = (value * (block.share / all_count).to(value.dtype)).sum()
    if block.share == 1:
        return loss
    return loss + ((all_value / all_count).sum().to(loss.dtype) - loss.detach())


def tiled(block: Block, q: Tensor, k: Tensor, rows: int, row: Tensor | None = None) -> Tensor:
    """The same loss, walked in tiles of `rows` rows; memory O((q + k) d + rows k).

    `row` is what the loss reads beside the pairs, one number a query [q].
    """
    wanted = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in (q, k, row))
    loss: Tensor = _Tiled.apply(block, rows, wanted, q, k, row)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, rows: int, wanted: bool, q: Tensor, k: Tensor, row: Tensor | None) -> Tensor:
        ctx.block = block
        held = None if row is None else row.detach()
        queries = q.detach()
        keys = queries if k is q else k.detach()
        value, count, grads = _walk(block, queries, keys, held, rows, wanted)
        value, count = block.totals(value, count)
        count = count.clamp_min(1)
        for term, n in zip(grads, count.tolist(), strict=False):
            for grad in term:
                grad.mul_(block.share / n)
        for term in grads[1:]:
            for whole, grad in zip(grads[0], term, strict=True):
                whole.add_(grad)
        ctx.save_for_backward(q, k, row, *(grads[0] if grads else ()))
        return (value / count).sum().to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, row, *grads = ctx.saved_tensors
        if torch.is_grad_enabled():  # higher-order gradients were asked for: differentiate the plain formula
            leaves = [z.view_as(z) for z in (q, k, row) if z is not None]  # two nodes, also if q and k are one tensor
            again = differentiate(dense(ctx.block, *leaves), leaves, grad)
            return None, None, None, *again, *([None] if row is None else [])
        return None, None, None, *(g * grad for g in grads), *([None] if row is None else [])


def differentiate(output: Any, inputs: Sequence[Tensor], grad: Any) -> list[Tensor]:
    """Gradients with a graph, zeros where the output does not depend on an input."""
    wanted = [z for z in inputs if z.requires_grad]
    grads = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    found = [next(grads) if z.requires_grad else None for z in inputs]
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, inputs, strict=True)]


def centred(geometry: Geometry, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Both about the keys' mean where the geometry allows it: differences keep more digits there."""
    if geometry.shift_invariant and len(k):
        centre = k.mean(0)
        moved = k - centre
        return (moved if q is k else q - centre), moved
    return q, k


def row_parts(n: int, rows: int) -> list[slice]:
    """Slices of `rows` rows, at least one."""
    return [slice(start, start + rows) for start in range(0, max(n, 1), rows)]


def _walk(
    block: Block, q: Tensor, k: Tensor, row: Tensor | None, rows: int, wanted: bool
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Numerators, denominators [t] and, per term, the gradients of its numerator with respect to q, k (and row)."""
    q, k = centred(block.geometry, q, k)
    values: list[Tensor] = []
    counts: list[Tensor] = []
    grads: list[list[Tensor]] = []
    shared = Shared()
    for part in row_parts(len(q), rows):
        x, pull = block.geometry.tile(q[part], k, shared)
        value, count, found = _tile(block, x, part, None if row is None else row[part], wanted, shared)
        values.append(value.double())
        counts.append(count)
        if wanted and not grads:
            leaves = (q, k) if row is None else (q, k, row)
            grads = [[torch.zeros_like(z) for z in leaves] for _ in value]
        for whole, (grad_x, *grad_row) in zip(grads, found, strict=False):
            if isinstance(grad_x, Tensor):
                pull(grad_x, whole[0][part], whole[1])
            else:
                places, slope = grad_x
                _pull_places(block.geometry, places, slope, q[part], k, whole[0][part], whole[1])
            for g in grad_row:
                whole[2][part] += g
    return torch.stack(values).sum(0), torch.stack(counts).sum(0), grads


def _tile(
    block: Block, x: Tensor, part: slice, row: Tensor | None, wanted: bool, shared: Shared
) -> tuple[Tensor, Tensor, list[list[Any]]]:
    """Numerators, denominators [t] of one tile and the gradients of each numerator with respect to x (and row)."""
    if not wanted:
        with torch.no_grad():
            return *block.rows(x, part, row), []
    if block.in_place is not None:
        with torch.no_grad():
            tile = opened(block, x, part, shared, row)
            rows = block.in_place(tile)
            if rows is not None:
                if rows[0].ndim == 2:
                    return *_sums(*rows), [[_apart(tile)], [tile.x]]
                grad = tile.x if tile.sparse is None else tile.sparse
                return *_sums(*rows), [[grad] if tile.grad_row is None else [grad, tile.grad_row]]
    with torch.enable_grad():
        leaves = [z.detach().requires_grad_() for z in (x, row) if z is not None]
        value, count = block.rows(leaves[0], part, leaves[1] if row is not None else None)
        grads = [gradients(v, leaves) for v in value.unbind()]
    return value.detach(), count, grads


def opened(block: Block, x: Tensor, part: slice, shared: Shared, row: Tensor | None = None) -> Tile:
    """A tile for an in-place form."""
    if block.geometry.kind == "distance":  # which is read again by its pull
        grad = shared.memory("grad", x.shape, x).copy_(x)
    else:
        grad = x

    def labels(rows: slice) -> tuple[Tensor, Tensor]:
        return block.labels(slice(part.start + rows.start, part.start + rows.stop), x[rows])

    return Tile(grad, functools.partial(block.places, part, x), labels, shared, row)


FEW, LARGE = 1 / 32, 1 << 17  # part of a tile of at least so many pairs up to which places are pulled back one by one


def _apart(tile: Tile) -> Tensor | tuple[Places, Tensor]:
    """The gradient at the places of the same, taken out of a tile."""
    slope = tile.take(tile.same)
    tile.put(tile.same, 0.0)
    if tile.x.numel() >= LARGE and len(slope) <= FEW * tile.x.numel():
        return tile.same, slope
    return torch.zeros_like(tile.x).view(-1).scatter_(0, tile.same.flat, slope).view_as(tile.x)


def _pull_places(
    geometry: Geometry, places: Places, slope: Tensor, q: Tensor, k: Tensor, grad_q: Tensor, grad_k: Tensor
) -> None:
    """Pull back a gradient that is 0 but for some places."""
    for row, flat, some in zip(*(t.split(1 << 12) for t in (places.row, places.flat, slope)), strict=True):
        column = flat - row * len(k)
        of_q, of_k = geometry.pull_each(q[row], k[column], some)
        grad_q.index_add_(0, row, of_q)
        grad_k.index_add_(0, column, of_k)


def gradients(value: Tensor, leaves: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """Gradients with respect to leaves, zeros where the value does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(value, leaves, grad, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]
