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

    def total(self, value: Tensor) -> tuple[Tensor, float]:
        """Sum of the rows of all processes, and what the rows' gradients are multiplied with."""
        both = torch.stack([value.detach().double().sum(), value.new_tensor(len(value), dtype=torch.float64)])
        if self.share > 1:
            both = distributed.all_sum(both)
        rows = both[1].clamp_min(1)
        return both[0] / rows, self.share / rows


def dense(softmax: Softmax, geometry: Geometry, z: Tensor, w: Tensor, code: Tensor) -> Tensor:
    """The loss by the plain formula, with an ordinary graph. Memory O(q c) and more."""
    s = softmax.of_classes(geometry.pairs(geometry.prepare(z), geometry.prepare(w)))
    mine = code[:, None] == torch.arange(s.shape[1], device=s.device)
    norm = (torch.linalg.vector_norm(z, dim=1),) if softmax.norm else ()
    own, factor = softmax.loss(s.gather(1, code[:, None])[:, 0], *norm)
    logits = s * (factor[:, None] if isinstance(factor, Tensor) else factor)
    value = softmax.value(own, logits.masked_fill(mine, -torch.inf).logsumexp(1))
    total, scale = softmax.total(value)
    loss = (value * scale.to(value.dtype)).sum()
    return loss if softmax.share == 1 else loss + (total.to(loss.dtype) - loss.detach())


def tiled(softmax: Softmax, geometry: Geometry, z: Tensor, w: Tensor, code: Tensor, rows: int, classes: int) -> Tensor:
    """The same loss for `cosine` or `dot`, in tiles of some rows and classes; memory O((q + c) d + rows classes)."""
    loss: Tensor = _Tiled.apply(softmax, geometry, code, rows, classes, z, w)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, softmax: Softmax, geometry: Any, code: Tensor, rows: int, classes: int, z: Tensor, w: Tensor
    ) -> Tensor:
        ctx.plan = softmax, geometry, code, rows, classes
        loss, ctx.grads = _walk(*ctx.plan, z.detach(), w.detach(), any(ctx.needs_input_grad))
        ctx.save_for_backward(z, w)
        return loss.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, w = ctx.saved_tensors
        softmax, geometry, code, *_ = ctx.plan
        if torch.is_grad_enabled():  # higher-order gradients were asked for: differentiate the plain formula
            loss = dense(softmax, geometry, z, w, code)
            return None, None, None, None, None, *torch.autograd.grad(loss, (z, w), grad, create_graph=True)
        if ctx.grads is None:
            ctx.grads = _walk(*ctx.plan, z, w, True)[1]
        grads, ctx.grads = ctx.grads, None  # given away: a second backward computes them again
        return None, None, None, None, None, *(g.mul_(grad) for g in grads)


