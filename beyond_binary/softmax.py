"""Cross-entropy over learned classes: one description of a loss, a dense and a class-tiled form.

A softmax loss says what becomes of the class scores s [q c]: the logit of a row's own class, and the factor that turns
all other scores into logits. With rest = log-sum-exp of the other logits, a row costs softplus(rest - own), which is
cross-entropy, or rest - own where the own class is left out of the sum.

The tiled form walks the classes twice: first for `rest`, then, with each tile computed again, for the gradient. No
[q c] matrix exists, nor a second copy of the class vectors; their gradient is the only other tensor of that size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import distributed
from .blocks import differentiate
from .geometry import Geometry, cosine, dot
from .losses.common import softplus

TILED = cosine(), dot()  # geometries of the tiled form
EPS = 1e-12  # shortest vector that is brought to length 1, as in torch.nn.functional.normalize


@dataclass(frozen=True)
class Softmax:
    """A softmax loss, options bound.

    Attributes:
        loss: `(s [q])`, or with `norm` `(s [q], norm [q])`, to (logit of the own class [q], factor of the others, a
            float or [q] made of the norm alone); s is the score of the own class.
        merge: `[q c * centers] -> [q c]`, what a class with several centres scores.
        centers: centres of each class.
        others_only: whether the own class is left out of the sum.
        norm: whether the loss reads the norms of the embeddings.
        share: 1, or the number of processes when each holds a part of the rows.
    """

    loss: Callable[..., tuple[Tensor, Tensor | float]]
    merge: Callable[[Tensor], Tensor] | None = None
    centers: int = 1
    others_only: bool = False
    norm: bool = False
    share: int = 1

    def of_classes(self, s: Tensor) -> Tensor:
        """Scores of classes [q c] from scores of centres [q c * centers]."""
        return s if self.merge is None else self.merge(s)

    def value(self, own: Tensor, rest: Tensor) -> Tensor:
        """Cost of each row [q]."""
        return rest - own if self.others_only else softplus(rest - own)

    def scale(self, n: int, device: torch.device) -> float:
        """What the sum of this process's `n` rows is multiplied with: shares over the rows of all processes."""
        return self.share / max(1, sum(distributed.sizes(n, device)) if self.share > 1 else n)

    def total(self, value: Tensor) -> Tensor:
        """The loss from this process's part, which has the factor `share`, without gradient."""
        return value if self.share == 1 else distributed.all_sum(value) / self.share


def dense(softmax: Softmax, geometry: Geometry, z: Tensor, w: Tensor, code: Tensor) -> Tensor:
    """The loss by the plain formula, with an ordinary graph. Memory O(q c) and more."""
    s = softmax.of_classes(geometry.pairs(geometry.prepare(z), geometry.prepare(w)))
    mine = code[:, None] == torch.arange(s.shape[1], device=s.device)
    norm = (torch.linalg.vector_norm(z, dim=1),) if softmax.norm else ()
    own, factor = softmax.loss(s.gather(1, code[:, None])[:, 0], *norm)
    logits = s * (factor[:, None] if isinstance(factor, Tensor) else factor)
    value = softmax.value(own, logits.masked_fill(mine, -torch.inf).logsumexp(1))
    loss = value.sum() * softmax.scale(len(z), z.device)
    return loss + (softmax.total(loss.detach()) - loss.detach()) if softmax.share > 1 else loss


def tiled(softmax: Softmax, geometry: Geometry, z: Tensor, w: Tensor, code: Tensor, rows: int, classes: int) -> Tensor:
    """The same loss for `cosine` or `dot`, in tiles of some rows and classes; memory O((q + c) d + rows classes)."""
    wanted = torch.is_grad_enabled() and (z.requires_grad or w.requires_grad)
    loss: Tensor = _Tiled.apply(softmax, geometry, code, rows, classes, wanted, z, w)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *ctx.plan, wanted, z, w = args
        loss, ctx.grads = _walk(ctx.plan, wanted, z, w)
        ctx.save_for_backward(z, w)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        z, w = ctx.saved_tensors
        if torch.is_grad_enabled():  # higher-order gradients were asked for: differentiate the plain formula
            softmax, geometry, code, *_ = ctx.plan
            loss = dense(softmax, geometry, z, w, code)
            return *[None] * 6, *differentiate(loss, (z, w), grad)
        grads = ctx.grads or _walk(ctx.plan, True, z, w)[1] or ()
        ctx.grads = None  # given away: a second backward computes them again
        return *[None] * 6, *(g.mul_(grad) for g in grads)


