"""Losses of a row's log-sum-exps as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .common import Batch, Case, cosine, euclid, mean, others, unit


def multi_similarity(q: Batch, k: Batch, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> float:
    """Wang et al. 2019, equation 10."""
    rows = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        if positive or negative:
            pull = sum(math.exp(-alpha * (cosine(q.z[i], k.z[j]) - base)) for j in positive)
            push = sum(math.exp(beta * (cosine(q.z[i], k.z[j]) - base)) for j in negative)
            rows.append(math.log(1 + pull) / alpha + math.log(1 + push) / beta)
    return mean(rows)


def supcon(q: Batch, k: Batch, temperature: float = 0.1) -> float:
    """Khosla et al. 2020, equation 2, over the anchors that have a positive."""
    rows = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        if positive:
            total = sum(math.exp(cosine(q.z[i], k.z[j]) / temperature) for j in positive + negative)
            rows.append(-mean([math.log(math.exp(cosine(q.z[i], k.z[j]) / temperature) / total) for j in positive]))
    return mean(rows)


def nt_xent(q: Batch, k: Batch, temperature: float = 0.1, positives: str = "together") -> float:
    """Chen et al. 2020, equation 1, for each positive pair."""
    costs = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        for p in positive:
            against = (positive if positives == "together" else [p]) + negative
            total = sum(math.exp(cosine(q.z[i], k.z[j]) / temperature) for j in against)
            costs.append(-math.log(math.exp(cosine(q.z[i], k.z[p]) / temperature) / total))
    return mean(costs)


def circle(q: Batch, k: Batch, margin: float = 0.25, scale: float = 256.0, detach: bool = True) -> float:
    """Sun et al. 2020, equations 5 and 6, over the anchors that have a positive and a negative."""
    rows = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        if positive and negative:
            costs = [0.0]
            for p in positive:
                for n in negative:
                    near, far = cosine(q.z[i], k.z[p]), cosine(q.z[i], k.z[n])
                    weight_p, weight_n = max(1 + margin - near, 0), max(far + margin, 0)
                    costs.append(scale * (weight_n * (far - margin) - weight_p * (near - (1 - margin))))
            top = max(costs)  # exp of the costs themselves can be more than a float holds
            rows.append(top + math.log(sum(math.exp(c - top) for c in costs)))
    return mean(rows)


def generalized_lifted_structure(q: Batch, k: Batch, margin: float = 1.0) -> float:
    """Hermans et al. 2017, L_LG, over the anchors that have a positive and a negative."""
    rows = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        if positive and negative:
            pull = math.log(sum(math.exp(euclid(q.z[i], k.z[j])) for j in positive))
            push = math.log(sum(math.exp(margin - euclid(q.z[i], k.z[j])) for j in negative))
            rows.append(max(pull + push, 0))
    return mean(rows)


def tuplet_margin(
    q: Batch,
    k: Batch,
    margin: float = 0.1,
    scale: float = 64.0,
    variance_weight: float = 0.5,
    variance_slack: float = 0.01,
) -> float:
    """Yu and Tao 2019, tuplet margin and intra-pair variance."""
    costs, near, far = [], [], []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        near += [cosine(q.z[i], k.z[p]) for p in positive]
        far += [cosine(q.z[i], k.z[n]) for n in negative]
        for p in positive if negative else []:
            aim = math.cos(math.acos(cosine(q.z[i], k.z[p])) - margin)
            costs.append(math.log1p(sum(math.exp(scale * (cosine(q.z[i], k.z[n]) - aim)) for n in negative)))
    late = [max((1 - variance_slack) * mean(near) - s, 0) ** 2 for s in near]
    early = [max(s - (1 + variance_slack) * mean(far), 0) ** 2 for s in far]
    return mean(costs) + variance_weight * (mean(late) + mean(early))


def lifted_structure(q: Batch, k: Batch, margin: float = 1.0) -> float:
    """Song et al. 2016, the smooth form; the negatives of a key are queries."""
    costs = []
    for i in range(len(q)):
        for j in others(q, i, k, same=True):
            push = sum(math.exp(margin - euclid(q.z[i], k.z[n])) for n in others(q, i, k, same=False))
            push += sum(math.exp(margin - euclid(k.z[j], q.z[n])) for n in others(k, j, q, same=False))
            if push > 0:
                costs.append(max(math.log(push) + euclid(q.z[i], k.z[j]), 0) ** 2)
    return mean(costs) / 2


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def n_pairs(q: Batch, k: Batch, l2: float = 0.0) -> float:
    """Sohn 2016, N-pair-mc, on the first pair of each class."""
    pairs = {}
    for i in range(len(q)):
        if q.label[i] not in pairs and (positive := others(q, i, k, same=True)):
            pairs[q.label[i]] = q.z[i], k.z[positive[0]]
    costs, lengths = [], []
    for c, (a, p) in pairs.items():
        costs.append(math.log1p(sum(math.exp(dot(a, pairs[o][1]) - dot(a, p)) for o in pairs if o != c)))
        lengths.append(dot(a, a) + dot(p, p))
    return mean(costs) + l2 / 4 * mean(lengths)


def angular(q: Batch, k: Batch, alpha: float = 45.0) -> float:
    """Wang et al. 2017, the smooth form, over all positive pairs."""
    t, costs = math.tan(math.radians(alpha)) ** 2, []
    for i in range(len(q)):
        for j in others(q, i, k, same=True):
            a, p = unit(q.z[i]), unit(k.z[j])
            negative = [unit(k.z[n]) for n in others(q, i, k, same=False)]
            total = 0.0
            for n in negative:
                total += math.exp(4 * t * (dot(a, n) + dot(p, n)) - 2 * (1 + t) * dot(a, p))
            if negative:
                costs.append(math.log1p(total))
    return mean(costs)


ORACLES = [
    multi_similarity,
    supcon,
    nt_xent,
    circle,
    generalized_lifted_structure,
    tuplet_margin,
    lifted_structure,
    n_pairs,
    angular,
]
CASES: list[Case] = [
    Case("multi_similarity"),
    Case("supcon"),
    Case("nt_xent"),
    Case("nt_xent", {"positives": "separate", "temperature": 0.5}),
    Case("circle"),
    Case("circle", {"margin": 0.4, "scale": 80.0, "detach": False}),
    Case("generalized_lifted_structure"),
    Case("generalized_lifted_structure", {"margin": 0.2}),
    Case("tuplet_margin"),
    Case("tuplet_margin", {"margin": 0.3, "scale": 10.0, "variance_weight": 0.0}),
    Case("tuplet_margin", {"scale": 4.0, "variance_weight": 2.0, "variance_slack": 0.2}),
    Case("lifted_structure"),
    Case("lifted_structure", {"margin": 0.2}),
    Case("n_pairs"),
    Case("n_pairs", {"l2": 0.1}),
    Case("angular"),
    Case("angular", {"alpha": 36.0}),
]
