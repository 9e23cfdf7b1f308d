"""Losses of a row's log-sum-exps against pytorch-metric-learning 2.9: values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pml import assert_same, distances, losses, reducers
from torch import Tensor

import beyond_binary as bb

PAIRS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "nt_xent": (
        "nt_xent",
        {"positives": "separate", "temperature": 0.07},
        lambda: losses.NTXentLoss(temperature=0.07),
    ),
    "circle, faces": ("circle", {}, lambda: losses.CircleLoss(m=0.25, gamma=256)),
    "circle, fine-grained": ("circle", {"margin": 0.4, "scale": 80.0}, lambda: losses.CircleLoss(m=0.4, gamma=80)),
    "tuplet_margin": (
        "tuplet_margin",
        {"margin": math.radians(5.73), "variance_weight": 0.0},
        lambda: losses.TupletMarginLoss(margin=5.73, scale=64),
    ),
    "lifted_structure, normalised": (
        "lifted_structure",
        {"geometry": "euclidean(normalize=True)"},
        lambda: losses.LiftedStructureLoss(neg_margin=1, pos_margin=0),
    ),
    "lifted_structure": (
        "lifted_structure",
        {"margin": 0.5},
        lambda: losses.LiftedStructureLoss(
            neg_margin=0.5, pos_margin=0, distance=distances.LpDistance(normalize_embeddings=False)
        ),
    ),
    "n_pairs, normalised": ("n_pairs", {"geometry": "cosine"}, losses.NPairsLoss),
    "n_pairs": (
        "n_pairs",
        {},
        lambda: losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("block", [7, None])
def test_losses_of_tuples(name: str, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    loss, options, theirs = PAIRS[name]
    z, labels = batch
    assert_same(bb.create_objective(loss, block=block, **options)(z, labels), theirs()(z, labels), (z, z))


@pytest.mark.parametrize("geometry", ["euclidean", "euclidean(normalize=True)"])
def test_generalized_lifted_structure(geometry: str, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    theirs = losses.GeneralizedLiftedStructureLoss(
        reducer=reducers.DoNothingReducer(),
        distance=distances.LpDistance(normalize_embeddings="normalize" in geometry),
    )
    alone = labels.bincount()[labels] == 1  # they let these pay for their negatives
    ours = bb.create_objective("generalized_lifted_structure", geometry=geometry, block=7)(z, labels)
    assert_same(ours, theirs(z, labels)["loss"]["losses"][~alone].mean(), (z, z))


@pytest.mark.parametrize("slack", [0.01, 0.3])
@pytest.mark.parametrize("block", [7, None])
def test_intra_pair_variance(slack: float, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    ours = bb.create_objective("tuplet_margin", margin=math.radians(5.73), variance_slack=slack, block=block)(z, labels)
    tuplets, variance = losses.TupletMarginLoss(margin=5.73, scale=64), losses.IntraPairVarianceLoss(slack, slack)
    assert_same(ours, tuplets(z, labels) + 0.5 * variance(z, labels), (z, z))


@pytest.mark.parametrize("alpha", [40, 45, 55])
def test_angular(alpha: int, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    unit = torch.nn.functional.normalize(z)  # they forget to normalise the negatives
    theirs = losses.AngularLoss(alpha=alpha)
    theirs.alpha = theirs.alpha.double()
    ours = bb.create_objective("angular", alpha=float(theirs.alpha.rad2deg()))(z, labels)
    assert_same(ours, theirs(unit, labels), (z, z))


@pytest.mark.parametrize("alpha", [10.0, 45.0, 65.0, 80.0])
def test_angular_in_single_precision(alpha: float) -> None:
    """Also where all points but one coincide, and that one is opposite."""
    spread, labels = torch.randn(30, 8, dtype=torch.float64), torch.arange(30) // 3
    together = spread[:1].repeat(30, 1)
    together[0] *= -1
    objective = bb.create_objective("angular", alpha=alpha)
    for z in (spread, together):
        torch.testing.assert_close(objective(z.float(), labels).double(), objective(z, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 90.0, -45.0, 180.0])
def test_angles_out_of_range_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 81"):
        bb.create_objective("angular", alpha=alpha)
