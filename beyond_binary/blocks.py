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
from .geometry import Geometry, Pull, Shared
from .points import Points
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
            for part in _parts(len(nearness), self.tile or max(len(nearness), 1)):
                generator = torch.cuda.default_generators[nearness.device.index] if cuda else torch.default_generator
                generator.manual_seed(self._seed + start + part.start)
                masks.append(self.miner(nearness[part], y[part], valid[part]))
        return torch.cat(masks)

    @cached_property
    def _of_class(self) -> Join:
        return Join(self.code_q, self.code_k)

    @cached_property
    def _of_id(self) -> Join:
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
            again = _differentiate(dense(ctx.block, *leaves), leaves, grad)
            return None, None, None, *again, *([None] if row is None else [])
        return None, None, None, *(g * grad for g in grads), *([None] if row is None else [])


def _differentiate(output: Any, inputs: Sequence[Tensor], grad: Any) -> list[Tensor]:
    """Gradients with a graph, zeros where the output does not depend on an input."""
    wanted = [z for z in inputs if z.requires_grad]
    grads = iter(torch.autograd.grad(output, wanted, grad, create_graph=True, allow_unused=True))
    found = [next(grads) if z.requires_grad else None for z in inputs]
    return [torch.zeros_like(z) if g is None else g for g, z in zip(found, inputs, strict=True)]


def _centred(geometry: Geometry, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Both about the keys' mean where the geometry allows it: differences keep more digits there."""
    if geometry.shift_invariant and len(k):
        centre = k.mean(0)
        moved = k - centre
        return (moved if q is k else q - centre), moved
    return q, k


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, max(n, 1), rows)]


def _walk(
    block: Block, q: Tensor, k: Tensor, row: Tensor | None, rows: int, wanted: bool
) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Numerators, denominators [t] and, per term, the gradients of its numerator with respect to q, k (and row)."""
    q, k = _centred(block.geometry, q, k)
    values: list[Tensor] = []
    counts: list[Tensor] = []
    grads: list[list[Tensor]] = []
    shared = Shared()
    for part in _parts(len(q), rows):
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
                of_row = [] if tile.grad_row is None else [tile.grad_row]
                return *_sums(*rows), ([[tile.x, *of_row]] if rows[0].ndim == 1 else [[_apart(tile)], [tile.x]])
    with torch.enable_grad():
        leaves = [z.detach().requires_grad_() for z in (x, row) if z is not None]
        value, count = block.rows(leaves[0], part, leaves[1] if row is not None else None)
        grads = [_gradients(v, leaves) for v in value.unbind()]
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


def _gradients(value: Tensor, leaves: Sequence[Tensor], grad: Tensor | None = None) -> list[Tensor]:
    """Gradients with respect to leaves, zeros where the value does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(value, leaves, grad, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(grads, leaves, strict=True)]


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

    def of_keys(self) -> Pairs:
        """Keys against keys."""
        return self.between(self.k, self.k)

    def prepared(self) -> tuple[Tensor, Tensor]:
        """Embeddings of queries and keys as the geometry compares them (normalised, for instance)."""
        q = self.block.geometry.prepare(self.q.z)
        return q, q if self.k.z is self.q.z else self.block.geometry.prepare(self.k.z).to(q.dtype)

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
        q, k = _centred(pairs.block.geometry, q, k)
        assert pairs.tile is not None
        results = []
        for part in _parts(len(q), pairs.tile):
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
            return None, None, None, *_differentiate(again, inputs, grad)
        q, k, *extra = (z.detach() for z in ctx.saved_tensors)
        whole, memory = [torch.zeros_like(z) for z in (q, k, *extra)], Shared()
        q, k = _centred(block.geometry, q, k)
        for part in _parts(len(q), pairs.tile):
            x, pull = block.geometry.tile(q[part], k, memory)
            own = [z[part] if i < ctx.split else z for i, z in enumerate(extra)]
            with torch.enable_grad():
                leaves = [z.detach().requires_grad_() for z in (x, *own)]
                result = ctx.fn(leaves[0], *block.labels(part, x), *leaves[1:])
                grad_x, *rest = _gradients(result, leaves, grad[part])
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
        q, k = _centred(pairs.block.geometry, q, k)
        shared, extra = rest[:split], rest[split:]
        assert pairs.tile is not None
        found, memory = [], Shared()
        for part in _parts(len(q), pairs.tile):
            tile, near, pull = _negatives(pairs.block, q, k, part, memory)
            result, finish = forms[1](tile, *shared)
            found.append((result, near, tile.same.row + part.start, tile.same.flat % len(k)))
        ctx.sizes = [len(near) for _, near, *_ in found]
        result, near, row, column = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.pairs, ctx.forms, ctx.split = pairs, forms, split
        with torch.enable_grad():
            leaves = [z.requires_grad_() for z in (result, near, *extra)]
            loss = forms[2](result, Same(row, column, near, torch.ones_like(row, dtype=torch.bool)), *extra)
            grads = _gradients(loss, leaves) if any(ctx.needs_input_grad) else []
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
            return None, None, None, *_differentiate(again, inputs, grad)
        slope, near, *of_extra = (g * grad for g in grads)
        q, k, *shared = (z.detach() for z in inputs[:stop])
        whole = [torch.zeros_like(z) for z in inputs[:stop]]
        q, k = _centred(block.geometry, q, k)
        (last, ctx.last), memory = (ctx.last, None), Shared()
        for part, some in reversed(list(zip(_parts(len(q), pairs.tile), near.split(ctx.sizes), strict=True))):
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
