"""Losses of a row's log-sum-exps: multi-similarity, supervised contrastive and their kin."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Rows, register_loss
from .common import any_in_row, as_number, log1p_sumexp, masked_logsumexp, masked_softmax, masked_sum, softplus, split


def _multi_similarity_in_place(
    x: Tensor, y: Tensor, valid: Tensor, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
) -> Rows:
    value, grads = x.new_zeros(len(x)), []
    for mask, scale in zip(split(y, valid), (-alpha, beta), strict=True):
        total, softmax = masked_softmax(scale * (x - base), mask)
        some = any_in_row(mask)
        value += torch.where(some, softplus(total), 0) / abs(scale)
        grads.append(softmax.mul_(torch.where(some, total.sigmoid(), 0)[:, None]))
    torch.sub(grads[1], grads[0], out=x)
    return value, any_in_row(valid)


@register_loss(
    "multi_similarity",
    reads="same",
    x="similarity",
    geometry="cosine",
    in_place=_multi_similarity_in_place,
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

    Paper settings: alpha 2, beta 50, base 1 (0.5 in the authors' code), the miner with epsilon 0.1.
    Cost: O(k) time and memory a row.

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


def softmax_over_keys_in_place(x: Tensor, y: Tensor, valid: Tensor, temperature: float) -> Rows:
    """`softmax_over_keys` that overwrites `x` with the gradient of the summed values."""
    positive, _ = split(y, valid)
    weight = as_number(positive, x)
    count = weight.sum(1)
    some = count > 0
    weight.div_((temperature * count.clamp_min(1))[:, None])
    mean = torch.linalg.vecdot(x, weight)
    x.masked_fill_(~valid, -torch.inf).div_(temperature)
    top = x.amax(1, keepdim=True).clamp_min_(torch.finfo(x.dtype).min)
    total = x.sub_(top).exp_().sum(1, keepdim=True)
    value = torch.where(some, (total.log() + top)[:, 0] - mean, 0)
    x.mul_(torch.where(some[:, None], 1 / (temperature * total), 0)).sub_(weight)
    return value, some


def _supcon_in_place(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 0.1) -> Rows:
    return softmax_over_keys_in_place(x, y, valid, temperature)


@register_loss(
    "supcon",
    reads="same",
    x="similarity",
    geometry="cosine",
    paper="Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020",
    in_place=_supcon_in_place,
)
def supcon(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 0.1) -> Rows:
    """Supervised contrastive loss, the sum outside the logarithm (equation 2 of the paper).

    Per row the mean over its positives of `-log( exp(s_p / t) / sum over all valid keys of exp(s / t) )`. Rows without
    a positive are left out of the mean; the authors' code counts them as 0 and multiplies by t / 0.07.

    Paper settings: temperature 0.1, two augmented views of each image in the batch.
    Cost: O(k) time and memory a row.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        temperature: t, 0.1 in the paper.

    Returns:
        value and count [q].
    """
    return softmax_over_keys(x, y, valid, temperature)