def _units(z: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Vectors brought to length 1 (if wanted), and their norms [n 1], at least EPS."""
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(EPS)
    return (z / norm if wanted else z), norm


def _through_units(grad: Tensor, unit: Tensor, norm: Tensor) -> None:
    """Turn the gradient of unit vectors into that of the vectors, in place."""
    grad.addcmul_(torch.linalg.vecdot(grad, unit)[:, None], unit, value=-1).div_(norm)


def _walk(plan: Any, wanted: bool, z: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The loss and the gradients of z and w; the plan is what `tiled` got beside them."""
    softmax, geometry, code, rows, classes = plan
    scale = softmax.scale(len(z), z.device)
    grads = (torch.zeros_like(z), torch.zeros_like(w)) if wanted else None
    value = z.new_zeros((), dtype=torch.float64)
    for start in range(0, len(z), rows):
        part = slice(start, start + rows)
        chunk = _Chunk(softmax, geometry.normalize, code[part], classes, wanted, z[part], w)
        value += chunk.value().sum(dtype=torch.float64)
        if grads is not None:
            chunk.gradient(scale, grads[0][part], grads[1])
    if grads is not None and geometry.normalize:
        for grad, vectors in zip(*(a.split(classes * softmax.centers) for a in (grads[1], w)), strict=True):
            _through_units(grad, *_units(vectors, True))
    return softmax.total(value * scale).to(z.dtype), grads


@dataclass
class _Tile:
    """Some rows against some classes.

    Attributes:
        w: the class vectors, of length 1 where the geometry wants it.
        leaf: scores of the centres with gradient, where they are merged to scores of classes.
        s: scores of classes [q c].
        row: rows whose own class is here.
        column: where it is.
    """

    w: Tensor
    leaf: Tensor | None
    s: Tensor
    row: Tensor
    column: Tensor


class _Chunk:
    """Some rows against all classes: first `value`, then `gradient`."""

    def __init__(
        self, softmax: Softmax, unit: bool, code: Tensor, classes: int, wanted: bool, z: Tensor, w: Tensor
    ) -> None:
        self.softmax, self.unit, self.w, self.wanted = softmax, unit, w, wanted
        self.x, self.norm = _units(z, unit)
        count = len(w) // softmax.centers
        self.edges = [*range(0, count, classes), count]
        self.column, self.order, self.bounds = code, torch.arange(len(z), device=z.device), [0, len(z)]
        self.kept: _Tile | None = None
        if len(self.edges) == 2:
            self.kept = self.tile(0, wanted)
            s = self.kept.s.detach().gather(1, code[:, None])[:, 0]
        else:
            self.column, self.order = code.sort()
            self.bounds = torch.searchsorted(self.column, torch.tensor(self.edges, device=code.device)).tolist()
            s = self.own_scores(code)
        with torch.set_grad_enabled(wanted):
            self.leaves = [s.requires_grad_(wanted)]
            if softmax.norm:
                self.leaves.append(self.norm[:, 0].clone().requires_grad_(wanted))
            self.own_logit, self.graph_factor = softmax.loss(*self.leaves)
        self.own = self.own_logit.detach()
        factor: Any = self.graph_factor
        self.factor: Any = factor.detach()[:, None] if isinstance(factor, Tensor) else factor

    def own_scores(self, code: Tensor) -> Tensor:
        """Score of each row's own class [q]."""
        k = self.softmax.centers
        nearest = (code[:, None] * k + torch.arange(k, device=code.device)).flatten()
        own, _ = _units(self.w[nearest], self.unit)
        return self.softmax.of_classes((own.unflatten(0, (-1, k)) @ self.x[:, :, None])[:, :, 0])[:, 0]

    def tile(self, t: int, wanted: bool, shift: Tensor | None = None) -> _Tile:
        """A tile of classes; with `shift` [q 1] the scores are already logits, less the shift."""
        k, part = self.softmax.centers, slice(self.bounds[t], self.bounds[t + 1])
        w, _ = _units(self.w[self.edges[t] * k : self.edges[t + 1] * k], self.unit)
        places = self.order[part], self.column[part] - self.edges[t]
        if self.softmax.merge is None:
            s = self.x @ w.T if shift is None else torch.addmm(-shift, self.x * self.factor, w.T)
            return _Tile(w, None, s, *places)
        leaf = (self.x @ w.T).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            return _Tile(w, leaf, self.softmax.of_classes(leaf), *places)

    def value(self) -> Tensor:
        """Cost of each row [q]."""
        top = self.x.new_full((len(self.x), 1), -torch.inf)
        mass = torch.zeros_like(top)
        for t in range(len(self.edges) - 1):
            tile = self.kept or self.tile(t, False)
            logits = tile.s.detach() * self.factor if tile.leaf is not None else tile.s.mul_(self.factor)
            logits[tile.row, tile.column] = -torch.inf
            before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
            safe = torch.where(top == -torch.inf, 0, top)
            logits.sub_(safe).exp_()
            mass = mass * (before - safe).exp() + logits.sum(1, keepdim=True)
        self.mass, self.rest, self.weights = mass, (top + mass.log())[:, 0], logits
        return self.softmax.value(self.own, self.rest)

    def gradient(self, scale: float, grad_x: Tensor, grad_w: Tensor) -> None:
        """Add `scale` times the gradient: that of the embeddings, and that of the class vectors as unit vectors."""
        k, alone = self.softmax.centers, self.softmax.others_only
        weight = scale * (torch.ones_like(self.rest) if alone else (self.rest - self.own).sigmoid())
        own, *by_norm = torch.autograd.grad(self.own_logit, self.leaves, -weight, retain_graph=self.softmax.norm)
        amount = weight[:, None] * self.factor
        for t in range(len(self.edges) - 1):
            tile = self.kept or self.tile(t, True, self.rest[:, None] - amount.log())
            if self.kept:
                grad = self.weights.mul_(amount / self.mass)
            elif tile.leaf is None:
                grad = tile.s.exp_()
            else:
                grad = (tile.s.detach() * self.factor).sub_(self.rest[:, None]).exp_().mul_(amount)
            grad[tile.row, tile.column] = own[tile.row]
            if tile.leaf is not None:
                (grad,) = torch.autograd.grad(tile.s, tile.leaf, grad)
            grad_x.addmm_(grad, tile.w)
            grad_w[self.edges[t] * k : self.edges[t + 1] * k].addmm_(grad.T, self.x)
        spread = torch.linalg.vecdot(grad_x, self.x) - own * self.leaves[0].detach() if by_norm else None
        if self.unit:
            _through_units(grad_x, self.x, self.norm)
        if spread is not None:
            share = torch.where(self.factor[:, 0] > 0, spread / self.factor[:, 0], 0)
            (by_factor,) = torch.autograd.grad(self.graph_factor, self.leaves[1], share)  # type: ignore[arg-type]
            pull = (by_norm[0] + by_factor)[:, None]
            grad_x.addcmul_(pull if self.unit else pull / self.norm, self.x)


ByProxy = Callable[..., Tensor]


def by_proxies(
    loss: ByProxy, plain: Callable[[Tensor, Tensor], Tensor], geometry: Geometry, z: Tensor, w: Tensor, code: Tensor,
    mine: slice, classes: int, share: int,
) -> Tensor:  # fmt: skip
    """A loss whose rows are proxies (see `LossFacts.by_proxy`), in tiles of `classes` proxies; memory beside it O(c d).

    Args:
        loss: the loss in its by-proxy form, options bound.
        plain: the same from `z` and `w` with a graph, for higher derivatives.
        geometry: `cosine` or `dot`.
        z: embeddings of all processes [n d].
        w: all proxies [c d].
        code: class of each embedding [n].
        mine: proxies that this process walks.
        classes: proxies in a tile.
        share: number of processes that walk a part each.
    """
    wanted = torch.is_grad_enabled() and (z.requires_grad or w.requires_grad)
    value: Tensor = _ByProxies.apply(loss, plain, geometry, code, mine, classes, share, wanted, z, w)
    return value


class _ByProxies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: ByProxy, plain: Callable[[Tensor, Tensor], Tensor], *args: Any) -> Tensor:
        *plan, wanted, z, w = args
        ctx.plain, ctx.again = plain, (loss, *plan)
        value, ctx.grads = _walk_proxies(ctx.again, wanted, z, w)
        ctx.save_for_backward(z, w)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        z, w = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads: Any = differentiate(ctx.plain(z, w), (z, w), grad)
            return *[None] * 8, *grads
        grads = ctx.grads or _walk_proxies(ctx.again, True, z, w)[1] or ()
        ctx.grads = None
        return *[None] * 8, *(g.mul_(grad) for g in grads)


