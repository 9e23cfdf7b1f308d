"""Losses of positive pairs against the negatives of both sides: lifted structure, N-pairs and angular."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..geometry import Geometry
from ..targets.vectors import Classes
from ..tiles import Tile, listed
from ..walks import Finish, Pairs, Same
from . import register_loss
from .common import (
    against_negatives,
    any_in_row,
    as_number,
    log1p_sumexp,
    masked_sum,
    nothing,
    of_negatives,
    softplus,
    split,
)
from .groups import by_class, equal_ids


@register_loss(
    "lifted_structure",
    both_ends=True,
    reads="same",
    x="distance",
    geometry="euclidean",
    form="pairs",
    scale_free=False,
    paper="Song, Xiang, Jegelka, Savarese: Deep Metric Learning via Lifted Structured Feature Embedding, CVPR 2016",
)
def lifted_structure(pairs: Pairs, *, margin: float = 1.0) -> Tensor:
    """Lifted structure loss, the smooth form of the paper.

    Over positive pairs (i, j) half the mean of `[J_ij]_+^2`, with
    `J_ij = log( sum over negatives n of i of exp(m - d_in) + sum over negatives n of j of exp(m - d_jn) ) + d_ij`.
    Against references, the negatives of a key are queries. The paper and its code do not normalise embeddings (some
    reimplementations then add a small penalty on their length); pytorch-metric-learning does, which here is
    `geometry="euclidean(normalize=True)"`. Positive pairs without any negative are left out.

    Paper settings: margin 1.
    Cost: O(q k) time; memory of a tile and O(p) for p positive pairs; the distances are computed twice, of a block of
    one tile once (against references twice that).

    Args:
        pairs: the pairs, with distances.
        margin: m, in the unit of the distances.

    Returns:
        A scalar.
    """
    then = functools.partial(_lifted, margin=margin)
    if pairs.k is pairs.q:
        return against_negatives(pairs, -1.0, then)
    if pairs.block.miner is not None:
        raise ValueError("lifted_structure reads pairs from both ends: give mining or references (a memory), not both")
    other = pairs.swapped().reduce(_push)
    return against_negatives(pairs, -1.0, then, extra=(other,))


def _push(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Log-sum-exp of -x over a row's negatives."""
    return of_negatives(x, split(y, valid)[1], factor=-1.0)


def _lifted(own: Tensor, same: Same, other: Tensor | None = None, *, margin: float) -> Tensor:
    """The loss, from the log-sum-exps of the queries and of the keys (the same if not given)."""
    other = own if other is None else other
    own, other = own.index_select(0, same.row), other.index_select(0, same.column)
    top = torch.maximum(own, other).detach()
    some = top > nothing(top)
    push = margin + top + ((own - top).exp() + (other - top).exp()).log()
    return same.mean(torch.where(some, (push + same.x).relu().square() / 2, 0), some)


@register_loss(
    "n_pairs",
    reads="same",
    x="similarity",
    geometry="dot",
    form="pairs",
    scale_free=False,
    paper="Sohn: Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NeurIPS 2016",
)
def n_pairs(pairs: Pairs, *, l2: float = 0.0) -> Tensor:
    """Multi-class N-pair loss (N-pair-mc of the paper).

    One pair per class, its anchor a and its positive p: the mean over classes c of
    `log(1 + sum over other classes c' of exp(a_c . p_c' - a_c . p_c))`. As in pytorch-metric-learning the pair is the
    first two items of the class in the order of the batch (against references, its first query and first key), and a
    class of one item is left out; the paper samples batches of exactly two a class. pytorch-metric-learning normalises
    embeddings unless told otherwise, here `geometry="cosine"`. The paper keeps embeddings short by a penalty on their
    length of unsaid weight, 0.005 in later code; it is off by default.

    Paper settings: none given.
    Cost: O(c^2 + p) time for c classes and p positive pairs, memory of a tile. Under a miner, or if labels are no classes,
    O(q k) time.

    Args:
        pairs: the pairs, with similarities.
        l2: weight of a quarter of the mean squared lengths of anchors plus that of positives.

    Returns:
        A scalar; it depends on the order of the batch where a class has items to choose from.
    """
    if not pairs.plain and pairs.block.miner is None and isinstance(pairs.block.target, Classes):
        anchor, positive = _first_listed(pairs)
        q, k = pairs.q[anchor], pairs.k[positive]
        loss = against_negatives(pairs.between(q, k), 1.0, _one_each)
        return loss + l2 / 4 * (q.z.square().sum() + k.z.square().sum()) / max(len(q), 1)
    anchors, chosen = _first_pairs(pairs)
    cost = pairs.reduce(functools.partial(_n_pair, chosen=chosen > 0))
    number = anchors.sum().clamp_min(1)
    lengths = (z.square().sum(1) for z in (pairs.q.z, pairs.k.z))
    long = sum(torch.dot(each, weight) for each, weight in zip(lengths, (anchors, chosen), strict=True))
    return (torch.dot(cost, anchors) + l2 / 4 * long) / number


