"""Losses of a row's log-sum-exps: multi-similarity, supervised contrastive and their kin."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Rows, in_place, register_loss
from .common import any_in_row, log1p_sumexp, masked_logsumexp, masked_sum, split


@register_loss(
    "multi_similarity",
    reads="same",
    x="similarity",
    geometry="cosine",
    in_place=in_place.multi_similarity,
    paper="Wang et al.: Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning, CVPR 2019",
)
def multi_similarity(
    x: Tensor, y: Tensor, valid: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
) -> Rows:
    """Multi-similarity loss (equation 10 of the paper); combine with `mining="multi_similarity"` for its miner.

    Per row `log(1 + sum_pos exp(-alpha (s - base))) / alpha + log(1 + sum_neg exp(beta (s - base))) / beta`. A row with
    negatives only still pays the second part. The authors' code has beta = 40 and base = 0.5, and equals
    pytorch-metric-learning with those values. With the miner, the mean is over the rows that keep a pair; the paper and
    pytorch-metric-learning divide by the batch size, which only scales the loss.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        alpha: sharpness for positives.
        beta: sharpness for negatives.
        base: similarity around which both parts turn.

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    pull = log1p_sumexp(alpha * (base - x), positive) / alpha
    push = log1p_sumexp(beta * (x - base), negative) / beta
    return pull + push, any_in_row(valid)


def softmax_over_keys(x: Tensor, y: Tensor, valid: Tensor, temperature: float) -> Rows:
    """Mean over a row's positives of `-log softmax(x / temperature)` over its valid keys; rows without are undefined."""
    positive, _ = split(y, valid)
    some = any_in_row(positive)
    logits = x / temperature
    mean = masked_sum(logits, positive) / positive.sum(1).clamp_min(1)
    return torch.where(some, masked_logsumexp(logits, valid) - mean, 0), some


@register_loss(
    "supcon",
    reads="same",
    x="similarity",
    geometry="cosine",
    paper="Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020",
    in_place=in_place.supcon,
)
def supcon(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 0.1) -> Rows:
    """Supervised contrastive loss, the sum outside the logarithm (equation 2 of the paper).

    Per row the mean over its positives of `-log( exp(s_p / t) / sum over all valid keys of exp(s / t) )`. Rows without
    a positive are left out of the mean; the authors' code counts them as 0 and multiplies by t / 0.07.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        temperature: t, 0.1 in the paper.

    Returns:
        value and count [q].
    """
    return softmax_over_keys(x, y, valid, temperature)
