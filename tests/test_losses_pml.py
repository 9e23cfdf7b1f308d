"""pytorch-metric-learning 2.9 as an outside oracle, where it has the same formula: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pml import CLASSES, DIM, assert_same, distances, losses, miners
from torch import Tensor

import beyond_binary as bb

PAIRS: dict[str, tuple[str, dict[str, Any], Callable[[], Any]]] = {
    "contrastive": (
        "contrastive",
        {"power": 1, "average": "active"},
        lambda: losses.ContrastiveLoss(pos_margin=0, neg_margin=1),
    ),
    "contrastive, tuned margins": (
        "contrastive",
        {"power": 1, "average": "active", "positive_margin": 0.2652, "negative_margin": 0.5409},
        lambda: losses.ContrastiveLoss(pos_margin=0.2652, neg_margin=0.5409),
    ),
    "triplet .05": ("triplet", {"margin": 0.05}, lambda: losses.TripletMarginLoss(margin=0.05)),
    "triplet .2": ("triplet", {"margin": 0.2}, lambda: losses.TripletMarginLoss(margin=0.2)),
    "multi_similarity": (
        "multi_similarity",
        {},
        lambda: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    ),
    "supcon": ("supcon", {}, lambda: losses.SupConLoss(temperature=0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("block", [7, None])
def test_pair_losses(name: str, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    loss, options, theirs = PAIRS[name]
    z, labels = batch
    assert_same(bb.create_objective(loss, block=block, **options)(z, labels), theirs()(z, labels), (z, z))


@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_semi_hard_triplets(margin: float, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    mined = miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard")(z, labels)
    assert len(mined[0]) > 2
    ours = bb.create_objective("triplet", margin=margin, triplets="semi_hard")(z, labels)
    assert_same(ours, losses.TripletMarginLoss(margin=margin)(z, labels, mined), (z, z))


def test_multi_similarity_with_its_miner(batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    mined = miners.MultiSimilarityMiner(epsilon=0.1)(z, labels)
    kept = len(torch.cat([mined[0], mined[2]]).unique())
    ours = bb.create_objective("multi_similarity", beta=40.0, mining="multi_similarity(epsilon=0.1)", block=5)(
        z, labels
    )
    # they divide by the batch size, this library by the rows of which the miner kept something
    theirs = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)(z, labels, mined) * (len(z) / kept)
    assert_same(ours, theirs, (z, z))


@pytest.mark.parametrize("loss", ["normalized_softmax", "proxy_anchor"])
@pytest.mark.parametrize("block", [2, None])
def test_proxy_losses(loss: str, block: int | None, batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    ours = bb.create_objective(loss, num_classes=CLASSES, dim=DIM, block=block).double()
    if loss == "proxy_anchor":
        theirs = losses.ProxyAnchorLoss(CLASSES, DIM, margin=0.1, alpha=32).double()
        theirs.proxies.data = ours.proxies.weight.detach().clone()
        leaf = theirs.proxies
    else:
        theirs = losses.NormalizedSoftmaxLoss(CLASSES, DIM, temperature=0.05).double()
        theirs.W.data = ours.proxies.weight.detach().T.clone()
        leaf = theirs.W
    assert_same(ours(z, labels), theirs(z, labels), (z, z), (ours.proxies.weight, leaf))


def test_squared_distances_as_facenet_has_them(batch: tuple[Tensor, Tensor]) -> None:
    z, labels = batch
    ours = bb.create_objective("triplet", geometry="squared_euclidean(normalize=True)", margin=0.2)(z, labels)
    theirs = losses.TripletMarginLoss(margin=0.2, distance=distances.LpDistance(power=2))(z, labels)
    assert_same(ours, theirs, (z, z))
