"""Proxy losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, mean


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


ORACLES = [normalized_softmax, proxy_anchor]
CASES: list[Case] = [
    Case("normalized_softmax"),
    Case("proxy_anchor"),
]
