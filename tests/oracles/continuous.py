"""Losses of continuous labels as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math
from typing import Any

from .common import Batch, Case, euclid, grades, mean, vectors


def log_ratio(
    q: Batch,
    k: Batch,
    embedding_power: float = 1.0,
    label_power: float = 1.0,
    ties: str = "exclude",
    zero_labels: str = "drop",
    label_floor: float = 1e-6,
    eps: float = 1e-6,
) -> float:
    """Kim et al. 2019, equations 2 and 7: all pairs (i, j) of an anchor with D(y_a, y_i) < D(y_a, y_j)."""
    rows = []
    for a in range(len(q)):
        gap = {j: euclid(q.label[a], k.label[j]) for j in range(len(k)) if k.id[j] != q.id[a]}
        if zero_labels == "floor":
            gap = {j: max(g, label_floor) for j, g in gap.items()}
        gap = {j: g for j, g in gap.items() if g > 0}
        far = {j: euclid(q.z[a], k.z[j]) + eps for j in gap}
        terms = []
        for i in gap:
            for j in gap:
                if gap[i] < gap[j] or (ties == "include" and gap[i] == gap[j] and i < j):
                    ratio = embedding_power * math.log(far[i] / far[j])
                    terms.append((ratio - label_power * math.log(gap[i] / gap[j])) ** 2)
        if terms:
            rows.append(mean(terms))
    return mean(rows)


def graded(**options: Any) -> Case:
    return Case("log_ratio", options, "euclidean", grades)


ORACLES = [log_ratio]
CASES: list[Case] = [
    Case("log_ratio", {}, "euclidean", vectors),
    graded(),
    graded(ties="include", zero_labels="floor", label_floor=0.1, eps=1e-3),
    graded(embedding_power=2.0, label_power=0.5),
]
