"""Losses of a row's log-sum-exps: multi-similarity, supervised contrastive and their kin."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from ..geometry import safe_sqrt
from ..tiles import Tile
from ..walks import Finish, Pairs, Same
from . import Rows, in_place, register_loss
from .common import (
    against_negatives,
    any_in_row,
    as_number,
    log1p_sumexp,
    masked_logsumexp,
    masked_sum,
    nothing,
    of_negatives,
    of_negatives_in_place,
    softplus,
    split,
)
from .scores import mean_of_different


@register_loss(
    "multi_similarity",
    reads="same",
    x="similarity",
    geometry="cosine",
    in_place=in_place.multi_similarity,
    between={"alpha": (0, math.inf), "beta": (0, math.inf)},
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


@register_loss(
    "nt_xent",
    reads="same",
    in_place=in_place.nt_xent,
    x="similarity",
    geometry="cosine",
    paper="Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020",
)
def nt_xent(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    temperature: float = 0.1,
    positives: Literal["separate", "together"] = "together",
) -> Rows:
    """NT-Xent, the normalised and tempered cross entropy of SimCLR (equation 1 of the paper), also InfoNCE.

    The mean over positive pairs of `-log( exp(s_p / t) / sum_k exp(s_k / t) )`. The sum runs over all valid keys as in
    the paper, where each row has one positive; `positives="separate"` takes this positive and the negatives alone, as
    InfoNCE and pytorch-metric-learning do. With one positive a row both are the same, and the same as `supcon`.
    pytorch-metric-learning adds a tiny number inside its logarithm, so that hard pairs get no gradient at very low
    temperatures; here they do.

    Paper settings: temperature 0.1 on ImageNet, 0.5 on CIFAR-10; pytorch-metric-learning has 0.07.
    Cost: O(q k) time and memory of a tile.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        temperature: t.
        positives: whether a row's other positives stand in the denominator.

    Returns:
        value [q], summed over the row's positives, and their number [q].
    """
    if positives not in ("separate", "together"):
        raise ValueError(f"nt_xent: unknown positives={positives!r}")
    positive, negative = split(y, valid)
    logits = x / temperature
    number = as_number(positive, x).sum(1)
    if positives == "together":
        return number * masked_logsumexp(logits, valid) - masked_sum(logits, positive), number
    cost = softplus(masked_logsumexp(logits, negative)[:, None] - logits)
    return torch.where(any_in_row(negative), masked_sum(cost, positive), 0), number


@register_loss(
    "circle",
    reads="same",
    in_place=in_place.circle,
    x="similarity",
    geometry="cosine",
    paper="Sun et al.: Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020",
)
def circle(
    x: Tensor, y: Tensor, valid: Tensor, *, margin: float = 0.25, scale: float = 256.0, detach: bool = True
) -> Rows:
    """Circle loss (equations 5 and 6 of the paper, with its single margin).

    Per row `log(1 + sum_n exp(g [s_n + m]_+ (s_n - m)) * sum_p exp(-g [1 + m - s_p]_+ (s_p - 1 + m)))` with margin m
    and scale g. The brackets are weights: how far a similarity is from its optimum, without gradient. The mean is over
    rows that have a positive and a negative, as in pytorch-metric-learning (which leaves out rows of loss 0 besides).
    One known reimplementation takes a single log-sum-exp over all pairs of the batch instead.

    Paper settings: margin 0.25, scale 256 for faces; 0.25 and 128 for re-identification; 0.4 and 80 for fine-grained
    retrieval, which are the defaults of pytorch-metric-learning.
    Cost: O(q k) time and memory of a tile.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        margin: m, the relaxation; positives aim at 1 - m and negatives at m.
        scale: g.
        detach: whether the weights are constants to the gradient, as in the paper.

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    some = any_in_row(positive) & any_in_row(negative)
    weigher = x.detach() if detach else x
    pull = -scale * (1 + margin - weigher).relu() * (x - (1 - margin))
    push = scale * (weigher + margin).relu() * (x - margin)
    logit = masked_logsumexp(pull, positive) + masked_logsumexp(push, negative)
    return torch.where(some, softplus(logit), 0), some


