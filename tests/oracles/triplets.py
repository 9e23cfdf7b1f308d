"""Triplet losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

from .common import Batch, Case, chord, mean, others


def triplet(q: Batch, k: Batch, margin: float = 0.2, triplets: str = "all", average: str = "active") -> float:
    """Schroff et al. 2015, equation 2, with distances in place of their squares (Hermans et al. 2017)."""
    active, considered = [], 0
    for i in range(len(q)):
        for p in others(q, i, k, same=True):
            for n in others(q, i, k, same=False):
                near, far = chord(q.z[i], k.z[p]), chord(q.z[i], k.z[n])
                considered += 1
                cost = near - far + margin
                if cost > 0 and (triplets == "all" or near < far):
                    active.append(cost)
    return mean(active) if average == "active" else sum(active) / max(considered, 1)


ORACLES = [triplet]
CASES: list[Case] = [
    Case("triplet"),
    Case("triplet", {"margin": 0.5, "triplets": "semi_hard"}),
    Case("triplet", {"margin": 0.3, "average": "all"}),
]
