"""Mean-field losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

import math

from .common import Batch, Case, cosine, mean


def mean_field_contrastive(
    q: Batch, k: Batch, positive_margin: float = 0.02, negative_margin: float = 0.3, regularizer: float = 0.0
) -> float:
    """Furusawa 2024, equation 8, with d = 1 - cosine."""
    rows = []
    for z, label in zip(q.z, q.label, strict=True):
        cost = 0.0
        for field, other in zip(k.z, k.label, strict=True):
            d = 1 - cosine(z, field)
            cost += max(0.0, d - positive_margin) if label == other else max(0.0, negative_margin - d)
        rows.append(cost)
    between = 0.0
    for c in range(len(k)):
        for other in range(len(k)):
            if c != other:
                between += max(0.0, negative_margin - (1 - cosine(k.z[c], k.z[other]))) ** 2
    return mean(rows) + regularizer * between / len(k)


def mean_field_class_wise_multi_similarity(
    q: Batch, k: Batch, alpha: float = 0.01, beta: float = 80.0, base: float = 0.8, regularizer: float = 0.0
) -> float:
    """Furusawa 2024, equation 10."""
    present = sorted(set(q.label))

    def n(c: int, other: int) -> float:
        field = k.z[k.label.index(other)]
        d = [1 - cosine(z, field) for z, label in zip(q.z, q.label, strict=True) if label == c]
        return mean([math.exp(-beta * (e + base - 1)) for e in d])

    pull = push = between = 0.0
    for c in present:
        d = [1 - cosine(z, k.z[k.label.index(c)]) for z, label in zip(q.z, q.label, strict=True) if label == c]
        pull += math.log(1 + mean([math.exp(alpha * (e + base - 1)) for e in d]))
    for i, c in enumerate(k.label):
        for j, other in enumerate(k.label):
            if c != other:
                push += math.log(1 + n(c, other) + n(other, c))
                d_fields = 1 - cosine(k.z[i], k.z[j])
                between += (math.log(1 + math.exp(beta * (1 - base - d_fields))) / beta) ** 2
    size = len(present)
    return pull / (alpha * size) + push / (2 * beta * size) + regularizer * between / len(k)


def class_wise_multi_similarity(
    q: Batch, k: Batch, alpha: float = 0.01, beta: float = 80.0, base: float = 0.8, self_pairs: bool = True
) -> float:
    """Furusawa 2024, equation 9."""
    if not any(a != b for a in q.id for b in k.id):
        return 0.0
    classes = sorted(set(q.label))
    pull = push = 0.0
    for c in classes:
        for other in sorted(set(k.label)):
            s = []
            for i in range(len(q)):
                for j in range(len(k)):
                    counts = q.id[i] != k.id[j] or (self_pairs and c == other)
                    if q.label[i] == c and k.label[j] == other and counts:
                        s.append(cosine(q.z[i], k.z[j]))
            if c == other:
                pull += math.log(1 + 0.5 * mean([math.exp(alpha * (base - e)) for e in s]))
            else:
                push += math.log(1 + mean([math.exp(beta * (e - base)) for e in s]))
    return pull / (alpha * len(classes)) + push / (2 * beta * len(classes))


ORACLES = [mean_field_contrastive, mean_field_class_wise_multi_similarity, class_wise_multi_similarity]
MFCWMS = "mean_field_class_wise_multi_similarity"
CASES: list[Case] = [
    Case("mean_field_contrastive"),
    Case("mean_field_contrastive", {"positive_margin": 0.1, "negative_margin": 0.8, "regularizer": 0.7}),
    Case(MFCWMS),
    Case(MFCWMS, {"alpha": 2.0, "beta": 10.0, "base": 0.5, "regularizer": 0.7}),
    Case("class_wise_multi_similarity"),
    Case("class_wise_multi_similarity", {"alpha": 2.0, "beta": 10.0, "base": 0.5, "self_pairs": False}),
]
