"""Each registered loss as plain loops over Python floats, from its paper; shares nothing with the library.

Every oracle takes queries, keys (the batch itself, references, or the proxies) and the loss's options, and
returns the loss. A pair counts unless both have the same id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    z: Sequence[Sequence[float]]
    label: Sequence[Any]
    id: Sequence[int]

    def __len__(self) -> int:
        return len(self.z)


def euclid(a: Sequence[float], b: Sequence[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def unit(a: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in a))
    return [x / length for x in a]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def chord(a: Sequence[float], b: Sequence[float]) -> float:
    return euclid(unit(a), unit(b))


def others(q: Batch, i: int, k: Batch, same: bool) -> list[int]:
    """Keys of the same (or of another) class as query i, without itself."""
    return [j for j in range(len(k)) if k.id[j] != q.id[i] and (k.label[j] == q.label[i]) is same]


def mean(values: Sequence[float]) -> float:
    """Mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


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


def triplet(q: Batch, k: Batch, margin: float = 0.2, triplets: str = "all", average: str = "active") -> float:
    """Schroff et al. 2015, equation 2, with distances in place of their squares (Hermans et al. 2017)."""
    active, considered = [], 0
    for i in range(len(q)):
        for p in others(q, i, k, same=True):
            for n in others(q, i, k, same=False):
                near, far = chord(q.z[i], k.z[p]), chord(q.z[i], k.z[n])
                considered += 1
                cost = near - far + margin
                if cost > 0 and (triplets == "all" or near < far):
                    active.append(cost)
    return mean(active) if average == "active" else sum(active) / max(considered, 1)


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


def pd_loss(q: Batch, k: Batch, gap_floor: float = 0.05, variance_floor: float = 1e-6) -> float:
    """Silva et al. 2025: -log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2; a line below the floor."""
    genuine, impostor = [], []
    for z, label in zip(q.z, q.label, strict=True):
        for proxy, other in zip(k.z, k.label, strict=True):
            (genuine if label == other else impostor).append(cosine(z, proxy))
    if not genuine:
        return 0.0
    gap = mean(genuine) - mean(impostor)
    spread = sum(mean([(s - mean(part)) ** 2 for s in part]) for part in (genuine, impostor))
    reach = math.log(gap) if gap > gap_floor else math.log(gap_floor) + (gap - gap_floor) / gap_floor
    return -reach + math.log(spread + variance_floor) / 2


ORACLES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        contrastive, log_ratio, multi_similarity, normalized_softmax, pd_loss, proxy_anchor, supcon, triplet,
    )
}  # fmt: skip
