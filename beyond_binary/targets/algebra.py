"""Targets made from targets: classes out of distances by a radius or by rank, distances scaled and added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import TARGETS, Gives, Target, create_target, estimates, innermost
from .vectors import as_floating


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

    This is the M(Binary) notion of a positive (Kim et al., CVPR 2019), taken over the keys at hand; over a whole training
    set it is `Listed` (in the trainer `objective.nearest`). It is not symmetric.

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


@TARGETS.register("scaled")
class Scaled:
    """A target's distance times a factor, for another unit or for a weight in a `sum`.

    Args:
        target: the target (or its spec) that gives distances.
        factor: what they are multiplied with, positive.
    """

    gives: Gives = "magnitude"

    def __init__(self, target: str | Target, factor: float) -> None:
        if not 0 < factor < math.inf:
            raise ValueError(f"scaled needs a positive, finite factor, got {factor}")
        self.target, self.factor = create_target(target), factor
        self.relative = getattr(self.target, "relative", False)
        if self.target.gives == "order":
            self.gives = "order"

    @property
    def mean(self) -> Any:
        """The inner target's mean of codes, None where it has none."""
        return getattr(self.target, "mean", None)

    @property
    def neighbours(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """The inner target's own search for nearest labels, its distances scaled; None where it has none."""
        return None if getattr(self.target, "neighbours", None) is None else self._neighbours

    def _neighbours(self, *search: Any) -> tuple[Tensor, Tensor]:
        indices, distances = self.target.neighbours(*search)  # type: ignore[attr-defined]
        return indices, distances * self.factor

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """The inner target's code."""
        return self.target.encode(labels, z)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """The inner distances times the factor [q k]."""
        return as_number(self.target.distance(code_q, code_k, valid)) * self.factor


@TARGETS.register("sum")
class Sum:
    """The sum of several targets' distances, each read from its own columns of the label.

    For example angle and object: `sum(('circular', "scaled('classes', factor=90.0)"))` on labels [n 2]. A pair that is
    unknown to one target is unknown.

    Labels: numbers [n m]; a class or an item's number is a whole number.

    Args:
        targets: the targets or their specs.
        columns: how many columns of the label each target reads, in order; None: one each.
    """

    gives: ClassVar[Gives] = "magnitude"

    def __init__(self, targets: Sequence[Any], columns: Sequence[int] | None = None) -> None:
        if any(estimates(target) or isinstance(innermost(target), nn.Module) for target in targets):
            raise ValueError("sum reads its columns without embeddings, where 'estimated' is 'classes': take 'classes'")
        self.targets = [create_target(target) for target in targets]
        self.columns = [1] * len(self.targets) if columns is None else list(columns)
        self.relative = any(getattr(part, "relative", False) for part in self.targets)
        if not self.targets or len(self.columns) != len(self.targets) or min(self.columns) < 1:
            raise ValueError(f"sum needs targets and a number of columns for each, got {targets!r} and {columns!r}")

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """The labels themselves [n m] float64, once each target has accepted its columns."""
        code = as_floating(labels, "sum").double()
        if code.ndim != 2 or code.shape[1] != sum(self.columns):
            raise ValueError(
                f"target 'sum' needs labels of {sum(self.columns)} columns [n {sum(self.columns)}], got {list(code.shape)}"
            )
        for _ in self._codes(code):
            pass
        return code

    def _codes(self, code: Tensor) -> Iterator[Tensor]:
        """Each target's own code of its columns."""
        for target, part in zip(self.targets, code.split(self.columns, dim=1), strict=True):
            whole = part.long()  # every target reads integers, some read nothing else
            if (target.gives == "same") if torch.compiler.is_compiling() else bool((whole == part).all()):
                part = whole
            yield target.encode(part[:, 0] if part.shape[1] == 1 else part)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Summed distances [q k], NaN where a target does not know the pair."""
        return torch.stack(list(self._distances(code_q, code_k, valid))).sum(0)

    def part(self, code_q: Tensor, code_k: Tensor, number: int) -> Tensor:
        """Distances [q k] by one of the targets, counted from 0."""
        if not 0 <= number < len(self.targets):
            raise ValueError(f"expected a part of the sum, 0..{len(self.targets) - 1}, got {number}")
        return list(self._distances(code_q, code_k, None))[number]

    def _distances(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None) -> Iterator[Tensor]:
        """Each target's distances [q k]."""
        for target, q, k in zip(self.targets, self._codes(code_q), self._codes(code_k), strict=True):
            yield as_number(target.distance(q, k, valid)).to(code_q.dtype)


def as_number(y: Tensor) -> Tensor:
    """Label distances as floating numbers (bool, True = different, becomes 1)."""
    return y if y.is_floating_point() else y.to(torch.get_default_dtype())
