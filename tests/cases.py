"""How each registered loss is put to the test: builds objectives and inputs for the cases of `oracles`.

A loss that is registered without a case and an oracle fails `test_losses.py`; everything else follows from its case.
"""

from __future__ import annotations

from typing import Any

import oracles
import torch
from oracles import CASES, Case
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from beyond_binary import Objective, create_objective
from beyond_binary.losses import LOSSES, LossFacts
from beyond_binary.registry import options_of

CLASSES, DIM = 5, 4


def facts_of(case: Case) -> LossFacts:
    facts: LossFacts = LOSSES[case.loss].info["facts"]
    return facts


FIRST = [case for i, case in enumerate(CASES) if case.loss not in {c.loss for c in CASES[:i]}]  # one per loss
assert len({str(case) for case in CASES}) == len(CASES)
DERIVED = [
    case
    for case in CASES
    if not (case.loss == "circle" and case.options.get("detach", True)) and "hardness" not in case.options
]
"""Cases whose gradient is the derivative of their value: not circle or a hardness, whose weights are constants to the gradient."""
OF_ITEMS = [case for case in CASES if not facts_of(case).needs_proxies]


def takes_anchors(case: Case) -> bool:
    """Whether a part of the items may be rows while all are keys."""
    facts = facts_of(case)
    return (facts.form, facts.rows, facts.keys) == ("rows", "item", "item")


def centers_of(case: Case) -> int:
    """How many proxies a class has."""
    merge = facts_of(case).merge
    return case.options.get("centers", options_of(merge)["centers"] if merge else 1)


def build(case: Case, **options: Any) -> Objective:
    """The objective of a case, with proxies if it needs them."""
    if facts_of(case).needs_proxies:
        options = {"num_classes": CLASSES, "dim": DIM, **options}
    return create_objective(case.loss, **{"target": case.target, **case.options, **options})


def inputs(case: Case, n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings [n DIM], labels, and a list of the proxies if there are any; all leaves of a graph."""
    draw = torch.Generator().manual_seed(n)
    z = torch.randn(n, DIM, dtype=torch.float64, generator=draw)
    count = CLASSES * centers_of(case) if facts_of(case).needs_proxies else 0
    proxies = [torch.randn(count, DIM, dtype=torch.float64, generator=draw)] if count else []
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
    of_proxies = torch.arange(CLASSES).repeat_interleave(centers_of(case))
    keys = batch(proxies[0], of_proxies, -1 - torch.arange(len(of_proxies))) if proxies else items
    return oracles.ORACLES[case.loss](items, keys, **case.options)


def batch(z: Tensor, labels: Tensor, ids: Tensor) -> oracles.Batch:
    return oracles.Batch(z.tolist(), labels.tolist(), ids.tolist())


class Largest(TorchDispatchMode):
    """How many numbers the largest float64 tensor holds that is made (labels, proxies' own too, are compared in float32)."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [
            t.numel()
            for t in torch.utils._pytree.tree_leaves(made)
            if isinstance(t, Tensor) and t.dtype == torch.double
        ]
        self.numbers = max([self.numbers, *sizes])
        return made
