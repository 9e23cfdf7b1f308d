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
    inner_eps: float = 0.0,
) -> float:
    """Kim et al. 2019, equations 2 and 7: all pairs (i, j) of an anchor with D(y_a, y_i) < D(y_a, y_j)."""
    rows = []
    for a in range(len(q)):
        gap = {j: euclid(q.label[a], k.label[j]) for j in range(len(k)) if k.id[j] != q.id[a]}
        if zero_labels == "floor":
            gap = {j: max(g, label_floor) for j, g in gap.items()}
        if zero_labels == "add":
            gap = {j: g + label_floor for j, g in gap.items()}
        gap = {j: g for j, g in gap.items() if g > 0}
        far = {j: math.sqrt(euclid(q.z[a], k.z[j]) ** 2 + inner_eps) + eps for j in gap}
        terms = []
        for i in gap:
            for j in gap:
                if gap[i] < gap[j] or (ties == "include" and gap[i] == gap[j] and i < j):
                    ratio = embedding_power * math.log(far[i] / far[j])
                    terms.append((ratio - label_power * math.log(gap[i] / gap[j])) ** 2)
        if terms:
            rows.append(mean(terms))
    return mean(rows)


def label_gap(a: Any, b: Any) -> float:
    """Distance of two labels: 0 or 1 for classes."""
    return euclid(a, b) if isinstance(a, list) else float(a != b)


def rank_n_contrast(q: Batch, k: Batch, temperature: float = 2.0) -> float:
    """Zha et al. 2023, equations 1 and 2: key j against all keys whose labels are at least as far."""
    terms = []
    for i in range(len(q)):
        gap = {j: label_gap(q.label[i], k.label[j]) for j in range(len(k)) if k.id[j] != q.id[i]}
        near = {j: math.exp(-euclid(q.z[i], k.z[j]) / temperature) for j in gap}
        terms += [-math.log(near[j] / sum(near[m] for m in gap if gap[m] >= gap[j])) for j in gap]
    return mean(terms)


def soft_contrastive(
    q: Batch,
    k: Batch,
    sigma: float = 1.0,
    delta: float = 1.0,
    mean_gradient: bool = True,
    count_self: bool = False,
) -> float:
    """Kim et al. 2021, equation 4, distances of labels for the teacher's."""
    rows = []
    for i in range(len(q)):
        far = {j: euclid(q.z[i], k.z[j]) for j in range(len(k)) if k.id[j] != q.id[i]}
        mu = mean([*far.values(), *([0.0] if count_self else [])]) or 1.0
        cost = 0.0
        for j, d in far.items():
            same = math.exp(-(euclid(q.label[i], k.label[j]) ** 2) / sigma)
            cost += same * (d / mu) ** 2 + (1 - same) * max(delta - d / mu, 0.0) ** 2
        if far:
            rows.append(cost)
    return mean(rows)


def graded(loss: str = "log_ratio", **options: Any) -> Case:
    return Case(loss, options, "euclidean", grades)


ORACLES = [log_ratio, rank_n_contrast, soft_contrastive]
CASES: list[Case] = [
    Case("log_ratio", {}, "euclidean", vectors),
    graded(),
    graded(ties="include", zero_labels="floor", label_floor=0.1, eps=1e-3),
    graded(embedding_power=2.0, label_power=0.5),
    graded(zero_labels="add", label_floor=1e-2, inner_eps=1e-2),
    Case("rank_n_contrast", {}, "euclidean", vectors),
    graded("rank_n_contrast", temperature=0.5),
    Case("rank_n_contrast"),
    Case("soft_contrastive", {}, "euclidean", vectors),
    graded("soft_contrastive", sigma=2.0, delta=1.5, count_self=True),
]
