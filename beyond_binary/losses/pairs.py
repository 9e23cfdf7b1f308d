"""Pair losses: contrastive, multi-similarity, supervised contrastive."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import Rows, in_place, register_loss
from .common import as_number, split


@register_loss(
    "contrastive",
    reads="same",
    in_place=in_place.contrastive,
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


def _mean_of_coordinates(z: Tensor, proxies: Tensor | None, *, regularizer: float = 0.005) -> Tensor:
    """The weighted mean over embeddings of |sum of coordinates|, which draws each towards mean zero."""
    return regularizer * z.sum(1).abs().sum() / max(len(z), 1)


@register_loss(
    "snr_contrastive",
    penalty=_mean_of_coordinates,
    reads="same",
    in_place=in_place.snr_contrastive,
    x="distance",
    geometry="snr",
    paper="Yuan et al.: Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric Learning, CVPR 2019",
)
def snr_contrastive(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    average: Literal["pairs", "active"] = "active",
) -> Rows:
    """Contrastive loss on signal-to-noise distances: `[d_p - m_p]_+` for the same, `[m_n - d_n]_+` for the different.

    The distance is `var(k - q) / var(q)`, so each ordered pair has its own. The default average is that of
    pytorch-metric-learning, which normalises the embeddings first (`geometry="snr(normalize=False)"` does not).

    Added is the paper's regulariser, `regularizer` times the mean over embeddings of |sum of coordinates|, taken after
    the normalisation if there is one. pytorch-metric-learning has it apart (`ZeroMeanRegularizer`) and off.

    Paper settings: `regularizer=0.005` (as in the code of Roth et al., ICML 2020), margins searched.
    Cost: O(k) time and memory a row.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        positive_margin: distance at which a positive stops costing.
        negative_margin: distance beyond which a negative stops costing.
        average: `pairs`: mean over all valid pairs. `active`: positives and negatives each averaged over those that
            cost something, then added.
        regularizer: weight of the mean |sum of coordinates| (the paper's lambda).

    Returns:
        value and count, [q] or (for `active`) [q 2].
    """
    margins = {"positive_margin": positive_margin, "negative_margin": negative_margin}
    return contrastive(x, y, valid, power=1, average=average, **margins)


@register_loss(
    "margin",
    reads="same",
    x="distance",
    geometry="euclidean(normalize=True)",
    per_row="beta",
    proxy_rate=1.0,
    in_place=in_place.margin,
    paper="Wu, Manmatha, Smola, Kraehenbuehl: Sampling Matters in Deep Embedding Learning, ICCV 2017",
)
def margin(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    row: Tensor,
    *,
    alpha: float = 0.2,
    nu: float = 0.0,
    over: Literal["pairs", "triplets"] = "pairs",
) -> Rows:
    """Margin loss: `[alpha + d - beta]_+` for the same, `[alpha + beta - d]_+` for the different (equation 5).

    The boundary beta is learned (`beta`, `learn_beta`, `beta_per_class`; 1.2 at first) and drawn down by `nu` times its
    value. The sum is divided by the number of active costs, over the whole batch.

    The paper and its code draw triplets with `mining="distance_weighted"` and count a pair as often as it is drawn.
    pytorch-metric-learning takes all triplets: each positive counts once for each negative of its row and the other
    way round (`over="triplets"`), and by default does not learn beta. The regulariser counts once a row, or once a
    triplet (both codes; pytorch-metric-learning adds nu * beta undivided if there is one beta). A row in which
    nothing is active adds none.

    Paper settings: the defaults, with `mining="distance_weighted"`; nu was searched.
    Cost: O(k) time and memory a row, for triplets too.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        row: boundary beta of each row [q].
        alpha: half of the gap between same and different.
        nu: weight of beta itself.
        over: count each pair once, or as in all `triplets` of the row.

    Returns:
        value and count [q].
    """
    positive, negative = (as_number(side, x) for side in split(y, valid))
    gap = (x - row[:, None]) * (positive - negative) + alpha * (positive + negative)
    cost, active = gap.relu(), as_number(gap > 0, x)
    if over == "pairs":
        return cost.sum(1) + nu * row, active.sum(1)
    positives, negatives = positive.sum(1), negative.sum(1)
    times = positive * negatives[:, None] + negative * positives[:, None]
    return torch.linalg.vecdot(cost, times) + nu * row * positives * negatives, torch.linalg.vecdot(active, times)
