"""Triplets in which the anchor and the positive change places where the positive is nearer the negative."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..points import Points
from ..walks import Pairs
from . import register_loss
from .common import as_number, softplus, split


@register_loss(
    "swapped_triplet",
    reads="same",
    x="distance",
    geometry="euclidean(normalize=True)",
    form="pairs",
    paper="Balntas, Riba, Ponsa, Mikolajczyk: Learning local feature descriptors with triplets and shallow convolutional "
    "neural networks, BMVC 2016",
)
def swapped_triplet(
    pairs: Pairs,
    *,
    margin: float = 0.2,
    hinge: Literal["hinge", "soft"] = "hinge",
    average: Literal["active", "all"] = "active",
) -> Tensor:
    """Triplet loss with anchor swap: `[d_ap - min(d_an, d_pn) + margin]_+` over all triplets of the batch.

    As `triplet`, but the negative counts from whichever of anchor and positive is nearer it. The paper draws triplets
    of patches, of which this takes all; it is `TripletMarginLoss(swap=True)` of pytorch-metric-learning. Against
    references, the positive and the negative both are references.

    Paper settings: a margin that is not said; the distance of normalised embeddings.
    Cost: O(p k d) time for p positive pairs, memory of a tile: the distances from positives are formed again for each
    of an anchor's positives.

    Args:
        pairs: the pairs, with distances.
        margin: how much nearer the positive must be, in the unit of the distances.
        hinge: `hinge`, or `soft`: `log(1 + exp(d_ap - min(d_an, d_pn) + margin))`, whose every triplet is active.
        average: over the `active` triplets, which cost something, or over `all`.

    Returns:
        A scalar.
    """
    costs = functools.partial(_costs, pairs=pairs, margin=margin, soft=hinge == "soft")
    value, active, every = pairs.reduce(costs, shared=(pairs.k.z,)).sum(0).unbind()
    return value / (active if average == "active" else every).clamp_min(1)


def _costs(x: Tensor, y: Tensor, valid: Tensor, keys: Tensor, *, pairs: Pairs, margin: float, soft: bool) -> Tensor:
    """Rows' sums of costs, numbers of triplets that cost something, and numbers of triplets [q 3]."""
    positive, negative = split(y, valid)
    compiling = torch.compiler.is_compiling()
    width = x.shape[1] if compiling or not len(x) else max(int(positive.sum(1).max()), 1)
    chosen = as_number(positive, x).topk(width, dim=1).indices

    def of_one(x: Tensor, keys: Tensor, column: Tensor) -> Tensor:
        points = Points(keys, pairs.k.code, pairs.k.id)
        from_positive = pairs.between(points[column], points).reduce(_x)
        use = negative & positive.gather(1, column[:, None])
        gap = x.gather(1, column[:, None]) - torch.minimum(x, from_positive) + margin
        cost = torch.where(use, softplus(gap) if soft else gap.relu(), 0)
        return torch.stack([cost.sum(1), as_number(cost > 0, x).sum(1), as_number(use, x).sum(1)], dim=1)

    total = x.new_zeros(len(x), 3)
    for column in chosen.unbind(1):
        if compiling or not torch.is_grad_enabled():
            total = total + of_one(x, keys, column)
        else:
            total = total + checkpoint(of_one, x, keys, column, use_reentrant=False, preserve_rng_state=False)
    return total


def _x(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    return x
