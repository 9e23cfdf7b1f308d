"""Targets on distributions: histograms and Gaussians under the Wasserstein distance, classes that proxies estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .. import distributed
from ..keys import check_classes
from . import TARGETS, Gives
from .vectors import Classes, as_floating, as_vectors, exact_cdist


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

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted means [q m] of codes [k m], weights [q k]."""
        return weight.to(code) @ code


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

    def mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted means [q ...] of codes [k ...]: of means and of roots of covariances; weights [q k]."""
        return torch.tensordot(weight.to(code), code, 1)


@TARGETS.register("estimated")
class Estimated(nn.Module):
    """Classes as distributions that proxies estimate: how alike two items are depends on where their embeddings lie.

    The code of an item is `(1 - weight) one_hot(class) + weight softmax(cos(z, P) / temperature)`, without gradient; P
    are the running means of each class's L2-normalised embeddings over the training batches (of all processes), and
    classes not seen yet have no share. Weight 0 is `classes` (distance 0 or 1), weight 1 forgets the label. It is a
    target for training: where there are no embeddings the code is the one-hot part alone, and other classes than those
    trained on have no proxy, so evaluate with `classes`. It also stands inside `scaled`, `within` and `nearest`; a `sum`,
    which reads no embeddings, refuses it.

    Labels: class numbers `0 .. num_classes - 1`, integers [n].

    Args:
        weight: share of the estimate, 0 to 1.
        temperature: of the softmax.
        momentum: share of the running mean that a batch leaves, 0 (this batch alone) to less than 1.
        kind: `hellinger`, `|sqrt(p) - sqrt(q)| / sqrt(2)`, in [0, 1], or `euclidean`, `|p - q| / sqrt(2)`, in [0, 1].
        num_classes: number of classes; `create_objective` fills it in.
        dim: width of the embeddings; `create_objective` fills it in.
    """

    gives: ClassVar[Gives] = "magnitude"
    proxies: Tensor

    def __init__(
        self,
        weight: float = 0.5,
        temperature: float = 0.1,
        momentum: float = 0.9,
        kind: Literal["hellinger", "euclidean"] = "hellinger",
        num_classes: int | None = None,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes is None or dim is None:
            raise ValueError(
                "target 'estimated' estimates from one proxy per class: give create_objective num_classes= and dim= (the "
                "embedder's width); evaluate with target 'classes'"
            )
        if not (0 <= weight <= 1 and temperature > 0 and 0 <= momentum < 1):
            raise ValueError(
                f"estimated needs weight in 0..1, a positive temperature and momentum in 0..1 (1 excluded), "
                f"got {weight}, {temperature} and {momentum}"
            )
        self.weight, self.temperature, self.momentum, self.kind = weight, temperature, momentum, kind
        self.register_buffer("proxies", torch.zeros(num_classes, dim))

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Distributions [n num_classes]; in training mode the proxies move first."""
        number = Classes().encode(labels)
        if not torch.compiler.is_compiling():
            check_classes(number, len(self.proxies), "proxies")
        if z is None:
            return one_hot(number, len(self.proxies)).to(self.proxies)
        number, z = number.to(z.device), F.normalize(z.detach().to(torch.promote_types(z.dtype, torch.float32)), dim=1)
        label = one_hot(number, len(self.proxies)).to(z)
        if self.weight == 0:
            return label
        if self.training:
            self._follow(z, label)
        unseen = (self.proxies == 0).all(1)
        score = z @ F.normalize(self.proxies.to(z), dim=1).T / self.temperature
        estimate = score.masked_fill(unseen & ~unseen.all(), -torch.inf).softmax(1)
        return (1 - self.weight) * label + self.weight * estimate

    @torch.no_grad()
    def _follow(self, z: Tensor, label: Tensor) -> None:
        total = distributed.all_sum(torch.cat([label.T @ z, label.sum(0)[:, None]], 1))
        mean, count = total[:, :-1] / total[:, -1:].clamp_min(1), total[:, -1:]
        keep = self.momentum * (self.proxies != 0).any(1, keepdim=True).to(self.proxies)
        self.proxies.copy_(torch.where(count > 0, keep * self.proxies + (1 - keep) * mean, self.proxies))

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances between distributions, [q k] in [0, 1]."""
        if self.kind == "hellinger":
            code_q, code_k = code_q.sqrt(), code_k.sqrt()
        return exact_cdist(code_q, code_k).div_(2**0.5)
