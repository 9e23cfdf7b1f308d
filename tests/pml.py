"""What the comparisons with pytorch-metric-learning share: batches, and equality of values and gradients."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

__all__ = [
    "BATCHES",
    "CLASSES",
    "DIM",
    "assert_same",
    "distances",
    "losses",
    "miners",
    "reducers",
    "regularizers",
]

DIM, CLASSES = 6, 5
BATCHES = {
    "balanced": torch.arange(CLASSES - 1).repeat(6),
    "large classes": torch.tensor([0] * 45 + [1] * 20 + [2] * 3),
    "unequal": torch.tensor([0] * 9 + [1] * 7 + [2] * 5 + [3] * 2 + [4]),
}


def assert_same(ours: Tensor, theirs: Tensor, *inputs: tuple[Tensor, Tensor]) -> None:
    """Equal values, and equal gradients for pairs (our leaf, their leaf)."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.item() > 1e-3
    got = torch.autograd.grad(ours, [a for a, _ in inputs])
    expected = torch.autograd.grad(theirs, [b for _, b in inputs])
    for (_, leaf), g, e in zip(inputs, got, expected, strict=True):
        torch.testing.assert_close(g, e.reshape(leaf.shape) if g.shape == leaf.shape else e.T, rtol=1e-8, atol=1e-10)
