"""Geometries: how near two embeddings are, for every pair of a block.

A geometry has two faces. `pairs` is the plain formula, differentiable to any order, the reference. `tile` is what the
block engine uses: the same numbers by one matrix product, plus a function that pulls a gradient of the block back to
both sides. Distances by a matrix product lose near pairs to cancellation, so `tile` recomputes those by differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Registry

Kind = Literal["similarity", "distance"]
Pull = Callable[[Tensor, Tensor, Tensor], None]
"""(grad_x [q k], grad_q [q d], grad_k [k d]): adds the pulled-back gradient to the last two, in place."""

GEOMETRIES = Registry("geometry")


class Shared:
    """What the tiles of one walk against the same keys share: the keys' side, and memory (fresh memory is slow)."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What the first tile makes, for all."""
        if name not in self._held:
            self._held[name] = make()
        return self._held[name]

    def memory(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory of a shape in the type of `like`, with anything in it; the next tile gets the same."""
        held = self._held.get(name)
        if held is None or held.numel() < math.prod(shape):
            held = self._held[name] = like.new_empty(shape).flatten()
        return held[: math.prod(shape)].view(*shape)


class Geometry(Protocol):
    """What a geometry offers. `kind` says whether larger x means nearer (similarity) or farther (distance)."""

    @property
    def kind(self) -> Kind:
        """Similarity or distance."""

    @property
    def shift_invariant(self) -> bool:
        """Whether moving all points by the same vector changes nothing (the engine then centres them first)."""

    def prepare(self, z: Tensor) -> Tensor:
        """What is done to each embedding before pairs are formed, for example L2 normalisation [n d]."""

    def pairs(self, q: Tensor, k: Tensor) -> Tensor:
        """x [q k] of prepared embeddings, the plain formula."""

    def pull_each(self, q: Tensor, k: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of q and k [n d] from that of the x [n] of each query with a key of its own."""

    def tile(self, q: Tensor, k: Tensor, shared: Shared | None = None) -> tuple[Tensor, Pull]:
        """x [q k] without a graph, in memory of its own or `shared`, and the function that pulls its gradient back."""

    def block(self, q: Tensor, k: Tensor) -> Tensor:
        """x [q k] as `tile` computes it, for when no gradient is wanted."""


@dataclass(frozen=True)
class _Product:
    normalize: bool = False
    kind: ClassVar[Kind] = "similarity"
    shift_invariant: ClassVar[bool] = False

    def prepare(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.normalize else z

    def pairs(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.T

    def pull_each(self, q: Tensor, k: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        return slope[:, None] * k, slope[:, None] * q

    def tile(self, q: Tensor, k: Tensor, shared: Shared | None = None) -> tuple[Tensor, Pull]:
        def pull(grad_x: Tensor, grad_q: Tensor, grad_k: Tensor) -> None:
            grad_q.addmm_(grad_x, k)
            grad_k.addmm_(grad_x.T, q)

        return torch.mm(q, k.T, out=(shared or Shared()).memory("x", (len(q), len(k)), q)), pull

    def block(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.T


@dataclass(frozen=True)
class _Distance:
    normalize: bool = False
    squared: bool = False
    kind: ClassVar[Kind] = "distance"
    shift_invariant: ClassVar[bool] = True

    def prepare(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.normalize else z

    def pairs(self, q: Tensor, k: Tensor) -> Tensor:
        d2 = (q[:, None] - k[None]).square().sum(-1)
        return d2 if self.squared else safe_sqrt(d2)

    def pull_each(self, q: Tensor, k: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        gap = q - k
        if self.squared:
            slope = 2 * slope
        else:
            x = torch.linalg.vector_norm(gap, dim=1)
            slope = torch.where(x > 0, slope / x, 0)
        gap.mul_(slope[:, None])
        return gap, -gap

    def tile(self, q: Tensor, k: Tensor, shared: Shared | None = None) -> tuple[Tensor, Pull]:
        shared = shared or Shared()
        d2, near = squared_distances(q, k, shared)
        x = d2 if self.squared else d2.sqrt_()

        def pull(grad_x: Tensor, grad_q: Tensor, grad_k: Tensor) -> None:
            grad = shared.memory("pull", grad_x.shape, grad_x)
            if self.squared:
                return pull_squared(grad.copy_(grad_x), 2, near, q, k, grad_q, grad_k)
            torch.div(grad_x, x, out=grad)  # times 1/2; a distance of 0 is always among the near pairs
            pull_squared(grad, 1, near, q, k, grad_q, grad_k, x)

        return x, pull

    def block(self, q: Tensor, k: Tensor) -> Tensor:
        d2, _ = squared_distances(q, k)
        return d2 if self.squared else d2.sqrt_()


@dataclass(frozen=True)
class _SignalToNoise:
    normalize: bool = True
    eps: float = 1e-8
    kind: ClassVar[Kind] = "distance"
    shift_invariant: ClassVar[bool] = False

    def prepare(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1) if self.normalize else z

    def _power(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Summed squares of centred signals, and the same kept off zero [q 1]."""
        signal = q.square().sum(1, keepdim=True)
        return signal, signal.clamp_min(self.eps * max(q.shape[1] - 1, 1))

    def pairs(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = _centre(q), _centre(k)
        return (q[:, None] - k[None]).square().sum(-1) / self._power(q)[1]

    def pull_each(self, q: Tensor, k: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        q, k = _centre(q), _centre(k)
        signal, power = self._power(q)
        gap = q - k
        rate = 2 * slope[:, None] / power
        of_power = torch.where(signal == power, gap.square().sum(1, keepdim=True) / power, 0)
        gap.mul_(rate)
        return gap - rate * of_power * q, -gap

    def tile(self, q: Tensor, k: Tensor, shared: Shared | None = None) -> tuple[Tensor, Pull]:
        shared = shared or Shared()
        keys, q = k, _centre(q)
        k = shared.once("centred", lambda: _centre(keys))
        d2, near = squared_distances(q, k, shared)
        signal, power = self._power(q)
        x = d2.div_(power)

        def pull(grad_x: Tensor, grad_q: Tensor, grad_k: Tensor) -> None:
            grad = shared.memory("pull", grad_x.shape, grad_x)
            of_power = -torch.where(signal == power, row_dots(grad_x, x)[:, None] / power, 0)
            of_q, of_k = 2 * of_power * q, torch.zeros_like(k)
            pull_squared(torch.div(grad_x, power, out=grad), 2, near, q, k, of_q, of_k)
            grad_q.add_(_centre(of_q))
            grad_k.add_(_centre(of_k))

        return x, pull

    def block(self, q: Tensor, k: Tensor) -> Tensor:
        return self.tile(q, k)[0]


def _centre(z: Tensor) -> Tensor:
    """Each embedding about the mean of its coordinates."""
    return z - z.mean(-1, keepdim=True)


@GEOMETRIES.register("cosine")
def cosine() -> Geometry:
    """Cosine similarity, in [-1, 1]; a zero embedding has similarity 0 to everything."""
    return _Product(normalize=True)


@GEOMETRIES.register("dot")
def dot() -> Geometry:
    """Inner product."""
    return _Product()


@GEOMETRIES.register("euclidean")
def euclidean(normalize: bool = False) -> Geometry:
    """Euclidean distance; its gradient at coincident points is 0. `normalize` puts the points on the sphere first."""
    return _Distance(normalize=normalize)


@GEOMETRIES.register("squared_euclidean")
def squared_euclidean(normalize: bool = False) -> Geometry:
    """Squared Euclidean distance; `normalize` puts the points on the unit sphere first (then it is 2 - 2 cosine)."""
    return _Distance(normalize=normalize, squared=True)


@GEOMETRIES.register("snr")
def snr(normalize: bool = True, eps: float = 1e-8) -> Geometry:
    """Signal-to-noise distance `var(k - q) / var(q)` over coordinates, the query being the signal; not symmetric.

    `normalize` puts the points on the unit sphere first, as pytorch-metric-learning does and the paper (Yuan et al.,
    CVPR 2019) does not say. A signal's variance counts as at least `eps`, so that a constant embedding stays finite.
    """
    return _SignalToNoise(normalize, eps)


def create_geometry(spec: str | Geometry) -> Geometry:
    """Build a geometry from a spec such as `cosine` or `euclidean(normalize=True)`.

    Raises:
        ValueError: unknown name or option (near names are suggested).
    """
    if not isinstance(spec, str):
        return spec
    geometry: Geometry = GEOMETRIES.create(spec)
    return geometry


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 instead of infinity (to any order)."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each row with the other's row [n], without a graph; on the CPU by numpy, which needs no memory."""
    if a.device.type != "cpu":
        return torch.linalg.vecdot(a, b)
    return torch.from_numpy(np.einsum("ij,ij->i", a.numpy(), b.numpy()))


Near = tuple[Tensor, Tensor]


def squared_distances(q: Tensor, k: Tensor, shared: Shared | None = None) -> tuple[Tensor, Near]:
    """Squared distances [q k] by a matrix product, and the (row, column) of the pairs redone by differences.

    A pair is redone where cancellation would cost more than about five digits of relative precision.
    """
    if q.numel() == 0 or k.numel() == 0:
        return q.new_zeros(len(q), len(k)), (none := torch.zeros(0, dtype=torch.int64, device=q.device), none)
    shared = shared or Shared()
    size_q, size_k = _size(q), shared.once("size", lambda: _size(k))
    keys = shared.once("keys", lambda: torch.cat([k, torch.ones_like(size_k), size_k], 1))  # adds the sizes
    rows = torch.cat([-2 * q, size_q, torch.ones_like(size_q)], 1)
    d2 = torch.mm(rows, keys.T, out=shared.memory("x", (len(q), len(k)), q))
    limit = 1e5 * torch.finfo(d2.dtype).eps
    row, column = _up_to(d2, limit * (size_q.amax() + size_k.amax()))
    for i, j in zip(row.split(1 << 16), column.split(1 << 16), strict=True):
        d2[i, j] = (q[i] - k[j]).square().sum(1)
    return d2, (row, column)


def _size(z: Tensor) -> Tensor:
    """Squared length of each vector [n 1]."""
    return z.square().sum(1, keepdim=True)


def _up_to(x: Tensor, limit: Tensor) -> Near:
    """Row and column of each entry of at most `limit`."""
    if x.device.type != "cpu":
        row, column = (x <= limit).nonzero(as_tuple=True)
        return row, column
    flat = torch.from_numpy(np.flatnonzero(x.numpy() <= limit.numpy()))  # several times faster than torch
    return flat // x.shape[1], flat % x.shape[1]


def pull_squared(
    grad: Tensor,
    factor: float,
    near: Near,
    q: Tensor,
    k: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    x: Tensor | None = None,
) -> None:
    """Add the gradient of `sum(grad * d2) * factor / 2` to `grad_q` and `grad_k`; near pairs by their differences.

    `grad` is used up. Where `x` is given, near pairs with x = 0 have no gradient.
    """
    row, column = near
    flat = row * len(k) + column
    close = factor * grad.view(-1)[flat]
    if x is not None:
        close = torch.where(x.view(-1)[flat] > 0, close, 0)
    grad.view(-1).index_fill_(0, flat, 0.0)
    for part in close.nonzero()[:, 0].split(1 << 16):  # most often a point and itself, without a gradient
        i, j = row[part], column[part]
        step = (q[i] - k[j]) * close[part][:, None]
        grad_q.index_add_(0, i, step)
        grad_k.index_add_(0, j, -step)
    grad_q.addmm_(grad, k, alpha=-factor).addcmul_(grad.sum(1)[:, None], q, value=factor)
    grad_k.addmm_(grad.T, q, alpha=-factor).addcmul_(grad.sum(0)[:, None], k, value=factor)
