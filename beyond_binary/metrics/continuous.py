"""Metrics on label distances: how label-near the nearest references are, and how well the whole order fits.

All take a `Ranking` and return `(value [q], references [q])`; a query with too few references is left out.
Tied references count in expectation.
"""

from __future__ import annotations

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
def ndcg_at_k(ranking: Ranking, k: int, label_scale: float = 1.0) -> Scores:
    """Graded nDCG of the nearest k: relevance 1 / (1 + y / label_scale), discount log2(1 + position).

    The ideal order is that of the k label-nearest references (the modified nDCG of Kim et al., CVPR 2019,
    section 5, where label_scale is 1). The value depends on the labels' unit, and a random order is far from
    0: read it beside `ranking="random"`, and give label_scale a typical distance between neighbours.

    Args:
        ranking: the ranked tile.
        k: how many positions count; truncated to the number of references.
        label_scale: label distance at which relevance is one half, in the labels' unit.

    Raises:
        ValueError: label_scale is not positive.
    """
    if not label_scale > 0:
        raise ValueError(f"ndcg_at_{k} needs a positive label_scale, got {label_scale}")

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
    Sorts all references twice for each query, so it is the slowest metric.
    """
    valid, count = ranking.valid, ranking.references
    middle = (count.double() + 1)[:, None] / 2
    a, b = ((average_ranks(v, valid) - middle) * valid for v in (-ranking.x, ranking.y))
    scale = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
    return (a * b).sum(1) / torch.where(scale > 0, scale, 1), torch.where(count > 1, count, 0)


def average_ranks(v: Tensor, valid: Tensor) -> Tensor:
    """Rank of each valid entry among those of its row, from 1, float64 [q k]; equal ones share their mean."""
    v = v.to(torch.promote_types(v.dtype, torch.float32)).masked_fill(~valid, torch.inf)
    v, order = v.sort(dim=1)
    group = torch.zeros_like(order)
    group[:, 1:] = (v[:, 1:] != v[:, :-1]).cumsum(1)
    size = torch.zeros_like(v, dtype=torch.double)
    size.scatter_add_(1, group, torch.ones_like(size))
    rank = (size.cumsum(1) - (size - 1) / 2).gather(1, group)
    return torch.empty_like(rank).scatter_(1, order, rank)
