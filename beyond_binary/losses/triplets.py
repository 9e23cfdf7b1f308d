"""Triplet losses over all triplets of a row, without ever listing a triplet."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import Rows, register_loss
from .common import as_number, split


@register_loss(
    "triplet",
    reads="same",
    x="distance",
    geometry="euclidean(normalize=True)",
    paper="Schroff, Kalenichenko, Philbin: FaceNet, CVPR 2015; Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017",
)
def triplet(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    margin: float = 0.2,
    triplets: Literal["all", "semi_hard"] = "all",
    average: Literal["active", "all"] = "active",
) -> Rows:
    """Triplet hinge `[d_ap - d_an + margin]_+` over all triplets of each row (equation 2 of FaceNet).

    FaceNet squares the distances (`geometry="squared_euclidean(normalize=True)"`) and sums; the default here is the
    plain distance of Hermans et al. and pytorch-metric-learning, averaged over the triplets that cost something.

    With a row's positives sorted by falling distance and their prefix sums S_k, a negative at distance d_n meets the
    first k positives, those with d_p > d_n - margin, and adds S_k + k (margin - d_n): time O(k log positives) a row.

    Paper settings: margin 0.2, `triplets="semi_hard"` on squared distances (FaceNet).
    Cost: O(k log positives) time and O(k) memory a row.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        margin: how much nearer the positive must be, in the unit of x.
        triplets: `all`, or `semi_hard`: only those with d_ap < d_an < d_ap + margin.
        average: over the `active` triplets, or over `all` triplets considered valid (|positives| x |negatives|).

    Returns:
        value and count [q].
    """
    if triplets not in ("all", "semi_hard") or average not in ("active", "all"):
        raise ValueError(f"triplet: unknown triplets={triplets!r} or average={average!r}")
    positive, negative = split(y, valid)
    positives, negatives = as_number(positive, x).sum(1), as_number(negative, x).sum(1)
    width = x.shape[1] if torch.compiler.is_compiling() or not len(x) else max(int(positives.max()), 1)
    far, order = torch.where(positive, x, -torch.inf).topk(width, dim=1)
    real = positive.gather(1, order)
    prefix = torch.nn.functional.pad(torch.where(real, far, 0).cumsum(1), (1, 0))

    met = _farther(far, x - margin, negative)
    number, total = met, prefix.gather(1, met)
    if triplets == "semi_hard":  # without those at d_p >= d_n, which come first
        skipped = torch.minimum(_farther(far, x, negative, equal=True), met)
        number, total = met - skipped, total - prefix.gather(1, skipped)
    number = number.to(x.dtype)
    value = torch.addcmul(total, number, margin - x).sum(1)
    return value, number.sum(1) if average == "active" else positives * negatives


def _farther(far: Tensor, limit: Tensor, mask: Tensor, equal: bool = False) -> Tensor:
    """How many of the row's falling distances [q p] exceed (or equal) each limit [q k]; 0 outside `mask`."""
    far, limit = far.detach(), limit.detach()
    if far.shape[1] > 32 or torch.compiler.is_compiling():
        number = torch.searchsorted(-far, -limit, right=equal)
        return torch.where(mask, number, 0)
    number = torch.zeros_like(mask, dtype=torch.uint8)
    for each in far.split(1, dim=1):  # few positives: quicker than a search
        number += ((limit <= each) if equal else (limit < each)).view(torch.uint8)
    return (number * mask.view(torch.uint8)).long()
