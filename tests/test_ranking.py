"""Losses of ranks where floating point makes it hard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracles import ranking
from oracles.common import Batch
from torch import Tensor

import beyond_binary as bb


@pytest.mark.parametrize("target", ["classes", "euclidean"])
@pytest.mark.parametrize("block", [7, None])
def test_cosent_of_a_scale_beyond_the_range_of_exponentials(target: str, block: int | None) -> None:
    z = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(20) % 4 if target == "classes" else torch.rand(20, 2, dtype=torch.float64)
    value = bb.create_objective("cosent", target=target, scale=3000.0, block=block)(z, labels)
    first, second = torch.triu_indices(20, 20, 1)
    near = torch.nn.functional.cosine_similarity(z[first], z[second])
    y = (labels[first] != labels[second]).double() if labels.ndim == 1 else (labels[first] - labels[second]).norm(dim=1)
    couples = (3000 * (near[None, :] - near[:, None])).masked_fill(y[:, None] >= y[None, :], -torch.inf)
    expected = couples.flatten().logsumexp(0)
    assert expected > 1000
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, z)[0] for v in (value, expected)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("block", [7, None])
def test_a_small_fastap_keeps_its_digits_in_single_precision(block: int | None) -> None:
    centre, labels = torch.randn(100, 64, dtype=torch.float64), torch.arange(400) // 4

    def outcome(z: Tensor) -> Tensor:
        return bb.create_objective("fastap", block=block)(z, labels).double()

    z = (centre[labels] + 0.4 * torch.randn(400, 64, dtype=torch.float64)).float()
    wide, single = outcome(z.double()), outcome(z)
    assert 0 < wide < 1e-3
    torch.testing.assert_close(single, wide, rtol=2e-5, atol=0)


@pytest.mark.parametrize("block", [2, None])
@pytest.mark.parametrize(("loss", "oracle"), [("fastap", ranking.fastap), ("histogram", ranking.histogram)])
def test_antipodes_fall_into_the_last_bin(
    loss: str, oracle: Callable[[Batch, Batch], float], block: int | None
) -> None:
    turn = torch.tensor([0.0, 180, 90, 270, 180, 270, 169, 181], dtype=torch.float64).deg2rad()
    z = torch.stack([turn.cos(), turn.sin()], 1).round(decimals=12)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 1, 2])
    batch = Batch(z.tolist(), labels.tolist(), range(8))
    value = bb.create_objective(loss, block=block)(z, labels).item()
    assert value == pytest.approx(oracle(batch, batch), rel=1e-12)
    assert value > 0.1
