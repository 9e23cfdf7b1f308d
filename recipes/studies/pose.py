"""What the log-ratio paper left open, measured on Leeds Sports Pose: runs, seeds, intervals, plots.

Every run is `recipes/train.py` with changes to one configuration; runs that are in the results file are not repeated,
so give the command again to go on after an interruption:

    python recipes/studies/pose.py --data lspet_pose_96.zip --weights mobilenetv2_035_imagenet.safetensors
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import train as recipe

import beyond_binary as bb
from beyond_binary.config import parse_config
from beyond_binary.losses import register_loss
from beyond_binary.neighbours import label_neighbours
from beyond_binary.targets.tables import Precomputed

POSE = "pose(root=(2, 3))"
DENSE = "dense_triplet(anchors=8, k=5, batches_per_epoch=31)"
SINGLE = "dense_triplet(anchors=1, k=5, batches_per_epoch=31)"
RANDOM = "random(drop_last=True)"
NEIGHBOURS = 30  # how many are positive under M(Binary)
SHOWN = ("mean_label_distance_at_10", "ndcg_at_100", "spearman")
LOWER_IS_BETTER = {"mean_label_distance_at_10"}


@register_loss("ratio", reads="magnitude", x="distance", geometry="euclidean", paper="log-ratio without the logarithms")
def ratio(x: Tensor, y: Tensor, valid: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The mean over pairs y_i < y_j of a row of `(d_i / d_j - y_i / y_j)^2`."""
    use = (valid & (y > 0))[:, :, None] & (valid & (y > 0))[:, None, :] & (y[:, :, None] < y[:, None, :])
    far = torch.where(valid, x, 1) + eps
    gap = far[:, :, None] / far[:, None, :] - y[:, :, None] / torch.where(y > 0, y, 1)[:, None, :]
    count = use.sum((1, 2))
    return (gap.square() * use).sum((1, 2)) / count.clamp_min(1), count > 0


