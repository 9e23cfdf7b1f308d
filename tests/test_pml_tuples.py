"""Losses of a row's log-sum-exps against pytorch-metric-learning 2.9: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
