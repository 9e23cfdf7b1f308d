"""Metrics on label distances: how label-near the nearest references are, and how well the whole order fits.

All take a `Ranking` and return `(value [q], references [q])`; a query with too few references is left out.
Tied references count in expectation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from . import METRICS
from .ranking import Ranking, Scores


@METRICS.register(reads="magnitude", ks=(1, 10), higher_is_better=False)
def mean_label_distance_at_k(ranking: Ranking, k: int) -> Scores:
    """Mean label distance of the nearest k references, in the labels' unit; lower is better.

    Kim et al., "Deep Metric Learning Beyond Binary Supervision", CVPR 2019, section 5. With fewer than k
    references, the mean of all.
    """
    y = ranking.expect(lambda y: y)[:, :k]
    return y.sum(1) / ranking.references.clamp(1, k), ranking.references


@METRICS.register(reads="magnitude", ks=(10, 100))
def ndcg_at_k(ranking: Ranking, k: int, label_scale: float | Literal["nearest"] = 1.0) -> Scores:
    """Graded nDCG of the nearest k: relevance 1 / (1 + y / label_scale), discount log2(1 + position).

    The ideal order is that of the k label-nearest references (the modified nDCG of Kim et al., CVPR 2019,
    section 5, where label_scale is 1). The value depends on the labels' unit, and a random order is far from
    0: read it beside `ranking="random"`, and give label_scale a typical distance between neighbours. "nearest" takes
    that of each query: the label distance of its k-th label-nearest reference, so that the unit no longer matters.

    Args:
        ranking: the ranked tile.
        k: how many positions count; truncated to the number of references.
        label_scale: label distance at which relevance is one half, in the labels' unit, or "nearest".

    Raises:
        ValueError: label_scale is neither positive nor "nearest".
    """
    if label_scale == "nearest":
        distances = ranking.y.masked_fill(~ranking.valid, torch.inf)
        nearest = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values
        scale = nearest.masked_fill(nearest.isinf(), 0).amax(1, keepdim=True)
        return ndcg_at_k(replace(ranking, y=torch.where(ranking.y > 0, ranking.y / scale, 0)), k)
    if not label_scale > 0:
        raise ValueError(f"ndcg_at_{k} needs a positive label_scale, or 'nearest', got {label_scale}")

    def relevance(y: Tensor) -> Tensor:
        return 1 / (1 + y.double() / label_scale)

    gain = ranking.expect(relevance)[:, :k]
    distances = ranking.y.masked_fill(~ranking.valid, torch.inf)
    nearest = distances.topk(gain.shape[1], dim=1, largest=False).values
    discount = torch.arange(2, gain.shape[1] + 2, device=gain.device).double().log2().reciprocal()
    return (gain @ discount) / (relevance(nearest) @ discount), ranking.references


@METRICS.register(reads="order")
def spearman(ranking: Ranking) -> Scores:
    """Spearman's rank correlation, per query, of distance in the embedding and label distance; in [-1, 1].

    1 when the references come exactly in the order of their labels. Ties get average ranks; a query that is
    equally far from everything, in the embedding or in the labels, counts as 0. Needs two references.
    Sorts all references twice for each query: with kendall the slowest metric.
    """
    valid, count = ranking.valid, ranking.references
    middle = (count.double() + 1)[:, None] / 2
    a, b = ((average_ranks(v, valid) - middle) * valid for v in (-ranking.x, ranking.y))
    scale = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
    return (a * b).sum(1) / torch.where(scale > 0, scale, 1), torch.where(count > 1, count, 0)


@METRICS.register(reads="order")
def kendall(ranking: Ranking) -> Scores:
    """Kendall's tau-b, per query, of distance in the embedding and label distance; in [-1, 1].

    The share of pairs of references that stand in the order of their labels, less the share that do not, ties taken out
    of both (Kendall, 1945). A query that is equally far from everything, in the embedding or in the labels, counts as 0.
    Needs two references. Costs O(k sqrt(k)) simple steps a query.
    """
    valid, count = ranking.valid, ranking.references
    y, first = ranking.y.masked_fill(~valid, torch.inf).sort(dim=1, stable=True)
    x, then = (-ranking.x).gather(1, first).sort(dim=1, stable=True)  # by embedding, equal ones by label
    by_y, by_both = valid.gather(1, first), valid.gather(1, first).gather(1, then)
    group_y, group_x = _groups(y), _groups(x)
    tied_y, tied_x = _tied(group_y, by_y), _tied(group_x, by_both)
    label = group_y.gather(1, then)
    new = torch.ones_like(valid)
    new[:, 1:] = (label[:, 1:] != label[:, :-1]) | (group_x[:, 1:] != group_x[:, :-1])
    tied_both = _tied(new.cumsum(1) - 1, by_both)
    place = label.sort(dim=1, stable=True).indices if tied_y.any() else then
    pairs = count.double() * (count - 1) / 2
    agree = pairs - tied_x - tied_y + tied_both - 2 * inversions(place)
    scale = ((pairs - tied_x) * (pairs - tied_y)).sqrt()
    return agree / torch.where(scale > 0, scale, 1), torch.where(count > 1, count, 0)


@METRICS.register(reads="magnitude")
def log_slope(ranking: Ranking) -> Scores:
    """Slope of log distance in the embedding on log label distance, by least squares, per query.

    The log-ratio loss wants ratios of distances alike on both sides, which is a slope of 1 (2 for squared distances in the
    embedding); 0 says that distances tell nothing. References at distance 0 on either side are left out. Undefined for a
    query whose label distances are all alike, and where embeddings are compared by the dot product.
    """
    slope, _, points = ranking.log_line
    return slope, points


@METRICS.register(reads="magnitude")
def log_r2(ranking: Ranking) -> Scores:
    """R2 of log distance in the embedding on log label distance, per query: how straight the line of log_slope is; 0 to 1.

    It is the squared correlation of the two logarithms, 1 where the log-ratio loss can reach 0, whatever the slope. 0
    where all distances in the embedding are alike.
    """
    _, r2, points = ranking.log_line
    return r2, points


@METRICS.register(reads="magnitude", ks=(1, 10), needs="regions")
def mean_iou_at_k(ranking: Ranking, k: int) -> Scores:
    """Mean intersection-over-union of the query's layout and those of the nearest k references.

    One less mean_label_distance_at_k (Kim et al., CVPR 2019, section 5.3). For the target layout alone.
    """
    y, references = mean_label_distance_at_k(ranking, k)
    return 1 - y, references


@METRICS.register(reads="magnitude", ks=(1, 10), needs="part", higher_is_better=False)
def part_label_distance_at_k(ranking: Ranking, k: int, part: int = 0) -> Scores:
    """Mean label distance of the nearest k references by one part of a sum of targets, in that part's unit.

    What mean_label_distance_at_k consists of: its parts add up to it. For the target sum alone.

    Args:
        ranking: the ranked tile.
        k: how many references, as in mean_label_distance_at_k.
        part: which of the targets, from 0.
    """
    assert ranking.part is not None
    return mean_label_distance_at_k(replace(ranking, y=ranking.part(part)), k)


@METRICS.register(reads="magnitude", ks=(1, 10), needs="distance", higher_is_better=False)
def knn_label_error_at_k(ranking: Ranking, k: int) -> Scores:
    """Label distance between a query's label and the mean or medoid of its nearest k references; lower is better.

    What a k-nearest-neighbour regression in the embedding is off by. The mean is the target's: on the circle for angles,
    joint by joint for poses. References tied at the last place share what is left of it. Undefined where a mean is (for
    example of opposite directions).

    Labels that have no mean (layouts, captions, sets, hierarchies, sums) have a medoid: the reference, among the nearest k,
    whose mean label distance to the others is least, unknown ones left out; of equal ones the nearest. References tied at
    the last place are then drawn by lot. It costs k x k further label distances a query.
    """
    if ranking.mean_error is None:
        error = ranking.y.gather(1, _medoid(ranking, k)[:, None])[:, 0].double()
        return error, ranking.references
    nearest = ranking.top.x[:, :k]
    places = ranking.references.clamp(max=nearest.shape[1])[:, None]
    last = nearest.gather(1, (places - 1).clamp_min(0))
    nearer, tied = ranking.x > last, (ranking.x == last) & ranking.valid
    left = (places - nearer.sum(1, keepdim=True)).double() / tied.sum(1, keepdim=True).clamp_min(1)
    error = ranking.mean_error((nearer + tied * left) / places.clamp_min(1)).double()
    return error, torch.where(error.isnan(), 0, ranking.references)


def _medoid(ranking: Ranking, k: int) -> Tensor:
    """Which of its nearest k references is each query's medoid [q]; any where there is none."""
    assert ranking.between is not None
    count = ranking.x.shape[1]
    lot = torch.randperm(count, generator=torch.Generator().manual_seed(0)).to(ranking.x.device)
    nearest = lot[ranking.x[:, lot].topk(min(k, count), dim=1).indices]
    medoid = nearest[:, 0].clone()
    for row, many in enumerate(ranking.references.tolist()):
        if min(k, many) > 2:  # else the nearest
            some = nearest[row, :many]
            y = ranking.between(some).double().fill_diagonal_(torch.nan)
            medoid[row] = some[y.nanmean(1).nan_to_num_(torch.inf).argmin()]
    return medoid


