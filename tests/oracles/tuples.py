"""Losses of a row's log-sum-exps as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, euclid, mean, others


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
    """Sun et al. 2020, equations 5, 6 and 8, over the anchors that have a positive and a negative."""
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


ORACLES = [multi_similarity, supcon, nt_xent, circle, generalized_lifted_structure]
CASES: list[Case] = [
    Case("multi_similarity"),
    Case("supcon"),
    Case("nt_xent"),
    Case("nt_xent", {"positives": "separate", "temperature": 0.5}),
    Case("circle"),
    Case("circle", {"margin": 0.4, "scale": 80.0, "detach": False}),
    Case("generalized_lifted_structure"),
    Case("generalized_lifted_structure", {"margin": 0.2}),
]
