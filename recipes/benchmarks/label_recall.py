"""Recall and time of `nn_descent`, the search for label neighbours that takes any target, on labels that are no vectors.

For example `python recipes/benchmarks/label_recall.py --items 4000`. Labels are drawn as those of the embedded sets (poses
and tags beside them), so nothing is downloaded. Prints rows of a Markdown table: the share of the true neighbours found
for a sample of items, the same after the first step (landmarks) alone, and CPU seconds beside those of every distance.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from beyond_binary import neighbours
from beyond_binary.data import figures, rooms, scenes
from beyond_binary.neighbours import label_neighbours, neighbour_recall
from beyond_binary.targets import Target, create_target
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.words import WordVectors

Labels = tuple[Target, Any]


def captions(n: int, rng: np.random.Generator) -> Labels:
    """Five captions of drawn scenes under the relaxed word mover's distance."""
    words, vectors = scenes.scene_words()
    texts = [[tell(scene, rng) for tell in scenes.TELLERS] for scene in (scenes.random_scene(rng) for _ in range(n))]
    return Captions(WordVectors(torch.from_numpy(vectors), {word: i for i, word in enumerate(words)})), np.array(texts)


def layouts(n: int, rng: np.random.Generator) -> Labels:
    """Label maps of drawn rooms, 32 x 32."""
    maps = []
    for _ in range(n):
        with np.errstate(divide="ignore"):
            inverse = np.reciprocal(rooms.cast_rays(rooms.random_camera(rng), rooms.MAP))
        maps.append(rooms.hit_room(inverse, rooms.random_room(rng))[1].reshape(rooms.MAP, rooms.MAP))
    return create_target("layout"), np.stack(maps)


def tags(n: int, rng: np.random.Generator) -> Labels:
    """Sets of 80 tags: each item mixes some of 20 topics, and has about four tags."""
    topics = rng.dirichlet(np.full(80, 0.1), 20)
    chance = rng.dirichlet(np.full(20, 0.1), n) @ topics
    return create_target("multi_label"), (rng.random((n, 80)) < 1 - np.exp(-4 * chance)).astype(np.int64)


def joints(n: int, rng: np.random.Generator) -> np.ndarray:
    """Poses of drawn figures [n 14 2]."""
    return np.stack([figures.place_joints(figures.random_pose(rng), figures.random_body(rng)) for _ in range(n)])


def hidden_joints(n: int, rng: np.random.Generator) -> Labels:
    """Poses, each joint invisible once in five times."""
    visible = rng.random((n, 14, 1)) > 0.2
    visible[:, :2] = True
    return create_target("pose"), np.concatenate([joints(n, rng), visible], 2)


def mirrored_poses(n: int, rng: np.random.Generator) -> Labels:
    """Poses that are the same as their mirror images."""
    return create_target("pose(mirror=(5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13))"), joints(n, rng)


KINDS: dict[str, Callable[[int, np.random.Generator], Labels]] = {
    "captions, relaxed": captions,
    "layout": layouts,
    "multi_label": tags,
    "pose, joints invisible": hidden_joints,
    "pose, mirror-aware": mirrored_poses,
}


def measure(kind: str, n: int, k: int, sample: int) -> tuple[float, float, float, float]:
    """Recall, recall of the landmarks alone, CPU seconds, and those of every distance."""
    target, labels = KINDS[kind](n, np.random.default_rng(0))
    code = target.encode(labels)
    rounds, found, seconds = neighbours.ROUNDS, [], []
    for neighbours.ROUNDS in (rounds, 0):
        began = time.process_time()
        distances = label_neighbours(target, code, k, method="nn_descent")[1]
        seconds.append(time.process_time() - began)
        found.append(neighbour_recall(target, code, distances, sample=sample))
    neighbours.ROUNDS = rounds
    began = time.process_time()
    label_neighbours(target, code, k, method="plain")
    return found[0], found[1], seconds[0], time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--sample", type=int, default=256, help="items whose true neighbours are found")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    target, labels = tags(200, np.random.default_rng(1))
    label_neighbours(target, target.encode(labels), 5, method="nn_descent")  # compiles
    print(f"| labels | recall@{given.k} | of landmarks alone | CPU s | every distance, CPU s |\n|---|---|---|---|---|")
    for kind in given.kinds:
        recall, first, seconds, every = measure(kind, given.items, given.k, given.sample)
        print(f"| {kind} | {recall:.4f} | {first:.4f} | {seconds:.1f} | {every:.1f} |", flush=True)


if __name__ == "__main__":
    main()
