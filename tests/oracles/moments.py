"""Losses of moments as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, mean, others


def made(form: str, gap: float, variance: float, f: float) -> float:
    """-log d, 1 / d or -d for d = gap / sqrt(variance), the first two going on as lines below d = f."""
    d = gap / math.sqrt(variance)
    if form == "neg":
        return -d
    if form == "inverse":
        return 1 / d if d > f else 1 / f + (f - d) / f**2
    return -math.log(d) if d > f else -math.log(f) + (f - d) / f


def pd_loss(q: Batch, k: Batch, form: str = "neg_log", d_floor: float = 0.1, variance_floor: float = 1e-6) -> float:
    """Silva et al. 2025: -log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2."""
    genuine, impostor = [], []
    for z, label in zip(q.z, q.label, strict=True):
        for proxy, other in zip(k.z, k.label, strict=True):
            (genuine if label == other else impostor).append(cosine(z, proxy))
    if not genuine:
        return 0.0
    gap = mean(genuine) - mean(impostor)
    spread = sum(mean([(s - mean(part)) ** 2 for s in part]) for part in (genuine, impostor))
    return made(form, gap, spread + variance_floor, d_floor)


def d_loss(
    q: Batch,
    k: Batch,
    form: str = "neg_log",
    d_floor: float = 0.1,
    variance_floor: float = 1e-4,
    warn_below: int = 0,
) -> float:
    """Daugman's d' of all pairs, made into a loss; -log d' and 1 / d' go on as lines below the floor."""
    genuine, impostor = [], []
    for i in range(len(q)):
        for same, part in ((True, genuine), (False, impostor)):
            part += [cosine(q.z[i], k.z[j]) for j in others(q, i, k, same)]
    if not genuine or not impostor:
        return 0.0
    gap = mean(genuine) - mean(impostor)
    variance = sum(mean([(s - mean(part)) ** 2 for s in part]) for part in (genuine, impostor)) / 2 + variance_floor
    return made(form, gap, variance, d_floor)


ORACLES = [pd_loss, d_loss]
CASES: list[Case] = [
    Case("pd_loss"),
    Case("pd_loss", {"d_floor": 3.0, "variance_floor": 1e-3}),
    Case("pd_loss", {"form": "inverse", "variance_floor": 1e-2}),
    Case("pd_loss", {"form": "neg", "variance_floor": 1e-2}),
    Case("d_loss"),
    Case("d_loss", {"form": "inverse", "d_floor": 0.3, "variance_floor": 1e-2}),
    Case("d_loss", {"form": "neg", "variance_floor": 1e-2}),
    Case("d_loss", {"d_floor": 3.0}),
]
