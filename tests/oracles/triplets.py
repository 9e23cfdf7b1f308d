"""Triplet losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math
from typing import Any

from .common import Batch, Case, chord, euclid, grades, mean, others, vectors


def triplet(
    q: Batch,
    k: Batch,
    margin: float = 0.2,
    triplets: str = "all",
    hinge: str = "hinge",
    power: int = 1,
    average: str = "active",
) -> float:
    """Schroff et al. 2015, equation 2, with distances in place of their squares (Hermans et al. 2017)."""
    active, considered = [], 0
    for i in range(len(q)):
        negatives = [chord(q.z[i], k.z[n]) for n in others(q, i, k, same=False)]
        for p in others(q, i, k, same=True):
            near = chord(q.z[i], k.z[p])
            chosen = negatives
            if triplets == "facenet" and negatives:
                beyond = [far for far in negatives if far > near]
                chosen = [min(beyond) if beyond else max(negatives)]
            for far in chosen:
                considered += 1
                gap = near - far + margin
                if (triplets == "semi_hard" and not (near < far and gap > 0)) or (
                    triplets == "hard" and not (near >= far and gap > 0)
                ):
                    continue
                cost = (math.log(1 + math.exp(gap)) if hinge == "soft" else max(gap, 0.0)) ** power
                if cost > 0:
                    active.append(cost)
    return mean(active) if average == "active" else sum(active) / max(considered, 1)


def swapped_triplet(q: Batch, k: Batch, margin: float = 0.2, hinge: str = "hinge", average: str = "active") -> float:
    """Balntas et al. 2016: the negative counts from the nearer of anchor and positive."""
    costs = []
    for i in range(len(q)):
        for p in others(q, i, k, same=True):
            for n in others(q, i, k, same=False):
                far = min(chord(q.z[i], k.z[n]), chord(k.z[p], k.z[n]))
                gap = chord(q.z[i], k.z[p]) - far + margin
                costs.append(math.log(1 + math.exp(gap)) if hinge == "soft" else max(gap, 0.0))
    return mean(costs if average == "all" else [c for c in costs if c > 0])


def dense_triplet(q: Batch, k: Batch, margin: float = 0.03, ties: str = "exclude", average: str = "all") -> float:
    """Kim et al. 2019, equation 7: the hinge for all pairs (i, j) of an anchor with D(y_a, y_i) < D(y_a, y_j)."""
    costs = []
    for a in range(len(q)):
        keys = [j for j in range(len(k)) if k.id[j] != q.id[a]]
        gap = {j: gap_of(q.label[a], k.label[j]) for j in keys}
        far = {j: chord(q.z[a], k.z[j]) ** 2 for j in keys}
        for i in keys:
            for j in keys:
                if gap[i] < gap[j] or (ties == "include" and gap[i] == gap[j] and i < j):
                    costs.append(max(0.0, far[i] - far[j] + margin))
    return mean(costs if average == "all" else [c for c in costs if c > 0])


def gap_of(a: Any, b: Any) -> float:
    return euclid(a, b) if isinstance(a, list) else float(a != b)


ORACLES = [triplet, swapped_triplet, dense_triplet]
CASES: list[Case] = [
    Case("triplet"),
    Case("triplet", {"margin": 0.5, "triplets": "semi_hard"}),
    Case("triplet", {"margin": 0.3, "average": "all"}),
    Case("triplet", {"triplets": "hard", "power": 2}),
    Case("triplet", {"triplets": "facenet", "margin": 0.5}),
    Case("triplet", {"triplets": "facenet", "hinge": "soft", "average": "all"}),
    Case("triplet", {"power": 2, "margin": 0.4}),
    Case("triplet", {"hinge": "soft", "margin": 0.0}),
    Case("triplet", {"hinge": "soft", "margin": 0.5, "triplets": "semi_hard", "power": 2}),
    Case("triplet", {"hinge": "soft", "margin": 0.5, "triplets": "hard"}),
    Case("swapped_triplet"),
    Case("swapped_triplet", {"margin": 0.5, "average": "all"}),
    Case("swapped_triplet", {"hinge": "soft", "margin": 0.0}),
    Case("dense_triplet", {}, "euclidean", vectors),
    Case("dense_triplet", {"average": "active"}, "euclidean", grades),
    Case("dense_triplet", {"margin": 0.3}),
    Case("dense_triplet", {"ties": "include", "margin": 0.1}, "euclidean", vectors),
]
