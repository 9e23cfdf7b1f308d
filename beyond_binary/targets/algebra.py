"""Targets made from targets: classes out of distances, by a radius or by rank."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from . import TARGETS, Gives, Target, create_target


@TARGETS.register("within")
class Within:
    """Same if the label distance is at most `radius`, else different; unknown pairs stay unknown.

    Args:
        target: the target (or its spec) that gives distances.
        radius: largest distance that still counts as the same, in the inner target's unit.
    """

    gives: ClassVar[Gives] = "same"

    def __init__(self, target: str | Target, radius: float) -> None:
        if not radius >= 0:
            raise ValueError(f"within needs a radius of at least 0, got {radius}")
        self.target, self.radius = create_target(target), radius
        self.relative = getattr(self.target, "relative", False)

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """The inner target's code."""
        return self.target.encode(labels, z)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """0 within the radius, 1 beyond, NaN where unknown [q k]."""
        y = as_number(self.target.distance(code_q, code_k, valid))
        return torch.where(y.isnan(), y, (y > self.radius).to(y))


@TARGETS.register("nearest")
class Nearest:
    """Same if the key is among the query's `k` label-nearest valid keys (ties at the k-th distance included).

    This is the M(Binary) notion of a positive (Kim et al., CVPR 2019), taken over the keys at hand. It is not
    symmetric.

    Args:
        target: the target (or its spec) that gives distances.
        k: how many of the nearest keys are the same.
    """

    gives: ClassVar[Gives] = "same"
    relative: ClassVar[bool] = True

    def __init__(self, target: str | Target, k: int) -> None:
        if k < 1:
            raise ValueError(f"nearest needs k of at least 1, got {k!r}")
        self.target, self.k = create_target(target), k

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """The inner target's code."""
        return self.target.encode(labels, z)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """0 for the k nearest, 1 for the others, NaN where unknown [q k]."""
        y = as_number(self.target.distance(code_q, code_k, valid))
        usable = ~y.isnan() if valid is None else valid & ~y.isnan()
        reach = torch.where(usable, y, torch.inf)
        if reach.shape[1] > self.k:
            reach = reach.topk(self.k, dim=1, largest=False).values.amax(1, keepdim=True)
            return torch.where(y.isnan(), y, (y > reach).to(y))
        return torch.where(y.isnan(), y, torch.zeros_like(y))


def as_number(y: Tensor) -> Tensor:
    """Label distances as floating numbers (bool, True = different, becomes 1)."""
    return y if y.is_floating_point() else y.to(torch.get_default_dtype())
