"""Losses of ranks and histograms as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, chord, cosine, euclid, grades, mean, others, vectors


def fastap(q: Batch, k: Batch, bins: int = 10) -> float:
    """Cakir et al. 2019: triangular pulses around bins + 1 centres on [0, 4]."""
    rows = []
    for i in range(len(q)):
        positive, negative = others(q, i, k, same=True), others(q, i, k, same=False)
        if not positive:
            continue
        step, precision = 4 / bins, 0.0
        hits_so_far = all_so_far = 0.0
        for centre in range(bins + 1):
            pulse = {
                j: max(0.0, 1 - abs(chord(q.z[i], k.z[j]) ** 2 - centre * step) / step) for j in positive + negative
            }
            hits = sum(pulse[j] for j in positive)
            hits_so_far += hits
            all_so_far += sum(pulse.values())
            precision += hits * hits_so_far / all_so_far if all_so_far else 0.0
        rows.append(1 - precision / len(positive))
    return mean(rows)


def step(gap: float) -> float:
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


def smooth_ap(q: Batch, k: Batch, temperature: float = 0.01, with_query: bool = False) -> float:
    """Brown et al. 2020: sigmoids in the place of the indicator in each positive's rank."""
    rows = []
    for i in range(len(q)):
        near = {j: cosine(q.z[i], k.z[j]) for j in range(len(k)) if k.id[j] != q.id[i]}
        positive = others(q, i, k, same=True)
        if not positive:
            continue
        if with_query:
            near[-1] = 1.0
            positive.append(-1)
        precision = []
        for a in positive:
            rank = {j: step((near[j] - near[a]) / temperature) for j in near if j != a}
            precision.append((1 + sum(rank[j] for j in positive if j != a)) / (1 + sum(rank.values())))
        rows.append(1 - mean(precision))
    return mean(rows)


def histogram(q: Batch, k: Batch, steps: int = 100) -> float:
    """Ustinova and Lempitsky 2016, equations 1 to 4: triangular kernels around steps + 1 nodes on [-1, 1]."""
    near: dict[bool, list[float]] = {
        same: [cosine(q.z[i], k.z[j]) for i in range(len(q)) for j in others(q, i, k, same)] for same in (True, False)
    }
    if not near[True] or not near[False]:
        return 0.0
    width, loss, so_far = 2 / steps, 0.0, 0.0
    for r in range(steps + 1):
        node = -1 + r * width
        h = {same: mean([max(0.0, 1 - abs(s - node) / width) for s in near[same]]) for same in near}
        so_far += h[True]
        loss += h[False] * so_far
    return loss


def cosent(q: Batch, k: Batch, scale: float = 20.0) -> float:
    """Su 2022: all couples of pairs whose label distances differ; classes have the distances 0 and 1."""
    nears: list[tuple[float, float]] = []
    for i in range(len(q)):
        for j in range(len(k)):
            met_before = k.id[j] in q.id and q.id[i] in k.id and k.id[j] < q.id[i]
            if k.id[j] != q.id[i] and not met_before:
                a, b = q.label[i], k.label[j]
                y = euclid(a, b) if isinstance(a, list) else float(a != b)
                nears.append((y, cosine(q.z[i], k.z[j])))
    return math.log1p(sum(math.exp(scale * (s_r - s_p)) for y_p, s_p in nears for y_r, s_r in nears if y_p < y_r))


ORACLES = [fastap, smooth_ap, histogram, cosent]
CASES: list[Case] = [
    Case("fastap"),
    Case("fastap", {"bins": 3}),
    Case("smooth_ap"),
    Case("smooth_ap", {"temperature": 0.2, "with_query": True}),
    Case("histogram"),
    Case("histogram", {"steps": 7}),
    Case("cosent"),
    Case("cosent", {"scale": 3.0}),
    Case("cosent", {}, "euclidean", vectors),
    Case("cosent", {"scale": 5.0}, "euclidean", grades),
]