class Around(nn.Module):
    """Another loss in the place of a run's objective: `function(z, labels, ids)`."""

    proxies = None

    def __init__(self, function: Callable[[Tensor, Any, Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, z: Tensor, labels: Any, *, ids: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.function(z, labels, ids)


def first_anchor(setup: recipe.Setup) -> Around:
    """The paper's batch: the first item alone is an anchor."""
    whole = setup.objective
    return Around(lambda z, labels, ids: whole(z[:1], labels[:1], z, labels, ids=ids[:1], ref_ids=ids), whole)


def binary(setup: recipe.Setup) -> Around:
    """Triplets whose positives are the nearest labels of the whole training set, M(Binary)."""
    items, target = setup.data.items, bb.create_target(POSE)
    near, _ = label_neighbours(target, target.encode(items.labels), NEIGHBOURS)
    table = torch.ones(len(items), len(items)).scatter_(1, near, 0.0).fill_diagonal_(0.0)
    place = {int(number): i for i, number in enumerate(items.ids)}
    same = bb.targets.algebra.Within(Precomputed(table.numpy(), check=False), radius=0.5)
    inner = bb.create_objective("triplet", target=same, mining="binary(positives=5)", triplets="all")

    def loss(z: Tensor, labels: Any, ids: Tensor) -> Tensor:
        return inner(z, torch.tensor([place[int(i)] for i in ids]), ids=ids)

    return Around(loss, inner)


def regression(setup: recipe.Setup) -> Around:
    """Joints about the hips from the embedding by a linear layer, mean squared error."""
    target, labels = bb.create_target(POSE), setup.data.items.labels
    width = target.encode(labels[:1])[..., :-1].numel()
    layer = nn.Linear(setup.embedder.dim, width)
    setup.optimizer.add_param_group({"params": layer.parameters(), "base_lr": 1e-3, "lr": 1e-3, "name": "joints"})

    def loss(z: Tensor, labels: Any, ids: Tensor) -> Tensor:
        return nn.functional.mse_loss(layer(z), target.encode(labels)[..., :-1].flatten(1).to(z))

    return Around(loss, layer)


@dataclass(frozen=True)
class Cell:
    """One configuration of the study: its batches, its loss, what stands in the objective's place, other changes."""

    sampler: str = DENSE
    loss: str = "log_ratio"
    around: Callable[[recipe.Setup], Around] | None = None
    changes: tuple[str, ...] = ()


def plan() -> dict[str, Cell]:
    """All configurations by name."""
    cells = {
        "log_ratio": Cell(),
        "log_ratio, random batches": Cell(RANDOM),
        "triplet M(Binary)": Cell(around=binary),
        "triplet M(Binary), random batches": Cell(RANDOM, around=binary),
        "dense_triplet": Cell(loss="dense_triplet"),
        "rank_n_contrast": Cell(loss="rank_n_contrast", changes=("--evaluation.geometry", "cosine")),
        "pose regression": Cell(around=regression),
        "ratio": Cell(loss="ratio"),
        "log_ratio, one anchor": Cell(SINGLE, around=first_anchor),
        "log_ratio, one neighbourhood, all anchors": Cell(SINGLE),
    }
    for dim in (8, 16, 32, 64):
        size: tuple[str, ...] = ("--embedder.dim", str(dim))
        cells[f"log_ratio, {dim}-d"] = Cell(changes=size)
        cells[f"triplet M(Binary), {dim}-d"] = Cell(around=binary, changes=size)
    for dim in (8, 16, 32, 64, 128):
        size = ("--embedder.dim", str(dim), "--embedder.normalize", "true")
        cells[f"log_ratio normalised, {dim}-d"] = Cell(changes=size)
    return cells


def run(cell: Cell, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one configuration with one seed: metrics before and after, and seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([
            "--config", str(ROOT / "recipes/configs/lspet.yaml"), "--data.source", given.data, "--seed", str(seed),
            "--embedder.trunk", "timm/mobilenetv2_035", "--embedder.weights", given.weights, "--augment.mirror", "null",
            "--sampler.name", cell.sampler, "--objective.loss", cell.loss, "--optimizer.epochs", str(given.epochs),
            "--evaluation.every", str(given.epochs), "--report", "false", "--progress", "false",
            "--output", f"{folder}/run", *cell.changes, *given.change,
        ])  # fmt: skip
        began = time.perf_counter()
        setup, kept, accelerator = recipe.start(config)
        ready = time.perf_counter()
        if cell.around is not None:
            setup.objective = cell.around(setup)
        result = recipe.fit(config, setup, kept, accelerator)
        return {"table": result["table"], "train_seconds": result["train_seconds"], "ready_seconds": ready - began}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return statistics.fmean(values), float("nan")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def page(results: dict[str, dict[str, Any]]) -> str:
    """The table of all configurations measured so far, as Markdown."""
    lines = ["| configuration | seeds | " + " | ".join(SHOWN) + " | seconds |", "|---" * (len(SHOWN) + 3) + "|"]
    for name in plan():
        runs = [r for key, r in results.items() if key.rsplit("/", 1)[0] == name]
        if runs:
            found = [interval([r["table"]["after"][metric] for r in runs]) for metric in SHOWN]
            cells = " | ".join(f"{mean:.4f} ± {half:.4f}" for mean, half in found)
            seconds = statistics.median(r["train_seconds"] for r in runs)
            lines.append(f"| {name} | {len(runs)} | {cells} | {seconds:.0f} |")
    if results:
        table = next(iter(results.values()))["table"]
        for ranking in ("before", "random", "oracle"):
            lines.append(f"| {ranking} | 1 | " + " | ".join(f"{table[ranking][m]:.4f}" for m in SHOWN) + " | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="lspet_pose_96.zip")
    parser.add_argument("--weights", required=True, help="mobilenetv2_035_imagenet.safetensors")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/pose_questions.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", default="", help="configurations whose name holds this text")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--change", nargs=argparse.REMAINDER, default=[], help="further --section.field value")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    for seed in given.seeds:
        for name, cell in plan().items():
            if given.only in name and f"{name}/{seed}" not in results:
                results[f"{name}/{seed}"] = run(cell, seed, given)
                given.results.write_text(json.dumps(results, indent=1) + "\n")
                after = results[f"{name}/{seed}"]["table"]["after"]
                print(f"{name}, seed {seed}: " + ", ".join(f"{m} {after[m]:.4f}" for m in SHOWN), flush=True)
    print(page(results))


if __name__ == "__main__":
    main()