@register_loss(
    "generalized_lifted_structure",
    reads="same",
    in_place=in_place.generalized_lifted_structure,
    x="distance",
    geometry="euclidean",
    scale_free=False,
    paper="Hermans, Beyer, Leibe: In Defense of the Triplet Loss for Person Re-Identification, 2017",
)
def generalized_lifted_structure(x: Tensor, y: Tensor, valid: Tensor, *, margin: float = 1.0) -> Rows:
    """Lifted structure loss with all positives of an anchor in one log-sum-exp (L_LG of the paper).

    Per row `[ log sum_p exp(d_p) + log sum_n exp(m - d_n) ]_+`, the mean over rows with a positive and a negative. The
    paper does not normalise embeddings and sums over rows; pytorch-metric-learning normalises (here
    `geometry="euclidean(normalize=True)"`) and lets a row that lacks one side pay for the other alone.

    Paper settings: several margins were tried; 1 is the default of pytorch-metric-learning.
    Cost: O(q k) time and memory of a tile.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        margin: m, in the unit of x.

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    some = any_in_row(positive) & any_in_row(negative)
    cost = masked_logsumexp(x, positive) + masked_logsumexp(margin - x, negative)
    return torch.where(some, cost.relu(), 0), some


@register_loss(
    "tuplet_margin",
    reads="same",
    x="similarity",
    geometry="cosine",
    form="pairs",
    paper="Yu, Tao: Deep Metric Learning with Tuplet Margin Loss, ICCV 2019",
)
def tuplet_margin(
    pairs: Pairs,
    *,
    margin: float = 0.1,
    scale: float = 64.0,
    variance_weight: float = 0.5,
    variance_slack: float = 0.01,
) -> Tensor:
    """Tuplet margin loss and intra-pair variance loss, the two parts of the paper's objective.

    The mean over positive pairs of `log(1 + sum_n exp(scale (cos t_n - cos(t_p - margin))))`, where t are angles and n
    runs over all negatives of the anchor; plus variance_weight times the mean over positive pairs of
    `[(1 - slack) mean_p - cos t_p]_+^2` and over negative pairs of `[cos t_n - (1 + slack) mean_n]_+^2`, with the means
    of the whole batch. pytorch-metric-learning has the two as separate losses and the margin in degrees (5.73); its
    arc cosine gives NaN where a positive pair coincides. A positive pair nearer than the margin is pushed back to it.

    Paper settings: margin 0.1 radians, scale 64, variance_weight 0.5, variance_slack 0.01.
    Cost: O(q k) time; memory of a tile and O(p) for p positive pairs; the similarities are computed twice, of a block
    of one tile once. Under a miner, or if labels are no classes, the mean of the negatives takes two more walks.

    Args:
        pairs: the pairs, with cosine similarities.
        margin: how much smaller the angle of a positive is made, in radians.
        scale: sharpness.
        variance_weight: weight of the intra-pair variances; 0 leaves them out.
        variance_slack: how far from their mean pairs may be, as a part of it.

    Returns:
        A scalar.
    """
    then = functools.partial(_tuplets, margin=margin, scale=scale)
    if variance_weight == 0:
        return against_negatives(pairs, scale, then)
    number, mean = mean_of_different(pairs)
    slack, weight = variance_slack, variance_weight

    def both(results: Tensor, same: Same) -> Tensor:
        push, early = results.unbind(1)
        late = ((1 - slack) * same.mean(same.x) - same.x).relu().square()
        return then(push, same) + weight * (same.mean(late) + early.sum() / number)

    plain, quick = functools.partial(_negatives, scale=scale), functools.partial(_negatives_in_place, scale=scale)
    return pairs.apart(plain, quick, both, shared=((1 + slack) * mean,))


def _tuplets(push: Tensor, same: Same, *, margin: float, scale: float) -> Tensor:
    """Mean cost of the tuplets, from the log-sum-exps of the negatives [q]."""
    x, push = same.x, push.index_select(0, same.row)
    turned = math.cos(margin) * x + math.sin(margin) * safe_sqrt((1 - x) * (1 + x))
    return same.mean(softplus(push - scale * turned), push > nothing(push))


def _negatives(x: Tensor, negative: Tensor, aim: Tensor, *, scale: float) -> Tensor:
    """Log-sum-exps of the negatives, and sums of their squares beyond an aim [q 2]."""
    beyond = torch.where(negative, (x - aim).relu().square(), 0).sum(1)
    return torch.stack([of_negatives(x, negative, factor=scale), beyond], 1)


def _negatives_in_place(tile: Tile, aim: Tensor, *, scale: float) -> tuple[Tensor, Finish]:
    gap = (tile.x - aim).clamp_min_(0)
    beyond = torch.linalg.vector_norm(gap, dim=1).square_()
    push, pull = of_negatives_in_place(tile, factor=scale)

    def finish(grad: Tensor) -> tuple[Tensor]:
        pull(grad[:, 0])
        slope = 2 * grad[:, 1:]
        tile.x.addcmul_(gap, slope)
        return (-torch.dot(gap.sum(1), slope[:, 0]),)

    return torch.stack([push, beyond], 1), finish
