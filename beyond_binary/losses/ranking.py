"""Losses of ranks and histograms."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..tiles import Places, Tile
from ..walks import Gradient, Pairs, Tiles, walked
from . import Rows, in_place, register_loss
from .common import any_in_row, as_number, masked_sum, softplus, split
from .groups import LOW, slot_log_sums

CHUNK = 1 << 20  # comparisons of two keys that `smooth_ap` holds at a time


@register_loss(
    "fastap",
    reads="same",
    x="distance",
    geometry="squared_euclidean(normalize=True)",
    in_place=in_place.fastap,
    paper="Cakir et al.: Deep Metric Learning to Rank, CVPR 2019",
)
def fastap(x: Tensor, y: Tensor, valid: Tensor, *, bins: int = 10) -> Rows:
    """FastAP: average precision of each row's ranking, with distances sorted into soft bins.

    Squared distances of unit vectors lie in [0, 4], which `bins + 1` centres cut into equal steps. Each pair is shared
    by the two centres around it, in proportion to its nearness. With h+ and h the histograms of positives and of all
    pairs, and H+ and H their running sums, the loss of a row is `1 - sum_l h+_l H+_l / H_l / number of positives`. It is
    computed as `sum_l h+_l H-_l / H_l / number of positives`, where a small loss keeps its digits.

    A pair touches two bins, so two scatters replace the product of all pairs with all bins in the authors' code and in
    pytorch-metric-learning, with the same result. Rows without a positive are undefined. Distances outside [0, 4] (by
    rounding, or in another geometry) count at the end and get no gradient.

    Paper settings: 10 bins in code, few more or fewer in the paper's ablation; large batches of few classes.
    Cost: O(k + bins) a row.

    Args:
        x: squared distances [q k], in [0, 4].
        y: label distances [q k].
        valid: pairs that count [q k].
        bins: number of steps between 0 and 4.

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    place = x.clamp(0, 4) * (bins / 4)
    low = place.detach().floor().clamp_max(bins - 1)
    high_part = (place - low) * as_number(valid, x)
    low_part = as_number(valid, x) - high_part
    index = low.long().clamp_min(0) + (bins + 1) * negative  # the positives' histogram and the negatives' in one row
    both = x.new_zeros(len(x), 2 * (bins + 1))
    both = both.scatter_add(1, index, low_part).scatter_add(1, index + 1, high_part)
    hits, misses = both.unflatten(1, (2, bins + 1)).unbind(1)
    number, some = positive.sum(1).clamp_min(1), any_in_row(positive)
    return torch.where(some, in_place.misplaced(hits, misses) / number, 0), some


