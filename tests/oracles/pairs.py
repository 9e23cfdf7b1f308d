"""Pair losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

from collections.abc import Sequence

from .common import Batch, Case, chord, mean, others, unit


def contrastive(
    q: Batch,
    k: Batch,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    power: int = 2,
    average: str = "pairs",
) -> float:
    """Hadsell et al. 2006, equation 4: D^2 / 2 for the same, max(0, m - D)^2 / 2 for the different."""
    pull, push = [], []
    for i in range(len(q)):
        for j in others(q, i, k, same=True):
            pull.append(max(0.0, chord(q.z[i], k.z[j]) - positive_margin) ** power / power)
        for j in others(q, i, k, same=False):
            push.append(max(0.0, negative_margin - chord(q.z[i], k.z[j])) ** power / power)
    if average == "active":
        return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0])
    return mean(pull + push)


def snr_contrastive(
    q: Batch, k: Batch, positive_margin: float = 0.0, negative_margin: float = 1.0, average: str = "active"
) -> float:
    """Yuan et al. 2019: hinges on var(b - a) / var(a), on the unit sphere."""
    pull, push = [], []
    for i in range(len(q)):
        for same, costs in ((True, pull), (False, push)):
            for j in others(q, i, k, same=same):
                a, b = unit(q.z[i]), unit(k.z[j])
                d = variance([v - u for u, v in zip(a, b, strict=True)]) / variance(a)
                costs.append(max(0.0, d - positive_margin if same else negative_margin - d))
    if average == "active":
        return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0])
    return mean(pull + push)


def variance(a: Sequence[float]) -> float:
    centre = sum(a) / len(a)
    return sum((v - centre) ** 2 for v in a) / (len(a) - 1)


ORACLES = [contrastive, snr_contrastive]
CASES: list[Case] = [
    Case("contrastive"),
    Case("contrastive", {"power": 1, "average": "active", "positive_margin": 0.2, "negative_margin": 1.2}),
    Case("snr_contrastive"),
    Case("snr_contrastive", {"positive_margin": 0.4, "negative_margin": 3.0, "average": "pairs"}),
]