def _one_each(push: Tensor, same: Same) -> Tensor:
    """The mean of N-pair costs."""
    return same.mean(softplus(push.index_select(0, same.row) - same.x))


@torch.no_grad()
def _first_listed(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The anchor and the positive of each class that has both [c], as numbers of queries and keys."""
    n, m, device = len(pairs.q), len(pairs.k), pairs.q.z.device
    positive = torch.full((n,), m, device=device)
    for start in range(0, n, pairs.tile or n):
        part = slice(start, start + (pairs.tile or n))
        same = listed(pairs.block.places(part, pairs.q.z)[0])
        positive[part].scatter_reduce_(0, same.row, same.flat % m, "amin")
    classes, slot = torch.unique(pairs.q.code, return_inverse=True)
    place = torch.where(positive < m, torch.arange(n, device=device), n)
    anchor = torch.full((len(classes),), n, device=device).scatter_reduce_(0, slot, place, "amin")
    anchor = anchor[anchor < n]
    return anchor, positive[anchor]


def _n_pair(x: Tensor, y: Tensor, valid: Tensor, chosen: Tensor) -> Tensor:
    """Rows' costs of their first positives against the chosen negatives."""
    positive, negative = split(y, valid)
    first = x.gather(1, positive.byte().argmax(1, keepdim=True))
    return torch.where(any_in_row(positive), log1p_sumexp(x - first, negative & chosen), 0)


@torch.no_grad()
def _first_pairs(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """1 for each query that is an anchor [q], and for each key the number of anchors whose positive it is [k]."""
    positive, label, some = pairs.reduce(_first).unbind(1)
    place = torch.arange(len(label), device=label.device)
    earliest = torch.full_like(pairs.k.id, len(label))
    earliest = earliest.scatter_reduce(0, label, torch.where(some > 0, place, len(label)), "amin")
    anchor = (some * (earliest[label] == place)).to(pairs.q.z.dtype)
    return anchor, torch.zeros_like(pairs.k.z[:, 0]).index_add(0, positive, anchor)


def _first(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Rows' first positive, first key of the same class (may be the row itself), and whether there is a positive."""
    positive, _ = split(y, valid)
    same, _ = split(y, torch.ones_like(valid))
    places = (mask.byte().argmax(1) for mask in (positive, same))
    return torch.stack([*places, any_in_row(positive).long()], dim=1)


@register_loss(
    "angular",
    reads="same",
    x="similarity",
    geometry="cosine",
    form="pairs",
    between={"alpha": (0, 81)},
    geometry_only=True,
    paper="Wang, Zhou, Wen, Liu, Lin: Deep Metric Learning with Angular Loss, ICCV 2017",
)
def angular(pairs: Pairs, *, alpha: float = 45.0) -> Tensor:
    """Angular loss, the smooth form of the paper for a whole batch.

    The mean over positive pairs (a, p) of `log(1 + sum_n exp(4 t (x_a + x_p) . x_n - 2 (1 + t) x_a . x_p))` with
    t = tan(alpha)^2, over the negatives n of a. The paper has one pair per class in a batch and adds this loss to the
    N-pair loss; here it stands alone and takes all positive pairs, as in pytorch-metric-learning, which forgets to
    normalise the negatives. Pairs without a negative are left out.

    The sum is a matrix product: with E the exponentials of 4 t s, each row divided by its largest, and those of
    queries masked, it is `(E_q E_k^T)_ap exp(-2 (1 + t) s_ap)`. Beyond 65 degrees, where these could leave the range of
    single precision, it is computed in double; from 81 degrees on they could leave that, too.

    Paper settings: alpha 36 to 55 degrees; 45 in later code, 40 in pytorch-metric-learning.
    Cost: O(q k) time and that of a product of each class with itself, memory of a tile, for a batch of classes. Against
    references, under a miner, or if labels are no classes O(q k^2) time and O(p k) memory for the p keys that are
    positives in a tile.

    Args:
        pairs: the pairs, with cosine similarities.
        alpha: the angle at a negative that is aimed at, in degrees, between 0 and 81.

    Returns:
        A scalar.
    """
    t = math.tan(math.radians(alpha)) ** 2
    kind = pairs.q.z.dtype
    if 16 * t > 80 and kind == torch.float32:
        return angular(pairs.double(), alpha=alpha).to(kind)
    if not pairs.plain and _whole_classes(pairs):
        return _by_class(pairs, t)
    angles = functools.partial(_angles, t=t, geometry=pairs.block.geometry, plain=pairs.plain)
    value, number = pairs.reduce(angles, shared=(pairs.k.z,)).sum(0).unbind()
    return value / number.clamp_min(1)


def _whole_classes(pairs: Pairs) -> bool:
    """Whether a batch of classes is compared with itself, classes fit into tiles, and have no items in common."""
    if pairs.k is not pairs.q or pairs.block.miner is not None or not isinstance(pairs.block.target, Classes):
        return False
    code = pairs.q.code
    row, column = equal_ids(pairs.q.id, pairs.q.id)
    return bool((code[row] == code[column]).all()) and int(code.unique(return_counts=True)[1].max()) <= (
        pairs.tile or 0
    )


def _by_class(pairs: Pairs, t: float) -> Tensor:
    """The loss from tiles of whole classes of one size: both items of a positive pair are there."""
    order, _, runs = by_class(pairs.q.code)
    points = pairs.q[order]
    total, start = points.z.sum() * 0, 0
    for g, m in runs:
        if m > 1:
            rows = points if len(runs) == 1 else points[start : start + g * m]
            some = pairs.between(rows, points, rows=max(1, (pairs.tile or m) // m) * m)
            plain = functools.partial(_mates, factor=4 * t, size=m)
            quick = functools.partial(_mates_in_place, factor=4 * t, size=m)
            total = total + some.apart(plain, quick, functools.partial(_angles_of, t=t, start=start))
        start += g * m
    number = sum(g * m * m for g, m in runs) - len(equal_ids(pairs.q.id, pairs.q.id)[0])
    return total / max(number, 1)


def _angles_of(total: Tensor, same: Same, *, t: float, start: int) -> Tensor:
    """Sum of costs, from the sums over negatives for each row and item of its class [q m]; `start` is the first row."""
    size = total.shape[1]
    mate = (same.column - start - same.row // size * size).clamp(0, size - 1)
    push = total.flatten().index_select(0, same.row * size + mate)
    cost = softplus(push - 2 * (1 + t) * same.x)
    return torch.where(same.use & (push > nothing(push)), cost, 0).sum()


def _mates(x: Tensor, negative: Tensor, *, factor: float, size: int) -> Tensor:
    """For each row and each of its class's `size` items the log of the sum over negatives of both exponentials [q m]."""
    e, top = _exponentials(factor * x, negative)
    total = _products(e.unflatten(0, (-1, size))).log() + _both(top[:, None], size)
    return torch.where(any_in_row(negative)[:, None], total.flatten(0, 1), nothing(x))


def _mates_in_place(tile: Tile, *, factor: float, size: int) -> tuple[Tensor, Finish]:
    top, _ = tile.powers_(tile.x.mul_(factor))
    e = tile.x.unflatten(0, (-1, size))
    total = _products(e)

    def finish(grad: Tensor) -> tuple[()]:
        weight = grad.view_as(total).div(total).mul_(factor)
        tile.x.mul_(torch.bmm(weight + weight.mT, e).flatten(0, 1))
        return ()

    return (total.log() + _both(top, size)).flatten(0, 1), finish


def _products(e: Tensor) -> Tensor:
    """Inner products of the rows of each class [g m m], kept off zero."""
    return (e @ e.mT).clamp_min(torch.finfo(e.dtype).tiny)


def _both(top: Tensor, size: int) -> Tensor:
    """Sums of two rows' numbers within each class [g m m]."""
    top = top.view(-1, size, 1)
    return top + top.mT


def _angles(x: Tensor, y: Tensor, valid: Tensor, keys: Tensor, *, t: float, geometry: Geometry, plain: bool) -> Tensor:
    """Rows' sums of costs over their positives, and the number of these [q 2]; plain: for all keys as positives."""
    positive, negative = split(y, valid)
    keys = geometry.prepare(keys)
    some = torch.arange(len(keys), device=x.device) if plain else positive.any(0).nonzero()[:, 0]
    e, top = _exponentials(4 * t * x, negative)
    other = 4 * t * geometry.pairs(keys[some], keys)
    e_other, top_other = _exponentials(other, torch.ones_like(other, dtype=torch.bool))
    total = (e @ e_other.T).clamp_min(torch.finfo(x.dtype).tiny).log() + top[:, None] + top_other[None, :]
    use = positive[:, some] & any_in_row(negative)[:, None]
    cost = masked_sum(softplus(total - 2 * (1 + t) * x[:, some]), use)
    return torch.stack([cost, as_number(use, x).sum(1)], dim=1)


def _exponentials(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """exp(x - top) within the mask and 0 outside, where top [q] is the row's largest entry there (0 without one)."""
    top = torch.where(mask, x, -torch.inf).amax(1).detach()
    top = torch.where(any_in_row(mask), top, 0)
    return torch.where(mask, x - top[:, None], -torch.inf).exp(), top
