"""Verification of pairs that are given: error rates, intervals over identities, and the protocol of Labeled Faces in the Wild.

For all pairs of a set of embeddings see `evaluate(..., metrics=["d_prime", "eer", "tar_at_far_0.001"])`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry import create_geometry
from .metrics import create_metrics
from .metrics.verification import Separation
from .targets.vectors import as_array, as_tensor

USUAL = ("d_prime", "eer", "tar_at_far_0.1", "tar_at_far_0.01", "tar_at_far_0.001")


def verify(
    scores: Any,
    same: Any,
    *,
    metrics: Sequence[str] = USUAL,
    identities: Any = None,
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float]:
    """Metrics of a list of pairs, on request with intervals.

    Args:
        scores: [n] similarities, higher is nearer (negate distances).
        same: [n] whether each pair is genuine.
        metrics: names of metrics over pairs: d_prime, eer, tar_at_far_RATE.
        identities: [n 2] integers, whose images the two of each pair are. Pairs of one person hang together, so intervals
            are drawn over identities: each replicate draws identities with replacement, and a pair counts as often as
            both of its identities were drawn together (a genuine pair as often as its one).
        bootstrap: replicates; 0: no intervals.
        level: of the intervals (percentiles of the replicates).
        seed: of the replicates.

    Returns:
        each metric by name, with intervals also NAME_low and NAME_high (NaN where replicates have none), and the numbers
        of pairs, `genuine` and `impostors`.

    Raises:
        ValueError: arguments that are not of one length or not finite, `same` that is neither bool nor 0 and 1, metrics
            that are not over pairs, identities that contradict `same`, a bootstrap without identities, or a level that is
            no share.
    """
    x, kind = torch.from_numpy(as_array(scores).astype(float)), torch.from_numpy(as_same(same))
    if x.ndim != 1 or x.shape != kind.shape or not len(x):
        raise ValueError(f"expected scores [n] and same [n], n > 0, got {list(x.shape)} and {list(kind.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{int((~x.isfinite()).sum())} of {len(x)} scores are NaN or infinite")
    chosen = create_metrics(metrics, "same")
    if rest := [metric.name for metric in chosen if metric.over != "pairs"]:
        raise ValueError(f"verify takes metrics over pairs (such as {', '.join(USUAL[:3])}), not {', '.join(rest)}")
    if bootstrap < 0 or not 0 < level < 1:
        raise ValueError(f"expected bootstrap of at least 0 and a level between 0 and 1, got {bootstrap} and {level}")
    separation = Separation.of(x, kind)
    found = {metric.name: float(metric.function(separation)) for metric in chosen}
    if bootstrap:
        order = x.argsort()  # once, so that no draw has to sort
        x, kind, people = x[order], kind[order], _identities(identities, kind)[order]
        rng, count, draws = np.random.default_rng(seed), int(people.max()) + 1, []
        for _ in range(bootstrap):
            drawn = torch.from_numpy(np.bincount(rng.integers(count, size=count), minlength=count))
            draw = Separation.of(x, kind, torch.where(kind, drawn[people[:, 0]], drawn[people].prod(1)))
            draws.append([math.nan if math.isnan(found[m.name]) else float(m.function(draw)) for m in chosen])
        table, tail = np.array(draws), (1 - level) / 2
        for name, column in zip([metric.name for metric in chosen], table.T, strict=True):
            low, high = (np.nan, np.nan) if np.isnan(column).any() else np.quantile(column, [tail, 1 - tail])
            found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found | {"genuine": float(kind.sum()), "impostors": float((~kind).sum())}


def as_same(values: Any) -> np.ndarray:
    """Whether pairs are genuine, as a bool array, from bools or the numbers 0 and 1.

    Raises:
        ValueError: anything else, such as -1 and 1, or texts.
    """
    given = as_array(values)
    if given.dtype != bool and not (given.dtype.kind in "iuf" and np.isin(given, (0, 1)).all()):
        shown = ", ".join(repr(value) for value in [*dict.fromkeys(given.ravel().tolist())][:4])
        raise ValueError(
            f"expected bools, or 1 for a genuine pair and 0 for another, got {given.dtype} such as {shown}"
        )
    return given.astype(bool)


def _identities(identities: Any, same: Tensor) -> Tensor:
    """Identities [n 2] numbered from 0."""
    if identities is None:
        raise ValueError("intervals are drawn over identities: give identities [n 2], whose images each pair's two are")
    people = as_array(identities)
    if people.shape != (len(same), 2) or people.dtype.kind not in "iuUO":
        raise ValueError(
            f"expected integers or names as identities [{len(same)} 2], got {people.dtype} {list(people.shape)}"
        )
    number = torch.from_numpy(np.unique(people, return_inverse=True)[1].reshape(-1, 2))
    if not torch.equal(number[:, 0] == number[:, 1], same):
        raise ValueError("identities contradict same: a pair is genuine exactly where both identities are equal")
    return number


@dataclass(frozen=True)
class TenFold:
    """What `ten_fold` found.

    Attributes:
        accuracy: mean over folds.
        error: standard error of the mean, standard deviation (divisor folds - 1) / sqrt(folds).
        accuracies: of each fold.
        thresholds: of each fold, found on the other folds.
    """

    accuracy: float
    error: float
    accuracies: list[float]
    thresholds: list[float]


def ten_fold(scores: Any, same: Any, folds: Any) -> TenFold:
    """Accuracy of "the same person?", the threshold of each fold being the most accurate on all other folds.

    Huang, Ramesh, Berg and Learned-Miller, "Labeled Faces in the Wild", UMass TR 07-49, View 2. All thresholds are tried:
    those halfway between neighbouring scores of the other folds; of equally accurate ones the one with the fewest false
    accepts is taken. A pair is accepted if its score is at least the threshold.

    Args:
        scores: [n] similarities, higher is nearer.
        same: [n] whether each pair is genuine.
        folds: [n] integers, which fold each pair is in.

    Raises:
        ValueError: lengths differ, scores are not finite, or there is a single fold.
    """
    x, kind, fold = as_array(scores).astype(float), as_same(same), as_array(folds)
    if x.ndim != 1 or not x.shape == kind.shape == fold.shape:
        raise ValueError(f"expected scores, same and folds [n], got {x.shape}, {kind.shape} and {fold.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{(~np.isfinite(x)).sum()} of {len(x)} scores are NaN or infinite")
    if len(np.unique(fold)) < 2:
        raise ValueError("expected at least two folds: the threshold of one comes from the others")
    accuracies, thresholds = [], []
    for number in np.unique(fold):
        inside = fold == number
        threshold = best_threshold(x[~inside], kind[~inside])
        thresholds.append(threshold)
        accuracies.append(float(((x[inside] >= threshold) == kind[inside]).mean()))
    error = float(np.std(accuracies, ddof=1) / len(accuracies) ** 0.5)
    return TenFold(float(np.mean(accuracies)), error, accuracies, thresholds)


def best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    """The most accurate threshold on similarities [n], halfway between two of them (or beyond all); the highest of equals."""
    values, place = np.unique(scores, return_inverse=True)
    right = np.bincount(place, np.where(same, 1, -1), minlength=len(values))
    gained = np.concatenate([[0], right[::-1].cumsum()])  # by accepting the highest 0, 1, ... distinct scores
    ends = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])[::-1]
    return float(ends[gained.argmax()])


@dataclass(frozen=True)
class Pairs:
    """Pairs of images of people.

    Attributes:
        files: the two files of each pair, such as "Abel_Pacheco/Abel_Pacheco_0001.jpg".
        identities: [n 2] whose images they are, numbered by name.
        folds: [n] which fold each pair is in.
    """

    files: list[tuple[str, str]]
    identities: np.ndarray
    folds: np.ndarray

    @property
    def same(self) -> np.ndarray:
        """Whether each pair is genuine [n]."""
        same: np.ndarray = self.identities[:, 0] == self.identities[:, 1]
        return same

    def scores(self, embeddings: Mapping[str, Any], geometry: str = "cosine") -> Tensor:
        """Similarities [n] of the pairs from the embedding [d] of each file.

        Raises:
            ValueError: files without an embedding.
        """
        if missing := sorted({name for pair in self.files for name in pair} - embeddings.keys()):
            raise ValueError(f"{len(missing)} images of the pairs have no embedding, the first {missing[0]!r}")
        left, right = (torch.stack([as_tensor(embeddings[pair[i]]) for pair in self.files]) for i in (0, 1))
        return pair_scores(left, right, geometry)


def pair_scores(left: Any, right: Any, geometry: str = "cosine") -> Tensor:
    """Similarities [n] of each embedding of `left` [n d] with the one in the same place of `right` [n d]; of a geometry with
    distances, the negative distances. Of the finer precision of the two, float32 at least.

    Raises:
        ValueError: shapes differ.
    """
    space, left, right = create_geometry(geometry), as_tensor(left), as_tensor(right)
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(f"expected two embeddings [n d] of one shape, got {list(left.shape)} and {list(right.shape)}")
    kind = torch.promote_types(torch.promote_types(left.dtype, right.dtype), torch.float32)
    if not len(left):
        return left.new_zeros(0, dtype=kind)
    both = zip(space.prepare(left.to(kind)), space.prepare(right.to(kind)), strict=True)
    x = torch.stack([space.pairs(a[None], b[None])[0, 0] for a, b in both])
    return x if space.kind == "similarity" else -x


def read_lfw_pairs(path: str | os.PathLike[str], suffix: str = ".jpg") -> Pairs:
    """Read a pairs file of Labeled Faces in the Wild (pairs.txt, pairsDevTrain.txt, pairsDevTest.txt).

    The first line holds the number of folds (left out where there is one) and of genuine pairs in each, as many impostor
    pairs following them; then "name number number" or "name number name number", separated by tabs.

    Args:
        path: the file.
        suffix: of the image files.

    Raises:
        ValueError: a line that is neither, or not as many lines as the first one says.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    head = lines[0].split() if lines else []
    if len(head) not in (1, 2) or not all(word.isdigit() for word in head):
        raise ValueError(f"{path}: the first line should hold the numbers of folds and of pairs, got {lines[:1]}")
    folds, each = (int(head[0]), int(head[1])) if len(head) == 2 else (1, int(head[0]))
    rows = [line.split("\t") for line in lines[1:] if line.strip()]
    if len(rows) != 2 * folds * each:
        raise ValueError(
            f"{path}: {folds} folds of {each} + {each} pairs are {2 * folds * each} lines, got {len(rows)}"
        )
    files, names = [], []
    for number, row in enumerate(rows):
        genuine = number % (2 * each) < each
        words = [row[0], row[1], row[0], row[2]] if genuine and len(row) == 3 else row
        if len(words) != 4 or (len(row) == 3) != genuine or not (words[1].isdigit() and words[3].isdigit()):
            kind = "name number number" if genuine else "name number name number"
            raise ValueError(f"{path}, line {number + 2}: expected {kind} separated by tabs, got {' '.join(row)!r}")
        names.append((words[0], words[2]))
        first, second = (f"{words[i]}/{words[i]}_{int(words[i + 1]):04d}{suffix}" for i in (0, 2))
        files.append((first, second))
    identities = np.unique(np.array(names), return_inverse=True)[1].reshape(-1, 2)
    return Pairs(files, identities, np.repeat(np.arange(folds), 2 * each))