def inversions(place: Tensor) -> Tensor:
    """Number of pairs in the wrong order in each permutation of 0 .. n-1 [q n], float64 [q].

    Positions are cut into blocks of about sqrt(n), values likewise. Pairs in one block, and pairs of one range of values in
    different blocks, are compared; the others are counted from how many values of a range each block holds.
    """
    q, n = place.shape
    side = math.isqrt(max(n - 1, 0)) + 1
    rest = torch.arange(n, side * side, device=place.device).expand(q, -1)
    small = torch.int16 if side < 181 else torch.int32  # differences of numbers below side^2 must fit
    place = torch.cat([place, rest], 1)
    inverse = torch.empty_like(place).scatter_(1, place, torch.arange(side * side, device=place.device).expand(q, -1))
    table = torch.zeros(q, side, side, dtype=torch.double, device=place.device)
    table.view(q, -1).scatter_add_(
        1, (torch.arange(side * side, device=place.device) // side * side) + place // side, table.new_ones(place.shape)
    )
    earlier = table.cumsum(1) - table
    greater = earlier.sum(2, keepdim=True) - earlier.cumsum(2)
    total = (table * greater).sum((1, 2))
    for values in (place, inverse // side):
        v = values.view(q, side, side).mT.contiguous().to(small)
        wrong = torch.zeros_like(v)
        for step in range(1, side):
            wrong[:, step:] -= (v[:, step:] - v[:, :-step]) >> (15 if small == torch.int16 else 31)
        total += wrong.sum((1, 2))
    return total


def _groups(v: Tensor) -> Tensor:
    """Number of each entry's run of equal values, rows sorted, from 0."""
    group = torch.zeros_like(v, dtype=torch.int64)
    group[:, 1:] = (v[:, 1:] != v[:, :-1]).cumsum(1)
    return group


def _tied(group: Tensor, valid: Tensor) -> Tensor:
    """Pairs of valid entries in one group, float64 [q]."""
    size = torch.zeros_like(group, dtype=torch.double).scatter_add_(1, group, valid.double())
    return (size * (size - 1)).sum(1) / 2


def average_ranks(v: Tensor, valid: Tensor) -> Tensor:
    """Rank of each valid entry among those of its row, from 1, float64 [q k]; equal ones share their mean."""
    v = v.to(torch.promote_types(v.dtype, torch.float32)).masked_fill(~valid, torch.inf)
    v, order = v.sort(dim=1)
    group = _groups(v)
    size = torch.zeros_like(v, dtype=torch.double)
    size.scatter_add_(1, group, torch.ones_like(size))
    rank = (size.cumsum(1) - (size - 1) / 2).gather(1, group)
    return torch.empty_like(rank).scatter_(1, order, rank)
