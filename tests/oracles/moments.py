"""Losses of moments as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, mean


def pd_loss(q: Batch, k: Batch, gap_floor: float = 0.05, variance_floor: float = 1e-6) -> float:
    """Silva et al. 2025: -log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2; a line below the floor."""
    genuine, impostor = [], []
    for z, label in zip(q.z, q.label, strict=True):
        for proxy, other in zip(k.z, k.label, strict=True):
            (genuine if label == other else impostor).append(cosine(z, proxy))
    if not genuine:
        return 0.0
    gap = mean(genuine) - mean(impostor)
    spread = sum(mean([(s - mean(part)) ** 2 for s in part]) for part in (genuine, impostor))
    reach = math.log(gap) if gap > gap_floor else math.log(gap_floor) + (gap - gap_floor) / gap_floor
    return -reach + math.log(spread + variance_floor) / 2


ORACLES = [pd_loss]
CASES: list[Case] = [
    Case("pd_loss"),
    Case("pd_loss", {"gap_floor": 3.0, "variance_floor": 1e-3}),
]
