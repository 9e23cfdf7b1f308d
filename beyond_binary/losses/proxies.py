"""Proxy losses: the batch against one learned embedding per class."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Rows, in_place, register_loss
from .common import any_in_row, log1p_sumexp, split
from .tuples import softmax_over_keys


@register_loss(
    "normalized_softmax",
    reads="same",
    x="similarity",
    geometry="cosine",
    keys="proxy",
    paper="Zhai, Wu: Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019",
    in_place=in_place.supcon,
)
def normalized_softmax(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 0.05) -> Rows:
    """Cross-entropy on cosine similarities to the proxies (equation 2 of the paper).

    Paper settings: temperature 0.05, layer normalisation without affine part before the head, class-balanced batches.
    Cost: O(c) time and memory a row.

    Args:
        x: similarities of items to proxies [q k].
        y: label distances to the proxies [q k].
        valid: pairs that count [q k].
        temperature: 0.05 in the paper.

    Returns:
        value and count [q].
    """
    return softmax_over_keys(x, y, valid, temperature)


@register_loss(
    "proxy_anchor",
    reads="same",
    x="similarity",
    geometry="cosine",
    rows="proxy",
    paper="Kim et al.: Proxy Anchor Loss for Deep Metric Learning, CVPR 2020",
)
def proxy_anchor(x: Tensor, y: Tensor, valid: Tensor, *, alpha: float = 32.0, margin: float = 0.1) -> Rows:
    """Proxy-Anchor loss (equation 4 of the paper): each proxy is an anchor, the batch its positives and negatives.

    `1/|P+| sum over proxies with positives of log(1 + sum_pos exp(-alpha (s - margin)))` plus
    `1/|P| sum over all proxies of log(1 + sum_neg exp(alpha (s + margin)))`.

    Paper settings: alpha 32, margin 0.1, the proxies with 100 times the learning rate of the trunk.
    Cost: O(n) time and memory a row, of c rows.

    Args:
        x: similarities of proxies (rows) to items [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        alpha: scale, 32 in the paper.
        margin: delta, 0.1 in the paper.

    Returns:
        value and count [q 2]: the two terms have denominators of their own.
    """
    positive, negative = split(y, valid)
    pull = log1p_sumexp(alpha * (margin - x), positive)
    push = log1p_sumexp(alpha * (margin + x), negative)
    present = any_in_row(positive)
    return torch.stack([pull, push], 1), torch.stack([present, torch.ones_like(present)], 1)
