"""Retrieval metrics on same/different: how early the right references come.

All take a `Ranking` and return `(value [q], R [q])`, R being the number of right references among *all*
references; a query with R = 0 is left out. All values are fractions in [0, 1]. Tied references count in
expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import METRICS
from .ranking import Ranking, Scores


def log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient, for float64 counts 0 <= k <= n."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


@METRICS.register(reads="same", ks=(1, 2, 4, 8))
def recall_at_k(ranking: Ranking, k: int) -> Scores:
    """Recall@K as the metric learning field means it: is *any* of the nearest k right?

    As in Song et al., CVPR 2016; the share of right references that are found is something else. With ties:
    1 - C(g - r, t) / C(g, t), where t of the g tied references, r of them right, fall within the first k.
    """
    nearer, tied, right = ranking.hit
    drawn = (k - nearer).clamp(min=0)
    missed = (log_choose(tied - right, drawn) - log_choose(tied, drawn)).exp()
    return 1 - torch.where(drawn > tied - right, 0, missed), ranking.relevant


@METRICS.register(reads="same")
def precision_at_1(ranking: Ranking) -> Scores:
    """Is the nearest reference right? The same number as recall_at_1."""
    return recall_at_k(ranking, 1)


@METRICS.register(reads="same")
def r_precision(ranking: Ranking) -> Scores:
    """R-Precision: the share of right ones among the nearest R (Musgrave et al., ECCV 2020, section 2.3)."""
    found, R = ranking.found, ranking.relevant
    position = torch.arange(1, found.shape[1] + 1, device=R.device)
    return (found * (position <= R[:, None])).sum(1) / R, R


@METRICS.register(reads="same")
def map_at_r(ranking: Ranking) -> Scores:
    """MAP@R = 1/R sum_{i <= R} [i-th is right] P(i), P(i) = precision of the nearest i.

    Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, section 2.3. With ties: position i, the
    j-th in a group of g with r right after h earlier right ones, is right with probability r / g and then has
    on average h + 1 + (j - 1)(r - 1) / (g - 1) right ones up to itself.
    """
    found, R, top = ranking.found, ranking.relevant, ranking.top
    position = torch.arange(1, found.shape[1] + 1, device=R.device)
    earlier = found.cumsum(1) - found * top.within
    others = (top.within - 1) * (found * top.size - 1) / (top.size - 1).clamp(min=1)
    gain = found * (earlier + 1 + others) / position
    return (gain * (position <= R[:, None])).sum(1) / R, R


@METRICS.register(reads="same")
def mrr(ranking: Ranking) -> Scores:
    """Mean reciprocal rank of the first right reference.

    With ties: sum_j C(g - j, r - 1) / C(g, r) / (s + j), j being the place of the first of r right ones among
    g tied references that come after s nearer ones.
    """
    nearer, tied, right = (n[:, None] for n in ranking.hit)
    places = int((tied - right)[ranking.relevant > 0].max()) + 1 if (ranking.relevant > 0).any() else 1
    j = torch.arange(1, places + 1, device=tied.device, dtype=tied.dtype)
    chance = (log_choose(tied - j, right - 1) - log_choose(tied, right)).exp()
    return torch.where(j <= tied - right + 1, chance / (nearer + j), 0).sum(1), ranking.relevant
