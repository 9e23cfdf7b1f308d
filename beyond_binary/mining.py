"""Miners: masks that say which of the valid pairs a loss should see.

A miner reads similarities x (larger = nearer; distances come negated), label distances y and the valid pairs, and
returns a mask that is a subset of `valid`. It sees all keys of a row at once. A pair of a miner that speaks of triplets
stays if it takes part in one such triplet. Miners that draw use torch's global generator.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .losses.common import any_in_row, as_number
from .registry import Registry
from .tiles import split

MINERS = Registry("miner")


@MINERS.register("multi_similarity")
def multi_similarity(x: Tensor, y: Tensor, valid: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Keep pairs that the other side overlaps within `epsilon` (Wang et al., CVPR 2019, equations 8 and 9).

    A negative stays if it is nearer than the farthest positive plus `epsilon`, a positive if it is farther than the
    nearest negative minus `epsilon`. A row without a positive or without a negative keeps nothing.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    farthest = x.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    nearest = x.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    return (positive & (x < nearest + epsilon)) | (negative & (x > farthest - epsilon))


@MINERS.register("batch_hard")
def batch_hard(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Keep the farthest positive and the nearest negative of each row (Hermans et al., 2017, equation 5).

    The first of equals is kept. A row without a positive or without a negative keeps nothing.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    far = x.masked_fill(~positive, torch.inf).argmin(1, keepdim=True)
    near = x.masked_fill(~negative, -torch.inf).argmax(1, keepdim=True)
    keep = torch.zeros_like(valid).scatter(1, far, True).scatter(1, near, True)
    return keep & valid & positive.any(1, keepdim=True) & negative.any(1, keepdim=True)


@MINERS.register("all")
def all_violating(x: Tensor, y: Tensor, valid: Tensor, *, margin: float = 0.2) -> Tensor:
    """Keep pairs of triplets that violate a margin: d_an - d_ap <= `margin` (pytorch-metric-learning's `all`).

    Cost O(k) a row: the farthest positive decides for each negative, the nearest negative for each positive.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    farthest = x.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    nearest = x.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    return (positive & (x - nearest <= margin)) | (negative & (farthest - x <= margin))


@MINERS.register("hard")
def hard(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Keep pairs of triplets in which the negative is at least as near as the positive: d_an <= d_ap. Cost O(k) a row."""
    return all_violating(x, y, valid, margin=0.0)


@MINERS.register("semi_hard")
def semi_hard(
    x: Tensor, y: Tensor, valid: Tensor, *, margin: float = 0.2, definition: Literal["window", "facenet"] = "window"
) -> Tensor:
    """Keep pairs of semi-hard triplets (Schroff et al., CVPR 2015).

    `window`: d_ap < d_an <= d_ap + `margin`, as pytorch-metric-learning. `facenet`: each positive with the nearest
    negative beyond it, or with the farthest negative if none is. As the pairs of different triplets mix in the mask, a
    loss on triplets sees more triplets than those; `triplet(triplets=...)` takes exactly those. Cost O(k log k) a row.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    near, order = torch.where(negative, -x, torch.inf).sort(1)
    beyond = torch.searchsorted(near, -x, right=True)
    if definition == "window":
        far = torch.where(positive, x, torch.inf).sort(1).values  # as nearness, so that both sides round alike
        within = torch.searchsorted(near, margin - x, right=True)
        before = torch.searchsorted(far, x, right=True), torch.searchsorted(far, x + margin, right=True)
        return (positive & (within > beyond)) | (negative & (before[1] > before[0]))
    last = negative.sum(1, keepdim=True) - 1
    chosen = order.gather(1, torch.minimum(beyond, last.clamp_min(0)))
    picked = torch.zeros_like(y, dtype=torch.int32).scatter_add_(1, chosen, positive.int()) > 0
    return (positive & (last >= 0)) | (negative & picked)


@MINERS.register("easy_positive")
def easy_positive(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Keep the nearest positive of each row, and all its negatives (Xuan, Stylianou, Pless, WACV 2020).

    The first of equals is kept. A row without a positive or without a negative keeps nothing. Cost O(k) a row.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    near = x.masked_fill(~positive, -torch.inf).argmax(1, keepdim=True)
    first = torch.zeros_like(valid).scatter(1, near, True)
    return _with_partners(first & positive, negative)


@MINERS.register("distance_weighted")
def distance_weighted(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    dim: int = 128,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    reads: Literal["distance", "cosine"] = "distance",
) -> Tensor:
    """Keep all positives and as many negatives, drawn evenly over distances (Wu et al., ICCV 2017, section 4).

    A negative at distance d is drawn, without replacement, with a weight of one over the density of d between random
    points of a unit sphere in `dim` dimensions (an objective gives the embeddings' width): `log w = (2 - dim) log d - (dim - 3) / 2 log(1 - d^2 / 4)`, d counted
    as at least `cutoff`, and none from `nonzero_loss_cutoff` on (alpha + beta of the margin loss, which costs nothing
    there). A row with fewer such negatives keeps those it has; one with none, or no positive, keeps nothing. The paper
    draws one negative per positive pair, with replacement; its code falls back to any item of the batch, and
    pytorch-metric-learning lets all weights of a row underflow in high dimensions. Here weights stay logarithms.

    It needs embeddings on the unit sphere: `reads="distance"` for `euclidean(normalize=True)`, `"cosine"` for cosine.
    Cost O(k log k) a row.
    """
    positive, negative = split(y, valid)
    nearness = x if reads == "distance" else (2 - 2 * x).clamp_min(0).sqrt().neg()
    allowed = negative & (nearness > -nonzero_loss_cutoff)
    square = nearness.clamp(-2 + 1e-6, -cutoff).square_()
    log_weight = square.log().mul_(1 - dim / 2).add_(square.div_(-4).log1p_(), alpha=(3 - dim) / 2)
    return _with_partners(positive, _draw(log_weight, allowed, as_number(positive, x).sum(1, keepdim=True)))


@MINERS.register("binary")
def binary(x: Tensor, y: Tensor, valid: Tensor, *, positives: int = 5) -> Tensor:
    """Keep a few random positives of each row and all negatives (binary mining of Kim et al., CVPR 2019).

    Their baseline calls the 30 nearest labels of the whole training set positive and draws 5 of them for each anchor:
    take the target `Listed`, or `nearest(..., k=30)`, which looks within the batch, and this miner; or the sampler
    `dense_triplet(k=5, pool=30)`, which draws them into the batch, and no miner. Cost O(k log k) a row.
    """
    positive, negative = split(y, valid)
    wanted = x.new_full((len(x), 1), positives)
    return _draw(torch.zeros_like(x), positive, wanted) | negative


@MINERS.register("dense", reads="anything")
def dense(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Keep all pairs (dense mining of Kim et al., CVPR 2019): the triplets are all i, j with y_i < y_j.

    Which triplets of a row count is for the loss to say (`log_ratio`, `dense_triplet`); the name is there so that a
    configuration can say it as the paper does.
    """
    return valid


def _draw(log_weight: Tensor, allowed: Tensor, number: Tensor) -> Tensor:
    """Mask of `number` [q 1] allowed keys a row, without replacement, by weight: the largest after Gumbel noise."""
    noise = _uniform(log_weight).clamp_min_(torch.finfo(log_weight.dtype).tiny).log_().neg_().log_()
    score = torch.where(allowed, torch.sub(log_weight, noise, out=noise), -torch.inf)
    width = score.shape[1]
    most = width if torch.compiler.is_compiling() or not len(score) else min(width, int(number.max()))
    first = score.topk(most, dim=1).indices
    wanted = torch.arange(most, device=score.device) < number
    return torch.zeros_like(allowed).scatter_(1, first, wanted) & allowed


def _uniform(like: Tensor) -> Tensor:
    """Random numbers in [0, 1), seeded by torch's generator; numpy makes them in half the time."""
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand_like(like)
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(1 << 62, ()))))
    return torch.from_numpy(generator.random(like.shape, like.numpy().dtype))


def _with_partners(positive: Tensor, negative: Tensor) -> Tensor:
    """Both masks, but nothing in rows that lack one of the two."""
    return (positive | negative) & (any_in_row(positive) & any_in_row(negative))[:, None]
