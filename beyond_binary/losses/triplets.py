"""Triplet losses over all triplets of a row, without ever listing a triplet."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import Rows, register_loss
from .common import split


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
    width = x.shape[1] if torch.compiler.is_compiling() else max(int(positive.sum(1).max()), 1) if len(x) else 1
    far, order = torch.where(positive, x, -torch.inf).topk(width, dim=1)
    real = positive.gather(1, order)
    prefix = torch.nn.functional.pad(torch.where(real, far, 0).cumsum(1), (1, 0))
    falling = -far.detach()

    met = torch.searchsorted(falling, margin - x.detach())  # positives with d_p > d_n - margin
    met = torch.where(negative, met, 0)
    skipped = torch.zeros_like(met)
    if triplets == "semi_hard":  # without those at d_p >= d_n, which come first
        skipped = torch.where(negative, torch.searchsorted(falling, -x.detach(), right=True), 0)
        skipped = torch.minimum(skipped, met)
    number = met - skipped
    hinge = prefix.gather(1, met) - prefix.gather(1, skipped) + number * (margin - x)
    value = torch.where(number > 0, hinge, 0).sum(1)
    if average == "active":
        return value, number.sum(1)
    return value, positive.sum(1) * negative.sum(1)
