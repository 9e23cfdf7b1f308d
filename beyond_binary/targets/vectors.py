"""Targets on plain labels: classes, vectors under three distances, and angles on a circle."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from . import TARGETS, Gives


def as_tensor(labels: Any) -> Tensor:
    """What torch.as_tensor gives, also of reversed or read-only arrays and of pandas' columns and tables."""
    if not isinstance(labels, Tensor) and hasattr(labels, "__array__"):
        labels = np.asarray(labels)
        if min(labels.strides, default=0) < 0 or not labels.flags.writeable:
            labels = labels.copy()
    return torch.as_tensor(labels)


def as_array(values: Any) -> np.ndarray:
    """What np.asarray gives, also of tensors: on any device, with gradients, of a precision that numpy lacks (float32)."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    found: np.ndarray = np.asarray(values)
    return found


def as_floating(labels: Any, target: str) -> Tensor:
    """Labels as a floating tensor in their own precision (integers become float64, half precision float32).

    Raises:
        ValueError: not numeric, or NaN or infinite somewhere (the first such row is named).
    """
    try:
        code = as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target {target!r} needs numeric labels, got {type(labels).__name__}: {error}") from None
    if code.dtype == torch.bool or code.is_complex():
        raise ValueError(f"target {target!r} needs numeric labels, got {code.dtype}")
    if not code.is_floating_point():
        code = code.double()
    code = code.to(torch.promote_types(code.dtype, torch.float32))
    if code.ndim == 0:
        raise ValueError(f"target {target!r} needs one label per item [n ...], got a single number")
    bad = ~as_vectors(code).isfinite().all(1)
    if not torch.compiler.is_compiling() and bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target {target!r} needs finite labels, but row {row} is {code[row].tolist()}; drop or repair such rows"
        )
    return code


def as_vectors(code: Tensor) -> Tensor:
    """One vector per item [n m] (of one number for labels [n])."""
    return code.flatten(1) if code.ndim > 1 else code[:, None]


def exact_cdist(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [q k] between rows, by differences (a matrix product would lose near pairs)."""
    if a.shape[1] == 1:
        return (a - b.T).abs_()
    if not 2 <= a.shape[1] <= 8:
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    gaps = (p[:, None] - q for p, q in zip(a.T.contiguous(), b.T.contiguous(), strict=True))  # quicker for so few
    squares = next(gaps).square_()
    for gap in gaps:
        squares.addcmul_(gap, gap)
    return squares.sqrt_()


@TARGETS.register("classes")
@dataclass(frozen=True)
class Classes:
    """One integer class per item; two items are the same or different.

    Labels: integers [n]. Floats are refused: equality of continuous labels is not a class.
    """

    gives: ClassVar[Gives] = "same"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Integer labels [n] as int64."""
        try:
            code = as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"target 'classes' needs integer labels [n], got {reprlib.repr(labels)}; map class names to numbers, "
                "for example np.unique(names, return_inverse=True)[1]"
            ) from None
        if code.is_floating_point() or code.is_complex():
            raise ValueError(
                f"target 'classes' needs integer labels, got {code.dtype}; continuous labels want a target such as "
                "'euclidean', or within('euclidean', radius=...) to make classes of them"
            )
        if code.ndim != 1:
            raise ValueError(f"target 'classes' needs one label per item [n], got shape {list(code.shape)}")
        return code.long()

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """True where the classes differ [q k]."""
        return code_q[:, None] != code_k[None, :]


@TARGETS.register("euclidean")
@dataclass(frozen=True)
class Euclidean:
    """Vector labels (attributes, coordinates, an age) under the Euclidean distance.

    Labels: numbers [n] or [n m], kept in their own precision. The distance has the labels' unit.
    """

    gives: ClassVar[Gives] = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Vectors [n m]."""
        return as_vectors(as_floating(labels, "euclidean"))

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in the labels' unit."""
        return exact_cdist(code_q, code_k)

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted means [q m] of codes [k m], weights [q k]."""
        return weight.to(code) @ code


@TARGETS.register("manhattan")
@dataclass(frozen=True)
class Manhattan:
    """Vector labels under the Manhattan distance, the sum of absolute differences.

    Labels: numbers [n] or [n m], kept in their own precision. The distance has the labels' unit.
    """

    gives: ClassVar[Gives] = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Vectors [n m]."""
        return as_vectors(as_floating(labels, "manhattan"))

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in the labels' unit."""
        return torch.cdist(code_q, code_k, p=1)

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted means [q m] of codes [k m], weights [q k]."""
        return weight.to(code) @ code


@TARGETS.register("cosine")
@dataclass(frozen=True)
class Cosine:
    """Vector labels (word or sentence embeddings) under the cosine distance, 1 - cos, in [0, 2].

    It is computed as half the squared distance of the unit vectors, which keeps the digits of near pairs. It does not
    fulfil the triangle inequality. Labels: numbers [n m], no zero vectors.
    """

    gives: ClassVar[Gives] = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Unit vectors [n m]."""
        code = as_vectors(as_floating(labels, "cosine"))
        size = torch.linalg.vector_norm(code, dim=1, keepdim=True)
        if not torch.compiler.is_compiling() and (size == 0).any():
            row = int((size[:, 0] == 0).nonzero()[0])
            raise ValueError(f"target 'cosine' needs vectors with a direction, but row {row} is zero")
        return code / size

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in [0, 2]."""
        return exact_cdist(code_q, code_k).square_().div_(2)

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Directions [q m] of the weighted sums of codes [k m], NaN where that is zero; weights [q k]."""
        total = weight.to(code) @ code
        return total / torch.linalg.vector_norm(total, dim=1, keepdim=True)


@TARGETS.register("circular")
@dataclass(frozen=True)
class Circular:
    """Angles, hours or phases: the shorter way round a circle, averaged over components.

    Labels: numbers [n] or [n m], any real value (they wrap). The distance has the labels' unit and is at most
    `period / 2`.

    Args:
        period: what is once around, in the labels' unit: 360 degrees, 24 hours, 2 pi.
    """

    period: float = 360.0
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if not (self.period > 0 and math.isfinite(self.period)):
            raise ValueError(f"circular needs a positive period, got {self.period}")

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Labels wrapped into [0, period), [n m]."""
        return as_vectors(as_floating(labels, "circular")).remainder(self.period)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Arc lengths [q k] in the labels' unit."""
        total = code_q.new_zeros(len(code_q), len(code_k))
        for a, b in zip(code_q.unbind(1), code_k.unbind(1), strict=True):
            gap = (a[:, None] - b[None, :]).abs()
            total += torch.minimum(gap, self.period - gap)
        return total / code_q.shape[1]

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted circular means [q m] of codes [k m] (the angle of the mean point on the circle), weights [q k]."""
        turn = 2 * math.pi / self.period
        return (
            torch.atan2(weight.to(code) @ (turn * code).sin(), weight.to(code) @ (turn * code).cos())
            / turn
            % self.period
        )
