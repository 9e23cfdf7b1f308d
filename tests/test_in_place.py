"""In-place forms where batches are large enough that they take their ways by ranks, by blocks and by places."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import beyond_binary as bb
from beyond_binary import blocks
from beyond_binary.losses import in_order, in_place


def labels_of(kind: str, n: int) -> Tensor:
    """Few or many of a class, labels that never tie (but by rounding), that tie in places, or that tie throughout."""
    return {
        "fours": torch.arange(n) // 4,
        "many": torch.arange(n) % 5,
        "vectors": torch.randn(n, 3, dtype=torch.float64),
        "pairs": torch.arange(n) // 2 * 1.0,
        "ages": torch.randint(0, 12, (n,)),
    }[kind]


def outcome(objective: bb.Objective, z: Tensor, labels: Tensor) -> list[Tensor]:
    value = objective(z, labels)
    return [value.detach(), *torch.autograd.grad(value, z)]


ORDERED = ["vectors", "pairs", "ages"]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("contrastive", kind, {"average": "active", "power": p}) for kind in ("fours", "many") for p in (1, 2)),
    ("contrastive", "fours", {"average": "active", "geometry": "squared_euclidean"}),
    ("snr_contrastive", "fours", {}),
    *(("triplet", kind, {"average": average}) for kind in ("fours", "many") for average in ("active", "all")),
    *(("log_ratio", kind, {"ties": ties}) for kind in ORDERED for ties in ("exclude", "include")),
    ("log_ratio", "ages", {"zero_labels": "floor", "embedding_power": 2.0}),
    *(("rank_n_contrast", kind, {"temperature": t}) for kind in ORDERED for t in (2.0, 0.02)),
    *(("dense_triplet", kind, {"ties": ties}) for kind in ORDERED for ties in ("exclude", "include")),
    ("dense_triplet", "vectors", {"average": "active", "margin": 0.5}),
]


@pytest.mark.parametrize(("loss", "kind", "options"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limits", ["as they are", "low"])
def test_quick_ways_equal_the_plain_form(
    loss: str, kind: str, options: dict[str, Any], dtype: torch.dtype, limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limits == "low":
        monkeypatch.setattr(in_place, "MOST_POSITIVES", 1)
        monkeypatch.setattr(in_order, "FEW_TIES", 0)
        monkeypatch.setattr(in_order, "BLOCK", 16)
        monkeypatch.setattr(blocks, "LARGE", 0)
    n = 150
    z, labels = torch.randn(n, 5, dtype=dtype, requires_grad=True), labels_of(kind, n)
    target = "classes" if kind in ("fours", "many") else "euclidean"
    tiled, plain = (bb.create_objective(loss, target=target, block=64, **options) for _ in range(2))
    assert tiled._in_place is not None
    plain._in_place = None
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(outcome(tiled, z, labels), outcome(plain, z, labels), **tolerance)


def test_no_gradient_is_computed_that_nobody_asked_for() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    objective = bb.create_objective("contrastive")
    z, labels = torch.randn(9, 4, requires_grad=True), torch.arange(9) % 3
    expected = objective(z, labels).detach()
    objective._in_place = never
    with torch.no_grad():
        torch.testing.assert_close(objective(z, labels), expected)
    torch.testing.assert_close(objective(z.detach(), labels), expected)
    with pytest.raises(AssertionError):
        objective(z, labels)


def test_distances_that_differ_by_thousands() -> None:
    """Where running sums of exponentials would be 0, Rank-N-Contrast takes its plain form."""
    z = torch.cat([torch.randn(9, 4), 1e4 + torch.randn(9, 4)]).double().requires_grad_()
    labels = torch.randn(18, 1)
    tiled, plain = (bb.create_objective("rank_n_contrast", target="euclidean", block=b) for b in (5, None))
    torch.testing.assert_close(outcome(tiled, z, labels), outcome(plain, z, labels))