@register_loss(
    "smooth_ap",
    reads="same",
    x="similarity",
    geometry="cosine",
    paper="Brown et al.: Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV 2020",
)
def smooth_ap(x: Tensor, y: Tensor, valid: Tensor, *, temperature: float = 0.01, with_query: bool = False) -> Rows:
    """Smooth-AP: 1 minus the average precision of each row's ranking, with sigmoids for the steps of a rank.

    A row's AP is the mean over its positives i of `R+(i) / R(i)`, where `R(i) = 1 + sum over keys j of
    sigmoid((s_j - s_i) / t)` is the smoothed rank of i among all keys, and R+ its rank among the positives.

    Only ranks of positives are formed, some at a time, and again for the gradient; the authors' code and
    pytorch-metric-learning hold the ranks of all keys in all rows, and ask for classes of equal size (the latter is
    right only with as many classes as items of each). Both also count the query as a positive of its own row, which
    `with_query=True` reproduces. Rows without a positive are undefined.

    Paper settings: temperature 0.01, cosine similarity, batches of 4 to 16 images of each class.
    Cost: O(m k) a row of m positives; memory of a few times `CHUNK` beside the block.

    Args:
        x: similarities [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        temperature: t, 0.01 in the paper.
        with_query: whether the query is a positive in its own row, at similarity 1.

    Returns:
        value and count [q].
    """
    positive, _ = split(y, valid)
    some, number = any_in_row(positive), positive.sum(1)
    q, k = x.shape
    masks = torch.stack([as_number(positive, x), as_number(valid, x)], 2)
    if torch.compiler.is_compiling():
        row, column = torch.arange(q, device=x.device).repeat_interleave(k), torch.arange(k, device=x.device).repeat(q)
        hits = masked_sum(_precision(x, masks, row, column, temperature, with_query).view(q, k), positive)
    else:
        hits = x.sum(1) * 0
        for part in positive.nonzero().split(max(1, CHUNK // max(k, 1))):
            row, column = part.unbind(1)
            precision = checkpoint(
                _precision,
                x,
                masks,
                row,
                column,
                temperature,
                with_query,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            hits = hits.index_add(0, row, precision)
    if with_query:
        above = ((x - 1) / temperature).sigmoid()[:, :, None]
        ranks = 1 + (above * masks).sum(1)
        hits, number = hits + ranks[:, 0] / ranks[:, 1], number + 1
    return torch.where(some, 1 - hits / number.clamp_min(1), 0), some


def _precision(x: Tensor, masks: Tensor, row: Tensor, column: Tensor, temperature: float, with_query: bool) -> Tensor:
    """Rank among the positives over rank among all keys, of given pairs [p]; `masks` [q k 2] say who these are."""
    own = x[row, column][:, None]
    above = ((x[row] - own) / temperature).sigmoid()
    ranks = 0.5 + (above[:, None, :] @ masks[row])[:, 0]  # a key is 0.5 above itself
    if with_query:
        ranks = ranks + ((1 - own) / temperature).sigmoid()
    return ranks[:, 0] / ranks[:, 1]


@register_loss(
    "histogram",
    reads="same",
    x="similarity",
    geometry="cosine",
    form="pairs",
    paper="Ustinova, Lempitsky: Learning Deep Embeddings with Histogram Loss, NeurIPS 2016",
)
def histogram(pairs: Pairs, *, steps: int = 100) -> Tensor:
    """Histogram loss: the chance that a pair of different items is more similar than a pair of the same (equation 4).

    Similarities of all same and of all different pairs are sorted into two soft histograms on `steps + 1` nodes from
    -1 to 1: a pair is shared by the two nodes around it, in proportion to its nearness, and each histogram is divided
    by its number of pairs. The loss is `sum_r h-_r * (h+_0 + ... + h+_r)`; it is 0 where one of them is empty.

    pytorch-metric-learning fails on a similarity of 1, and leaves out items that have no same or no different item.
    Similarities outside [-1, 1] (by rounding, or in another geometry) count at the end and get no gradient.

    Paper settings: the number of steps is the only one, and said to matter little; 100 is the default of
    pytorch-metric-learning.
    Cost: O(q k) time, memory of a tile and O(q steps).

    Args:
        pairs: the pairs, with similarities in [-1, 1].
        steps: number of steps between -1 and 1.

    Returns:
        A scalar.
    """
    counts = pairs.reduce(functools.partial(_histograms, steps=steps)).sum(0)
    same, different = counts.unflatten(0, (2, steps + 1)).unbind()
    number = (same.sum() * different.sum()).detach()
    return torch.dot(different, same.cumsum(0)) / torch.where(number > 0, number, 1)


def _histograms(x: Tensor, y: Tensor, valid: Tensor, *, steps: int) -> Tensor:
    """Rows' soft histograms of positives and, behind it, of negatives [q 2 * (steps + 1)]."""
    _, negative = split(y, valid)
    place = (x.clamp(-1, 1) + 1) * (steps / 2)
    low = place.detach().floor().clamp_max(steps - 1)
    high_part = (place - low) * as_number(valid, x)
    low_part = as_number(valid, x) - high_part
    index = low.long().clamp_min(0) + (steps + 1) * negative
    empty = x.new_zeros(len(x), 2 * (steps + 1))
    return empty.scatter_add(1, index, low_part).scatter_add(1, index + 1, high_part)


@register_loss(
    "cosent",
    reads="order",
    x="similarity",
    geometry="cosine",
    form="pairs",
    paper="Su: CoSENT, a more efficient sentence vector scheme than Sentence-BERT, kexue.fm 2022",
)
def cosent(pairs: Pairs, *, scale: float = 20.0) -> Tensor:
    """CoSENT: every pair of nearer labels should be more similar than every pair of farther labels.

    `log(1 + sum of exp(scale (s_r - s_p)))` over all couples of pairs p, r with y_p < y_r, whichever items these are
    of; y are label distances, and equal ones make no couple. For classes: same pairs against different pairs.

    The author and sentence-transformers take a list of labelled pairs; here it is all pairs of the block. Two items
    that are both among queries and keys are met in two orders and count once, from the side of the smaller id. The
    loss grows with the logarithm of the number of couples, so values of different batch sizes do not compare.

    Log-sum-exps are taken within the pairs of each label distance, and over these distances along their order.

    Paper settings: scale 20.
    Cost: O(n log n) time for n = q k pairs; memory O(n), the whole block, unlike other losses (about 20 bytes a pair for classes, 50 for continuous labels).

    Args:
        pairs: the pairs, with similarities.
        scale: factor of the similarities, an inverse temperature.

    Returns:
        A scalar.
    """
    if pairs.plain or pairs.block.miner is not None:
        return _cosent_plain(pairs, scale)
    return walked(pairs, functools.partial(_cosent_walk, pairs, scale), functools.partial(_cosent_plain, scale=scale))


def _cosent_plain(pairs: Pairs, scale: float) -> Tensor:
    x, y, valid = pairs.dense()
    keep = (valid & _once(pairs, slice(None))).flatten()
    logit, level, count = scale * x.flatten().double(), y.flatten().long(), 2
    if y.dtype != torch.bool:
        y = torch.where(valid, y, 0)
        level, count = torch.searchsorted(y.flatten().sort().values, y.flatten()), y.numel()
    near, far = (slot_log_sums(torch.where(keep, each, LOW)[:, None], level, count)[:, 0] for each in (-logit, logit))
    beyond, step = F.pad(far[1:], (0, 1), value=LOW), 1
    while step < count:  # as `_farther`, but to be differentiated twice
        beyond = torch.stack([beyond, F.pad(beyond[step:], (0, step), value=LOW)]).logsumexp(0)
        step *= 2
    return F.pad(near + beyond, (0, 1)).logsumexp(0).to(x.dtype)


def _cosent_walk(pairs: Pairs, scale: float, tiles: Tiles) -> tuple[Tensor, Gradient]:
    """As `_cosent_plain`; the levels of label distance are listed once, and each pair knows its own."""
    places, logits, ys = [], [], []
    for part, tile in tiles:
        y, valid = pairs.block.labels(part, tile.x)
        places.append(Places.of(valid & _once(pairs, part)).flat)
        logits.append(tile.x.view(-1)[places[-1]] * scale)
        ys.append(y.flatten()[places[-1]])
    levels, count = _levels(ys)
    near = _level_log_sums([-s for s in logits], levels, count)
    beyond = _farther(_level_log_sums(logits, levels, count))
    before = _farther(near.flip(0)).flip(0)
    total = (near + beyond).logsumexp(0)
    factor, found = scale * total.sigmoid(), iter(zip(places, logits, levels, strict=True))
    lowest = _lowest(pairs.q.z)

    def gradient(part: slice, tile: Tile) -> None:
        flat, logit, level = next(found)
        level = level.long()
        slope = (before[level] - total).add_(logit).clamp_(lowest, 0.0).exp_()
        slope -= (beyond[level] - total).sub_(logit).clamp_(lowest, 0.0).exp_()
        tile.x.zero_().view(-1).scatter_(0, flat, slope.mul_(factor).to(tile.x.dtype))

    return softplus(total), gradient


def _farther(far: Tensor) -> Tensor:
    """Log-sum-exp over all later levels [levels]."""
    beyond = torch.full_like(far, LOW)
    beyond[:-1] = far[1:].flip(0).logcumsumexp(0).flip(0)
    return beyond


def _levels(ys: list[Tensor]) -> tuple[Sequence[Tensor], int]:
    """Which of the different label distances each one is, in their order, and how many there are."""
    if ys[0].dtype == torch.bool:
        return ys, 2
    y = torch.cat(ys)
    if y.device.type == "cpu":
        known, inverse = np.unique(y.numpy(), return_inverse=True)  # several times faster than torch
        level = torch.from_numpy(inverse).int()
    else:
        known, level = y.unique(return_inverse=True)
    return level.split([len(y) for y in ys]), max(1, len(known))


def _level_log_sums(logits: list[Tensor], levels: Sequence[Tensor], count: int) -> Tensor:
    """Log-sum-exp over each level, in float64; empty ones are low."""
    top = torch.full((count,), LOW, dtype=logits[0].dtype, device=logits[0].device)
    for logit, level in zip(logits, levels, strict=True):
        top.scatter_reduce_(0, level.long(), logit, "amax")
    total = torch.zeros(count, dtype=torch.float64, device=top.device)
    for logit, level in zip(logits, levels, strict=True):
        index = level.long()
        power = (logit - top[index]).clamp_min_(_lowest(logit)).exp_()
        total.index_add_(0, index, power.double())
    return torch.where(total > 0, total.log() + top, LOW)


def _lowest(like: Tensor) -> float:
    """Exponent below which `exp` and products of its result are slow, and the result is as good as 0."""
    return -80.0 if like.dtype == torch.float32 else -700.0


def _once(pairs: Pairs, part: slice) -> Tensor:
    """Mask [rows k] that leaves out one of two orders in which the block has the same two items."""
    q, k = pairs.q.id, pairs.k.id
    twice = torch.isin(q[part], k)[:, None] & torch.isin(k, q)[None, :]
    return ~twice | (q[part, None] < k[None, :])
