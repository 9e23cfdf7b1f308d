"""Losses that read the value of a continuous label distance."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import Rows, in_order, register_loss
from .common import any_in_row, as_number, masked_sum


@register_loss(
    "log_ratio",
    reads="magnitude",
    in_place=in_order.log_ratio,
    x="distance",
    geometry="euclidean",
    paper="Kim et al.: Deep Metric Learning Beyond Binary Supervision, CVPR 2019",
)
def log_ratio(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    embedding_power: float = 1.0,
    label_power: float = 1.0,
    ties: Literal["exclude", "include"] = "exclude",
    zero_labels: Literal["drop", "floor", "add"] = "drop",
    label_floor: float = 1e-6,
    eps: float = 1e-6,
    inner_eps: float = 0.0,
) -> Rows:
    """Log-ratio loss over dense triplets (equations 2 and 7 of the paper).

    The mean over pairs (i, j) of a row with y_i < y_j of `(log(d_i / d_j) - log(y_i / y_j))^2`. With
    u = log d - log y, the squares over all pairs of n keys sum to n times the centred sum of squares of u, so the mean
    over all pairs is twice the unbiased variance of u: O(k) a row. Pairs of equal label distance, which the paper's
    strict inequality leaves out, are the same sum within each group of ties, and are subtracted.

    The paper squares both distances, which multiplies the loss by 4 (set both powers to 2); its code squares neither,
    includes ties, adds 1e-6 to both distances inside the logarithms (`zero_labels="add"`) and 1e-4 / dimensions to the
    squared embedding distance (`inner_eps`). Embeddings are not normalised there: the loss is invariant to
    scale, rotation and translation of the embeddings.

    Paper settings: both powers 2, 128 dimensions not normalised, batches of an anchor, its 5 nearest by label and random
    others (sampler `dense_triplet`).
    Cost: O(k) time and memory a row; O(k log k) time where label distances tie.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        embedding_power: exponent of the embedding distance.
        label_power: exponent of the label distance; another ratio of the powers trains another relation.
        ties: `exclude` pairs of keys with equal label distance (paper) or `include` them (authors' code).
        zero_labels: `drop` keys at label distance 0, whose ratio is undefined, `floor` them at `label_floor`, or `add`
            that to every label distance (authors' code).
        label_floor: what `floor` and `add` read, in the label's unit.
        eps: added to the embedding distance inside the logarithm.
        inner_eps: added to the squared embedding distance, under the root (authors' code).

    Returns:
        value and count [q]; a row without two keys of different label distance is undefined.
    """
    if zero_labels != "drop":
        y = y.clamp_min(label_floor) if zero_labels == "floor" else y + label_floor
    if inner_eps:
        x = (x.square() + inner_eps).sqrt()
    use = valid & (y > 0)
    real = as_number(use, x)
    n = real.sum(1)
    offset = (1 - real).add_(eps)  # keeps the logarithm of what is not used finite
    u = embedding_power * (x + offset).log() - label_power * torch.where(use, y, 1).log()
    centre = torch.linalg.vecdot(u.detach(), real) / n.clamp_min(1)  # any centre gives the same sum, up to rounding
    centred = (u - centre[:, None]) * real
    squares = n * torch.linalg.vecdot(centred, centred) - centred.sum(1).square()
    pairs = n * (n - 1) / 2
    if ties == "exclude":
        rows = _rows_with_ties(y)
        tied_squares, tied_pairs = _within_ties(centred[rows], y[rows], use[rows])
        squares, pairs = squares.index_add(0, rows, -tied_squares), pairs.index_add(0, rows, -tied_pairs)
    defined = pairs > 0
    return torch.where(defined, squares / pairs.clamp_min(1), 0), defined


def _rows_with_ties(y: Tensor) -> Tensor:
    """Numbers of the rows in which two y are equal: few or none when labels are continuous."""
    if torch.compiler.is_compiling():
        return torch.arange(len(y), device=y.device)
    if y.device.type == "cpu":  # several times faster than torch, which also sorts indices
        ordered = torch.from_numpy(np.sort(y.numpy(), axis=1))
    else:
        ordered = y.sort(1).values
    return any_in_row(ordered[:, 1:] == ordered[:, :-1]).nonzero()[:, 0]


def _argsort(y: Tensor) -> Tensor:
    """Order of each row; on the CPU by numpy, which is several times faster."""
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return y.argsort(1)
    return torch.from_numpy(np.argsort(y.numpy(), axis=1))


def _within_ties(u: Tensor, y: Tensor, use: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (u_i - u_j)^2 over the row's pairs of equal y, and the number of those pairs, both [q]."""
    order = _argsort(torch.where(use, y, torch.inf))
    ordered = y.gather(1, order)
    group = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    u, use = u.gather(1, order), use.gather(1, order).to(u)
    size = torch.zeros_like(u).scatter_add(1, group, use)
    mean = torch.zeros_like(u).scatter_add(1, group, u) / size.clamp_min(1)
    spread = use * (u - mean.gather(1, group)).square()
    return (size.gather(1, group) * spread).sum(1), (size * (size - 1) / 2).sum(1)


@register_loss(
    "rank_n_contrast",
    reads="order",
    in_place=in_order.rank_n_contrast,
    x="distance",
    geometry="euclidean",
    scale_free=False,
    paper="Zha et al.: Rank-N-Contrast: Learning Continuous Representations for Regression, NeurIPS 2023",
)
def rank_n_contrast(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 2.0) -> Rows:
    """Rank-N-Contrast (equations 1 and 2 of the paper).

    The mean over all pairs (i, j) of `-log( exp(-d_ij / t) / sum over k with y_ik >= y_ij of exp(-d_ik / t) )`: key j
    competes with itself and with all keys whose labels are at least as far from the anchor. Keys sorted by falling y
    turn these sums into running ones; keys of equal y share the sum at the end of their group.

    Embeddings are not normalised, so the loss depends on their scale. The authors' code loops over keys and exponentiates
    before it sums, which gives infinity at distances of some hundreds in single precision; running log-sum-exps do not.

    Paper settings: temperature 2, two augmented views of each item in the batch, absolute difference of labels.
    Cost: O(k log k) a row, O(k) memory.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        temperature: t, 2 in the paper.

    Returns:
        value and count [q]; count is the number of the row's valid keys.
    """
    real = as_number(valid, x)
    logits = x * (-real / temperature)  # what is not valid comes last below, where nothing reads it
    nearness = torch.where(valid, -y.to(x.dtype), torch.inf)
    order = _argsort(nearness)
    running = logits.gather(1, order).logcumsumexp(1)
    ends = _ends_of_ties(nearness.gather(1, order))
    total = masked_sum(running.gather(1, ends), valid.gather(1, order))
    return total - logits.sum(1), real.sum(1)


def _ends_of_ties(ordered: Tensor) -> Tensor:
    """For each entry of sorted rows [q k], the column of the last entry that is equal to it."""
    column = torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
    goes_on = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (0, 1))
    return torch.where(goes_on, ordered.shape[1], column).flip(1).cummin(1).values.flip(1)


@register_loss(
    "soft_contrastive",
    reads="magnitude",
    x="distance",
    geometry="euclidean",
    in_place=in_order.soft_contrastive,
    paper="Kim et al.: Embedding Transfer with Label Relaxation for Improved Metric Learning, CVPR 2021",
)
def soft_contrastive(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    sigma: float = 1.0,
    delta: float = 1.0,
    mean_gradient: bool = True,
    count_self: bool = False,
) -> Rows:
    """Relaxed contrastive loss (equation 4 of the paper) with label distances in the place of a teacher's distances.

    Per row the sum over keys of `w (d / mu)^2 + (1 - w) [delta - d / mu]_+^2`, where `w = exp(-y^2 / sigma)` says how
    much a pair is the same and mu is the row's mean distance, which makes the loss free of scale.

    The sum grows with the number of keys, as in the paper. The authors' code equals `count_self=True`, but leaves out
    pairs at embedding distance 0, which cost a constant here. A row of distance 0 throughout has mu = 1.

    Paper settings: sigma 1, delta 1, label distances that are those of L2-normalised teacher embeddings; give y in a
    unit in which sigma is right.
    Cost: O(k) a row.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        sigma: squared label distance at which a pair is 37 % the same.
        delta: margin, in mean distances of the row.
        mean_gradient: whether gradients also flow through mu (as in the authors' code).
        count_self: whether mu also averages over the anchor's distance 0 to itself (as in the authors' code).

    Returns:
        value and count [q].
    """
    real = as_number(valid, x)
    keys = real.sum(1).clamp_min(1) + count_self
    mean = torch.linalg.vecdot(x if mean_gradient else x.detach(), real) / keys
    ratio = x / torch.where(mean > 0, mean, 1)[:, None]
    same = torch.where(valid, (y.to(x.dtype).square() / -sigma).exp(), 0)
    cost = same * ratio.square() + (real - same) * (delta - ratio).relu().square()
    return cost.sum(1), any_in_row(valid)
