"""How each registered loss is put to the test: with which labels, targets and options.

A loss that is registered without a case here fails `test_losses.py`; everything else follows from its case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import oracles
import torch
from torch import Tensor
from torch.func import functional_call

from beyond_binary import Objective, create_objective
from beyond_binary.losses import LOSSES, LossFacts

CLASSES, DIM = 5, 4


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
    loss: str
    options: dict[str, Any] = field(default_factory=dict)
    target: str = "classes"
    labels: Callable[[int], Tensor] = some_classes

    def __str__(self) -> str:
        labels = [] if self.labels is some_classes else [self.labels.__name__]
        return "-".join([self.loss, *labels, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def facts(self) -> LossFacts:
        facts: LossFacts = LOSSES[self.loss].info["facts"]
        return facts


def graded(**options: Any) -> Case:
    return Case("log_ratio", options, "euclidean", grades)


CASES = [
    Case("contrastive"),
    Case("contrastive", {"power": 1, "average": "active", "positive_margin": 0.2, "negative_margin": 1.2}),
    Case("triplet"),
    Case("triplet", {"margin": 0.5, "triplets": "semi_hard"}),
    Case("triplet", {"margin": 0.3, "average": "all"}),
    Case("multi_similarity"),
    Case("supcon"),
    Case("normalized_softmax"),
    Case("proxy_anchor"),
    Case("pd_loss"),
    Case("pd_loss", {"gap_floor": 3.0, "variance_floor": 1e-3}),
    Case("log_ratio", {}, "euclidean", vectors),
    graded(),
    graded(ties="include", zero_labels="floor", label_floor=0.1, eps=1e-3),
    graded(embedding_power=2.0, label_power=0.5),
]
FIRST = [case for i, case in enumerate(CASES) if case.loss not in {c.loss for c in CASES[:i]}]  # one per loss
assert len({str(case) for case in CASES}) == len(CASES)
OF_ITEMS = [case for case in CASES if not case.facts.needs_proxies]


def build(case: Case, **options: Any) -> Objective:
    """The objective of a case, with proxies if it needs them."""
    if case.facts.needs_proxies:
        options = {"num_classes": CLASSES, "dim": DIM, **options}
    return create_objective(case.loss, **{"target": case.target, **case.options, **options})


def inputs(case: Case, n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings [n DIM], labels, and a list of the proxies if there are any; all leaves of a graph."""
    draw = torch.Generator().manual_seed(n)
    z = torch.randn(n, DIM, dtype=torch.float64, generator=draw)
    proxies = [torch.randn(CLASSES, DIM, dtype=torch.float64, generator=draw)] if case.facts.needs_proxies else []
    return z.to(dtype).requires_grad_(), case.labels(n), [p.to(dtype).requires_grad_() for p in proxies]


def call(objective: Objective, z: Tensor, labels: Any, proxies: list[Tensor], *refs: Any, **options: Any) -> Tensor:
    """The objective's value, with `proxies` in the place of its own."""
    own = {"proxies.weight": proxies[0]} if proxies else {}
    value: Tensor = functional_call(objective, own, (z, labels, *refs), options)
    return value


def value_and_grads(
    objective: Objective, z: Tensor, labels: Any, proxies: list[Tensor], **options: Any
) -> list[Tensor]:
    """[value, gradient of the embeddings, gradient of the proxies (if any)]."""
    value = call(objective, z, labels, proxies, **options)
    return [value.detach(), *torch.autograd.grad(value, [z, *proxies])]


def oracle(case: Case, z: Tensor, labels: Tensor, proxies: list[Tensor], ids: Tensor | None = None) -> float:
    """The oracle's value for a batch against itself or against the proxies."""
    items = batch(z, labels, torch.arange(len(z)) if ids is None else ids)
    keys = batch(proxies[0], torch.arange(CLASSES), -1 - torch.arange(CLASSES)) if proxies else items
    return oracles.ORACLES[case.loss](items, keys, **case.options)


def batch(z: Tensor, labels: Tensor, ids: Tensor) -> oracles.Batch:
    return oracles.Batch(z.tolist(), labels.tolist(), ids.tolist())
