"""Every registered target with labels for 24 items, and what any of them must go through unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist

import beyond_binary as bb
from beyond_binary.targets import Target
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.distributions import Estimated
from beyond_binary.targets.tables import PairScores, Precomputed
from beyond_binary.targets.words import WordVectors

ITEMS, DIM = 24, 4
rng = np.random.default_rng(4)
WORDS = list("abcdefgh")
POINTS = rng.normal(size=(ITEMS, 3))
TABLE = cdist(POINTS, POINTS)
SCORED = np.array([[i, j, TABLE[i, j]] for i in range(ITEMS) for j in range(i) if (i + j) % 3])
KINDS = np.arange(ITEMS) % 4
ANGLES = rng.uniform(0, 360, ITEMS)
MAPS = np.stack([np.add.outer(np.arange(12) >= a, np.arange(12) >= b) for a, b in rng.integers(1, 11, (ITEMS, 2))])

CHAIN: dict[str, tuple[Callable[[], Target | str], np.ndarray]] = {
    "classes": (lambda: "classes", KINDS),
    "multi_label": (lambda: "multi_label", rng.integers(0, 2, (ITEMS, 5))),
    "euclidean": (lambda: "euclidean", POINTS),
    "manhattan": (lambda: "manhattan", POINTS),
    "cosine": (lambda: "cosine", POINTS),
    "circular": (lambda: "circular", ANGLES),
    "pose": (lambda: "pose", rng.uniform(size=(ITEMS, 5, 2))),
    "layout": (lambda: "layout", MAPS),
    "captions": (
        lambda: Captions(WordVectors(torch.eye(len(WORDS)), {word: i for i, word in enumerate(WORDS)})),
        np.array([[" ".join(rng.choice(WORDS, 3)), " ".join(rng.choice(WORDS, 2))] for _ in range(ITEMS)]),
    ),
    "sentences": (lambda: "sentences", rng.normal(size=(ITEMS, 2, 3))),
    "histogram": (lambda: "histogram", rng.uniform(size=(ITEMS, 4))),
    "gaussian": (lambda: "gaussian", rng.uniform(size=(ITEMS, 2))),
    "tree": (lambda: "tree", np.stack([KINDS // 2, KINDS, np.arange(ITEMS)], 1)),
    "pair_scores": (lambda: PairScores(SCORED), np.arange(ITEMS)),
    "precomputed": (lambda: Precomputed(TABLE), np.arange(ITEMS)),
    "estimated": (lambda: Estimated(num_classes=4, dim=DIM), KINDS),
    "within": (lambda: "within('circular', radius=60)", ANGLES),
    "nearest": (lambda: "nearest('circular', k=4)", ANGLES),
    "scaled": (lambda: "scaled('circular', factor=0.1)", ANGLES),
    "sum": (lambda: "sum(('circular', \"scaled('classes', factor=90.0)\"))", np.stack([ANGLES, KINDS], 1)),
}


def losses(target: Target) -> list[tuple[str, dict[str, Any]]]:
    """A loss that reads as much of the distances as there is, and one that remembers earlier batches."""
    return [("log_ratio" if target.gives == "magnitude" else "supcon", {}), ("rank_n_contrast", {"memory": 12})]


def objectives(name: str, **options: Any) -> list[bb.Objective]:
    """The objectives of both, each with a target of its own (some targets learn)."""
    make = CHAIN[name][0]
    return [
        bb.create_objective(loss, target=make(), **more, **options) for loss, more in losses(bb.create_target(make()))
    ]
