"""pytorch-metric-learning 2.9 as an outside oracle of the ranking losses: values and gradients."""

from __future__ import annotations

import pytest
import torch
from pml import DIM, assert_same, losses
from torch import Tensor

import beyond_binary as bb
from beyond_binary.losses import ranking


@pytest.mark.parametrize("bins", [10, 27])
@pytest.mark.parametrize("block", [7, None])
def test_fastap(block: int | None, bins: int, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    ours = bb.create_objective("fastap", bins=bins, block=block)(z, labels)
    assert_same(ours, losses.FastAPLoss(num_bins=bins)(z, labels), (z, z))


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
def test_smooth_ap(temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs is right where there are as many classes as items of each (it takes one number for the other)."""
    monkeypatch.setattr(ranking, "CHUNK", chunk)
    z, labels = torch.randn(25, DIM, dtype=torch.float64, requires_grad=True), torch.arange(5).repeat_interleave(5)
    ours = bb.create_objective("smooth_ap", temperature=temperature, with_query=True, block=7)(z, labels)
    torch.set_default_dtype(torch.float64)  # that of their result
    try:
        theirs = losses.SmoothAPLoss(temperature=temperature)(z, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(ours, theirs, (z, z))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("steps", [100, 16])
@pytest.mark.parametrize("block", [7, None])
def test_histogram(block: int | None, steps: int, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    ours = bb.create_objective("histogram", steps=steps, block=block)(z, labels)
    torch.set_default_dtype(torch.float64)  # that of their nodes
    try:
        theirs = losses.HistogramLoss(n_bins=steps)(z, labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(ours, theirs, (z, z))
