"""What all oracles share: points as plain lists, distances in plain loops, and the case of a loss.

Every oracle takes queries, keys (the batch itself, references, or the proxies) and the loss's options, and returns the
loss. A pair counts unless both have the same id. Nothing here comes from the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    z: Sequence[Sequence[float]]
    label: Sequence[Any]
    id: Sequence[int]

    def __len__(self) -> int:
        return len(self.z)


def euclid(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def unit(a: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in a))
    return [x / length for x in a]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def chord(a: Sequence[float], b: Sequence[float]) -> float:
    return euclid(unit(a), unit(b))


def others(q: Batch, i: int, k: Batch, same: bool) -> list[int]:
    """Keys of the same (or of another) class as query i, without itself."""
    return [j for j in range(len(k)) if k.id[j] != q.id[i] and (k.label[j] == q.label[i]) is same]


def mean(values: Sequence[float]) -> float:
    """Mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def some_classes(n: int) -> Tensor:
    """Classes of unequal size; with 9 items class 3 has one and class 4 none."""
    return torch.tensor([0, 1, 0, 2, 1, 0, 1, 3, 2]).repeat(n // 9 + 1)[:n]


def vectors(n: int) -> Tensor:
    return torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def grades(n: int) -> Tensor:
    """Few levels: many equal label distances, some of them zero."""
    return torch.tensor([[0], [1], [3], [1], [2], [0], [3], [1], [5]]).repeat(n // 9 + 1, 1)[:n].double()


@dataclass(frozen=True)
class Case:
    """A loss with the options, target and labels that it is put to the test with."""

    loss: str
    options: dict[str, Any] = field(default_factory=dict)
    target: str = "classes"
    labels: Callable[[int], Tensor] = some_classes

    def __str__(self) -> str:
        labels = [] if self.labels is some_classes else [self.labels.__name__]
        return "-".join([self.loss, *labels, *(f"{k}={v}" for k, v in self.options.items())])
