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
    q: Batch,
    k: Batch,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    average: str = "active",
    regularizer: float = 0.005,
) -> float:
    """Yuan et al. 2019: hinges on var(b - a) / var(a), on the unit sphere."""
    pull, push = [], []
    for i in range(len(q)):
        for same, costs in ((True, pull), (False, push)):
            for j in others(q, i, k, same=same):
                a, b = unit(q.z[i]), unit(k.z[j])
                d = variance([v - u for u, v in zip(a, b, strict=True)]) / variance(a)
                costs.append(max(0.0, d - positive_margin if same else negative_margin - d))
    off_zero = regularizer * mean([abs(sum(unit(a))) for a in q.z])
    if average == "active":
        return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0]) + off_zero
    return mean(pull + push) + off_zero


def variance(a: Sequence[float]) -> float:
    centre = sum(a) / len(a)
    return sum((v - centre) ** 2 for v in a) / (len(a) - 1)


def margin(
    q: Batch,
    k: Batch,
    beta: float = 1.2,
    learn_beta: bool = True,
    alpha: float = 0.2,
    nu: float = 0.0,
    over: str = "pairs",
) -> float:
    """Wu et al. 2017, equation 5, over the active costs; triplets one by one."""
    total, active = 0.0, 0
    for i in range(len(q)):
        pull = [max(0.0, alpha + chord(q.z[i], k.z[j]) - beta) for j in others(q, i, k, same=True)]
        push = [max(0.0, alpha + beta - chord(q.z[i], k.z[j])) for j in others(q, i, k, same=False)]
        costs, betas = pull + push, 1
        if over == "triplets":
            costs = [cost for a in pull for b in push for cost in (a, b)]
            betas = len(pull) * len(push)
        if any(cost > 0 for cost in costs):
            total += sum(costs) + nu * beta * betas
            active += sum(cost > 0 for cost in costs)
    return total / max(active, 1)


ORACLES = [contrastive, snr_contrastive, margin]
CASES: list[Case] = [
    Case("contrastive"),
    Case("contrastive", {"power": 1, "average": "active", "positive_margin": 0.2, "negative_margin": 1.2}),
    Case("snr_contrastive"),
    Case("snr_contrastive", {"positive_margin": 0.4, "negative_margin": 3.0, "average": "pairs"}),
    Case("snr_contrastive", {"regularizer": 0.3}),
    Case("margin", {"beta": 1.25}),  # not 1.2, which single precision does not have
    Case("margin", {"beta": 0.875, "nu": 0.25, "alpha": 0.1, "learn_beta": False}),
    Case("margin", {"beta": 1.25, "nu": 0.25, "over": "triplets"}),
]