def _walk_proxies(plan: Any, wanted: bool, z: Tensor, w: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The loss and the gradients of z and w; the plan is what `by_proxies` got beside them."""
    loss, geometry, code, mine, classes, share = plan
    x, norm = _units(z, geometry.normalize)
    column, order = code.sort()
    edges = [*range(mine.start, mine.stop, classes), mine.stop]
    bounds = torch.searchsorted(column, torch.tensor(edges, device=code.device)).tolist()
    counts = max(1, len(code.unique())), len(w)
    grads = (torch.zeros_like(z), torch.zeros_like(w)) if wanted else None
    values = z.new_zeros(2, dtype=torch.float64)
    for t in range(len(edges) - 1 if len(z) else 0):
        part, of = slice(edges[t], edges[t + 1]), slice(bounds[t], bounds[t + 1])
        unit, size = _units(w[part], geometry.normalize)
        s = unit @ x.T
        values += loss(s, column[of] - edges[t], order[of], (share / counts[0], share / counts[1])).double()
        if grads is not None:
            grads[0].addmm_(s.T, unit)
            torch.mm(s, x, out=grads[1][part])
            if geometry.normalize:
                _through_units(grads[1][part], unit, size)
    if grads is not None and geometry.normalize:
        _through_units(grads[0], x, norm)
    total = distributed.all_sum(values) if share > 1 else values
    return (total[0] / counts[0] + total[1] / counts[1]).to(z.dtype), grads
