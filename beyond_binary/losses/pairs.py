"""Pair losses: contrastive, multi-similarity, supervised contrastive."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import Rows, register_loss
from .common import as_number, split


@register_loss(
    "contrastive",
    reads="same",
    x="distance",
    geometry="euclidean(normalize=True)",
    paper="Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006",
)
def contrastive(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    power: int = 2,
    average: Literal["pairs", "active"] = "pairs",
) -> Rows:
    """Contrastive loss: pull the same together, push the different beyond a margin (equation 4 of the paper).

    `[d - m_pos]_+^p / p` for the same, `[m_neg - d]_+^p / p` for the different, with p = `power`.

    Paper settings: margin chosen by data set and power 2, plain (not squared) distances; here margin 1 on the sphere.
    Cost: O(k) time and memory a row.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        positive_margin: distance at which a positive stops costing (0 in the paper).
        negative_margin: distance beyond which a negative stops costing.
        power: 2 as in the paper; 1 as in "A Metric Learning Reality Check" and pytorch-metric-learning.
        average: `pairs`: mean over all valid pairs. `active`: positives and negatives each averaged over those that
            cost something, then added (pytorch-metric-learning's reduction).

    Returns:
        value and count, [q] or (for `active`) [q 2].
    """
    positive, negative = split(y, valid)
    if average not in ("pairs", "active"):
        raise ValueError(f"contrastive: average must be 'pairs' or 'active', got {average!r}")
    sides = as_number(positive, x), as_number(negative, x)
    offset = sides[1] * negative_margin - sides[0] * positive_margin
    gap = torch.addcmul(offset, x, sides[0] - sides[1]).relu()  # 0 where not valid
    cost = gap if power == 1 else gap.pow(power) / power
    if average == "pairs":
        return cost.sum(1), as_number(valid, x).sum(1)
    active = as_number(gap > 0, x)
    value, count = ([torch.linalg.vecdot(a, side) for side in sides] for a in (cost, active))
    return torch.stack(value, 1), torch.stack(count, 1)
