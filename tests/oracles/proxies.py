"""Proxy losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .common import Batch, Case, chord, cosine, mean


def normalized_softmax(q: Batch, k: Batch, temperature: float = 0.05) -> float:
    """Zhai and Wu 2019, equation 2: cross-entropy on cosines over a temperature."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        weight = [math.exp(cosine(z, proxy) / temperature) for proxy in k.z]
        rows.append(-math.log(weight[k.label.index(label)] / sum(weight)))
    return mean(rows)


def proxy_anchor(q: Batch, k: Batch, alpha: float = 32.0, margin: float = 0.1) -> float:
    """Kim et al. 2020, equation 4."""
    pull, push = [], []
    for proxy, label in zip(k.z, k.label, strict=True):
        of_class = [z for z, other in zip(q.z, q.label, strict=True) if other == label]
        of_others = [z for z, other in zip(q.z, q.label, strict=True) if other != label]
        if of_class:
            pull.append(math.log(1 + sum(math.exp(-alpha * (cosine(z, proxy) - margin)) for z in of_class)))
        push.append(math.log(1 + sum(math.exp(alpha * (cosine(z, proxy) + margin)) for z in of_others)))
    return mean(pull) + mean(push)


def over_classes(own: float, others: list[float], alone: bool = False) -> float:
    """Negative logarithm of the own class's share, with or without itself in the sum."""
    return math.log(sum(math.exp(o) for o in others) + (0 if alone else math.exp(own))) - own


def cosines(z: Sequence[float], label: int, k: Batch) -> tuple[float, list[float]]:
    """Cosine to the own proxy, and to all others."""
    own = [cosine(z, w) for w, of in zip(k.z, k.label, strict=True) if of == label]
    return own[0], [cosine(z, w) for w, of in zip(k.z, k.label, strict=True) if of != label]


def proxy_nca(q: Batch, k: Batch, scale: float = 1.0) -> float:
    """Movshovitz-Attias et al. 2017, equation 4: squared distances, the own proxy not in the sum."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        costs = [(scale * chord(z, w)) ** 2 for w in k.z]
        own = k.label.index(label)
        rows.append(over_classes(-costs[own], [-d for i, d in enumerate(costs) if i != own], alone=True))
    return mean(rows)


def proxy_nca_pp(q: Batch, k: Batch, temperature: float = 1 / 9) -> float:
    """Teh et al. 2020, equation 6: squared distances over a temperature, all proxies in the sum."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        costs = [chord(z, w) ** 2 / temperature for w in k.z]
        own = k.label.index(label)
        rows.append(over_classes(-costs[own], [-d for i, d in enumerate(costs) if i != own]))
    return mean(rows)


def cosface(q: Batch, k: Batch, margin: float = 0.35, scale: float = 64.0) -> float:
    """Wang et al. 2018, equation 4."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        own, others = cosines(z, label, k)
        rows.append(over_classes(scale * (own - margin), [scale * s for s in others]))
    return mean(rows)


def arcface(q: Batch, k: Batch, margin: float = 0.5, scale: float = 64.0, centers: int = 1) -> float:
    """Deng et al. 2019, equation 3, with the fallback of the authors' code; sub-centres: the nearest counts."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        best = {c: max(cosine(z, w) for w, of in zip(k.z, k.label, strict=True) if of == c) for c in set(k.label)}
        angle = math.acos(max(-1.0, min(1.0, best[label])))
        own = math.cos(angle + margin) if angle <= math.pi - margin else best[label] - margin * math.sin(margin)
        rows.append(over_classes(scale * own, [scale * s for c, s in best.items() if c != label]))
    return mean(rows)


def sphereface(
    q: Batch, k: Batch, margin: int = 4, scale: float = 1.0, annealing: bool = True, anneal_base: float = 1500.0,
    anneal_floor: float = 5.0, step: int = 1, anneal_rate: float = 0.1,
) -> float:  # fmt: skip
    """Liu et al. 2017, equation 7, with the annealing of the authors' code."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        length = scale * math.sqrt(sum(a * a for a in z))
        own, others = cosines(z, label, k)
        angle = math.acos(own)
        turns = math.floor(margin * angle / math.pi)
        psi = (-1) ** turns * math.cos(margin * angle) - 2 * turns
        if annealing:
            mixed = max(anneal_floor, anneal_base / (1 + anneal_rate * step))
            psi = (mixed * own + psi) / (1 + mixed)
        rows.append(over_classes(length * psi, [length * s for s in others]))
    return mean(rows)


def soft_triple(
    q: Batch, k: Batch, la: float = 20.0, gamma: float = 0.1, tau: float = 0.2, margin: float = 0.01, centers: int = 10
) -> float:
    """Qian et al. 2019, equations 10 to 14, the regulariser divided as in the authors' code."""
    classes = sorted(set(k.label))
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        score = {}
        for c in classes:
            s = [cosine(z, w) for w, of in zip(k.z, k.label, strict=True) if of == c]
            weight = [math.exp(x / gamma) for x in s]
            score[c] = sum(w * x for w, x in zip(weight, s, strict=True)) / sum(weight)
        rows.append(over_classes(la * (score[label] - margin), [la * score[c] for c in classes if c != label]))
    apart = 0.0
    for c in classes:
        own = [w for w, of in zip(k.z, k.label, strict=True) if of == c]
        apart += sum(math.sqrt(2 - 2 * cosine(a, b) + 1e-5) for i, a in enumerate(own) for b in own[i + 1 :])
    divisor = max(1, len(classes) * centers * (centers - 1))
    return (mean(rows) + tau * apart / divisor) if rows else 0.0


ORACLES = [
    arcface, cosface, normalized_softmax, proxy_anchor, proxy_nca, proxy_nca_pp, soft_triple, sphereface
]  # fmt: skip
CASES: list[Case] = [
    Case("normalized_softmax"),
    Case("proxy_anchor"),
    Case("proxy_nca"),
    Case("proxy_nca", {"scale": 3.0}),
    Case("proxy_nca_pp"),
    Case("cosface"),
    Case("cosface", {"margin": 0.1, "scale": 8.0}),
    Case("arcface"),
    Case("arcface", {"centers": 3, "scale": 8.0}),
    Case("sphereface", {"annealing": False}),
    Case("sphereface", {"anneal_base": 5.0}),
    Case("sphereface", {"annealing": False, "margin": 3, "scale": 2.0}),
    Case("soft_triple"),
    Case("soft_triple", {"centers": 2, "gamma": 1.0, "tau": 0.0}),
    Case("soft_triple", {"centers": 1, "margin": 0.3}),
]
