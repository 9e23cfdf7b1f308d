"""Targets on labels that are distributions: histograms and Gaussians under the Wasserstein distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from . import TARGETS, Gives
from .vectors import as_floating, as_vectors, exact_cdist


@TARGETS.register("histogram")
@dataclass(frozen=True)
class Histogram:
    """Earth mover's (1-Wasserstein) distance between histograms over equally spaced bins.

    On a line it is the summed difference of the cumulated histograms (Vallender, 1974), on a circle the same about
    its median over the bins (Werman, Peleg and Rosenfeld, 1985). Labels: non-negative numbers [n bins]; each row is
    divided by its sum. The distance has the unit of `width`.

    Args:
        width: distance between neighbouring bins.
        circular: whether the last bin is the first one's neighbour (hours, hues, directions).
    """

    width: float = 1.0
    circular: bool = False
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if not 0 < self.width < float("inf"):
            raise ValueError(f"histogram: width must be positive and finite, got {self.width}")

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Cumulated histograms times the width [n bins]."""
        mass = as_floating(labels, "histogram")
        if mass.ndim != 2:
            raise ValueError(f"target 'histogram' needs histograms [n bins], got shape {list(mass.shape)}")
        total = mass.sum(1, keepdim=True)
        bad = (mass < 0).any(1) | (total[:, 0] <= 0)
        if not torch.compiler.is_compiling() and bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"target 'histogram' needs numbers of at least 0 with a positive sum, but row {row} is {mass[row].tolist()}"
            )
        return self.width * (mass / total).cumsum(1)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in the unit of `width`."""
        if not self.circular:
            return torch.cdist(code_q[:, :-1], code_k[:, :-1], p=1)  # the last bin is 1 in all of them
        rows = [row - code_k for row in code_q]
        gaps = [(gap - gap.median(1, keepdim=True).values).abs_().sum(1) for gap in rows]
        return torch.stack(gaps) if gaps else code_q.new_zeros(0, len(code_k))


@TARGETS.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """2-Wasserstein distance between Gaussians, in closed form.

    With diagonal covariances it is the Euclidean distance of means and standard deviations. With full ones,
    `W2^2 = |m1 - m2|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))` (Dowson and Landau, 1982), computed as the smallest
    `|A^(1/2) - B^(1/2) U|` over rotations U, which loses no digits where the two are near.

    Labels: `diagonal`: mean and standard deviation side by side [n 2m]; `full`: means as a first column beside the
    covariance matrices [n m 1+m]. The distance has the labels' unit.

    Args:
        covariance: `diagonal` or `full`.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    gives: ClassVar[Gives] = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Mean beside the square root of the covariance: [n 2m], or [n m 1+m]."""
        code = as_floating(labels, "gaussian")
        if self.covariance == "full":
            return self._roots(code)
        if code.ndim != 2 or code.shape[1] % 2:
            raise ValueError(
                f"target 'gaussian' needs means and standard deviations side by side [n 2m], got {list(code.shape)}"
            )
        if not torch.compiler.is_compiling() and (code[:, code.shape[1] // 2 :] < 0).any():
            row = int((code[:, code.shape[1] // 2 :] < 0).any(1).nonzero()[0])
            raise ValueError(f"target 'gaussian': row {row} has a negative standard deviation: {code[row].tolist()}")
        return code

    def _roots(self, code: Tensor) -> Tensor:
        if code.ndim != 3 or code.shape[2] != code.shape[1] + 1:
            raise ValueError(
                f"target 'gaussian(full)' needs a mean beside a covariance [n m 1+m], got {list(code.shape)}"
            )
        values, vectors = torch.linalg.eigh(code[..., 1:])
        slack = 1e-6 * values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(code.dtype).tiny)
        bad = (values < -slack).any(1) | ((code[..., 1:] - code[..., 1:].mT).abs() > slack[..., None]).flatten(1).any(1)
        if not torch.compiler.is_compiling() and bad.any():
            raise ValueError(
                f"target 'gaussian': the covariance of row {int(bad.nonzero()[0])} is not symmetric and positive semi-definite"
            )
        root = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
        return torch.cat([code[..., :1], root], 2)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] in the labels' unit."""
        if self.covariance == "diagonal":
            return exact_cdist(code_q, code_k)
        total = exact_cdist(as_vectors(code_q[..., 0]), as_vectors(code_k[..., 0])).square_()
        for row, root in enumerate(code_q[..., 1:]):  # a row at a time: q k m^2 numbers would be many
            u, _, v = torch.linalg.svd(code_k[..., 1:].mT @ root)
            total[row] += (root - code_k[..., 1:] @ (u @ v)).square().sum((1, 2))
        return total.sqrt_()
