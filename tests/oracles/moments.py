"""Losses of moments as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import itertools
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


def pd_loss(
    q: Batch,
    k: Batch,
    form: str = "neg_log",
    d_floor: float = 0.1,
    variance_floor: float = 1e-6,
    hardness: float = 0.0,
) -> float:
    """Silva et al. 2025: -log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2."""
    genuine, impostor = [], []
    for z, label in zip(q.z, q.label, strict=True):
        own = []
        for proxy, other in zip(k.z, k.label, strict=True):
            (genuine if label == other else own).append(cosine(z, proxy))
        impostor.append(own)
    if not genuine:
        return 0.0
    gap, spread = moments(genuine, impostor, hardness)
    return made(form, gap, spread + variance_floor, d_floor)


def moments(genuine: list[float], impostor: list[list[float]], hardness: float) -> tuple[float, float]:
    """Gap of the means and sum of the variances; an item's impostors count exp(hardness score) times."""
    scores, counts = [], []
    for own in impostor:
        weights = [math.exp(hardness * s) for s in own]
        scores += own
        counts += [w * len(own) / sum(weights) for w in weights]
    centre = sum(w * s for w, s in zip(counts, scores, strict=True)) / len(scores)
    around = sum(w * (s - centre) ** 2 for w, s in zip(counts, scores, strict=True)) / len(scores)
    return mean(genuine) - centre, mean([(s - mean(genuine)) ** 2 for s in genuine]) + around


def d_loss(
    q: Batch,
    k: Batch,
    form: str = "neg_log",
    d_floor: float = 0.1,
    variance_floor: float = 1e-4,
    warn_below: int = 0,
    hardness: float = 0.0,
) -> float:
    """Daugman's d' of all pairs, made into a loss; -log d' and 1 / d' go on as lines below the floor."""
    both = [[[cosine(q.z[i], k.z[j]) for j in others(q, i, k, same)] for i in range(len(q))] for same in (True, False)]
    genuine, impostor = list(itertools.chain(*both[0])), both[1]
    if not genuine or not any(impostor):
        return 0.0
    gap, spread = moments(genuine, impostor, hardness)
    return made(form, gap, spread / 2 + variance_floor, d_floor)


ORACLES = [pd_loss, d_loss]
CASES: list[Case] = [
    Case("pd_loss"),
    Case("pd_loss", {"d_floor": 3.0, "variance_floor": 1e-3}),
    Case("pd_loss", {"form": "inverse", "variance_floor": 1e-2}),
    Case("pd_loss", {"form": "neg", "variance_floor": 1e-2}),
    Case("pd_loss", {"hardness": 3.0}),
    Case("d_loss"),
    Case("d_loss", {"form": "inverse", "d_floor": 0.3, "variance_floor": 1e-2}),
    Case("d_loss", {"form": "neg", "variance_floor": 1e-2}),
    Case("d_loss", {"d_floor": 3.0}),
    Case("d_loss", {"hardness": 3.0}),
]