def _units(z: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Vectors brought to length 1 (if wanted), and their norms [n 1]."""
    norm = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return (z / norm.clamp_min(EPS) if wanted else z), norm


def _through_units(grad: Tensor, unit: Tensor, norm: Tensor) -> None:
    """Turn the gradient of unit vectors into that of the vectors, in place."""
    along = torch.linalg.vecdot(grad, unit)[:, None].mul_(norm >= EPS)
    grad.addcmul_(along, unit, value=-1).div_(norm.clamp_min(EPS))


def _walk(
    softmax: Softmax, geometry: Any, code: Tensor, rows: int, classes: int, z: Tensor, w: Tensor, wanted: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The loss and the gradients of z and w."""
    _, scale = softmax.total(z.new_zeros(len(z)))
    grads = (torch.zeros_like(z), torch.zeros_like(w)) if wanted else None
    value = z.new_zeros((), dtype=torch.float64)
    for start in range(0, len(z), rows):
        part = slice(start, start + rows)
        chunk = _Chunk(softmax, geometry.normalize, code[part], classes, *_units(z[part], geometry.normalize), w)
        value += chunk.value().double().sum()
        if grads is not None:
            chunk.gradient(float(scale), grads[0][part], grads[1])
    if grads is not None and geometry.normalize:
        for start in range(0, len(w), chunked := max(1, classes * softmax.centers)):
            part = slice(start, start + chunked)
            _through_units(grads[1][part], *_units(w[part], True))
    if softmax.share > 1:
        value = distributed.all_sum(value)
    return value * (scale / softmax.share), grads


class _Chunk:
    """Some rows against all classes: first `value`, then `gradient`."""

    def __init__(
        self, softmax: Softmax, unit: bool, code: Tensor, classes: int, x: Tensor, norm: Tensor, w: Tensor
    ) -> None:
        self.softmax, self.unit, self.code, self.x, self.norm, self.w = softmax, unit, code, x, norm, w
        k, count = softmax.centers, len(w) // softmax.centers
        self.edges = [*range(0, count, classes), count]
        ranked, self.order = code.sort()
        self.column = ranked
        self.bounds = torch.searchsorted(ranked, torch.tensor(self.edges, device=code.device)).tolist()
        nearest = (code[:, None] * k + torch.arange(k, device=code.device)).flatten()
        centers = _units(w[nearest], unit)[0].unflatten(0, (-1, k))
        with torch.no_grad():
            self.s = softmax.of_classes((centers @ x[:, :, None])[:, :, 0])[:, 0]
        with torch.enable_grad():
            self.leaves = [self.s.requires_grad_()]
            if softmax.norm:
                self.leaves.append(norm[:, 0].clone().requires_grad_())
            self.own, self.factor = softmax.loss(*self.leaves)
        self.kept: tuple[Tensor, Tensor, Tensor | None] | None = None

    def tile(self, t: int, shift: Tensor | None, graph: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Logits (minus shift [q]) of a tile of classes, class vectors, the scores' leaf, and the scores of classes."""
        k = self.softmax.centers
        w, _ = _units(self.w[self.edges[t] * k : self.edges[t + 1] * k], self.unit)
        factor = self.factor.detach()[:, None] if isinstance(self.factor, Tensor) else self.factor
        if self.softmax.merge is None:
            x = self.x * factor
            logits = x @ w.T if shift is None else torch.addmm(-shift[:, None], x, w.T)
            return logits, w, None, logits
        with torch.set_grad_enabled(graph):
            leaf = (self.x @ w.T).requires_grad_(graph)
            s = self.softmax.of_classes(leaf)
        logits = s.detach() * factor
        return (logits if shift is None else logits.sub_(shift[:, None])), w, leaf, s

    def own_places(self, t: int) -> tuple[Tensor, Tensor]:
        """Row and column of the own classes that lie in a tile."""
        part = slice(self.bounds[t], self.bounds[t + 1])
        return self.order[part], self.column[part] - self.edges[t]

    def value(self) -> Tensor:
        """Cost of each row [q]."""
        top = self.x.new_full((len(self.x),), -torch.inf)
        mass = torch.zeros_like(top)
        single = len(self.edges) == 2
        for t in range(len(self.edges) - 1):
            logits, w, leaf, s = self.tile(t, None, single)
            logits[self.own_places(t)] = -torch.inf
            higher = torch.maximum(top, logits.amax(1))
            safe = torch.where(higher == -torch.inf, 0, higher)
            logits.sub_(safe[:, None]).exp_()
            mass = mass * (top - safe).exp() + logits.sum(1)
            top = higher
            if single:
                self.kept = logits, w, leaf, s  # type: ignore[assignment]
        self.top, self.rest = top, top + mass.log()
        return self.softmax.value(self.own.detach(), self.rest)

    def gradient(self, scale: float, grad_x: Tensor, grad_w: Tensor) -> None:
        """Add `scale` times the gradient: that of the embeddings, and that of the class vectors as unit vectors."""
        k, single = self.softmax.centers, len(self.edges) == 2
        factor = self.factor.detach() if isinstance(self.factor, Tensor) else self.factor
        weight = scale * (
            torch.ones_like(self.rest) if self.softmax.others_only else (self.rest - self.own.detach()).sigmoid()
        )
        own, *own_norm = torch.autograd.grad(self.own, self.leaves, -weight, retain_graph=True)
        shift = self.rest - (weight * factor).log()
        for t in range(len(self.edges) - 1):
            if single:
                grad, w, leaf, s = self.kept  # type: ignore[misc]
                grad.mul_((self.top - shift).exp()[:, None])
            else:
                grad, w, leaf, s = self.tile(t, shift, True)
                grad.exp_()
            row, column = self.own_places(t)
            grad[row, column] = own[row]
            if leaf is not None:
                (grad,) = torch.autograd.grad(s, leaf, grad)
            grad_x.addmm_(grad, w)
            grad_w[self.edges[t] * k : self.edges[t + 1] * k].addmm_(grad.T, self.x)
        spread = torch.linalg.vecdot(grad_x, self.x) - own * self.s.detach()
        if self.unit:
            _through_units(grad_x, self.x, self.norm)
        if own_norm:
            (by_factor,) = torch.autograd.grad(self.factor, self.leaves[1], torch.where(factor > 0, spread / factor, 0))
            by_norm = (own_norm[0] + by_factor)[:, None]
            grad_x.addcmul_(by_norm if self.unit else by_norm / self.norm.clamp_min(EPS), self.x)
