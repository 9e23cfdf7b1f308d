"""Losses of a row's log-sum-exps as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, mean, others


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


ORACLES = [multi_similarity, supcon]
CASES: list[Case] = [
    Case("multi_similarity"),
    Case("supcon"),
]
