"""Studies: many runs of `recipes/train.py`, several seeds each, kept in a results file, shown with 95 % intervals."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))

import train as recipe

from beyond_binary.config import parse_config


class Around(nn.Module):
    """Another loss in the place of a run's objective: `function(z, labels, ids)`."""

    proxies = None

    def __init__(self, function: Callable[[Tensor, Any, Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, z: Tensor, labels: Any, *, ids: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.function(z, labels, ids)


@dataclass(frozen=True)
class Cell:
    """One configuration of a study.

    Attributes:
        changes: `--section.field value` over the study's own.
        around: makes what stands in the objective's place, from the run's setup; None: the objective.
    """

    changes: tuple[str, ...] = ()
    around: Callable[[recipe.Setup], Around] | None = None


@dataclass(frozen=True)
class Study:
    """What is run.

    Attributes:
        base: arguments of every run, beside data, weights, seed and epochs.
        cells: the configurations by name.
        shown: the metrics of the table.
        results: where the results are kept, below docs/results.
        epochs: epochs of each run.
    """

    base: Sequence[str]
    cells: Mapping[str, Cell]
    shown: Sequence[str]
    results: str
    epochs: int


def run(study: Study, cell: Cell, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one configuration with one seed: the table of metrics, seconds of training and of getting ready."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config([
            *study.base, "--data.source", given.data, "--embedder.weights", given.weights, "--seed", str(seed),
            "--optimizer.epochs", str(given.epochs), "--evaluation.every", str(given.epochs),
            "--report", "false", "--progress", "false", "--output", f"{folder}/run", *cell.changes, *given.change,
        ])  # fmt: skip
        began = time.perf_counter()
        setup, kept, accelerator = recipe.start(config)
        ready = time.perf_counter() - began
        if cell.around is not None:
            setup.objective = cell.around(setup)
        result = recipe.fit(config, setup, kept, accelerator)
        return {"table": result["table"], "train_seconds": result["train_seconds"], "ready_seconds": ready}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t)."""
    if len(values) < 2:
        return statistics.fmean(values), float("nan")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def table(study: Study, results: Mapping[str, Any]) -> str:
    """All configurations measured so far, as Markdown."""
    lines = [
        "| configuration | seeds | " + " | ".join(study.shown) + " | seconds |",
        "|---" * (len(study.shown) + 3) + "|",
    ]
    for name in study.cells:
        runs = [r for key, r in results.items() if key.rsplit("/", 1)[0] == name]
        if runs:
            found = [interval([r["table"]["after"][metric] for r in runs]) for metric in study.shown]
            cells = " | ".join(f"{mean:.4f} ± {half:.4f}" for mean, half in found)
            seconds = statistics.median(r["train_seconds"] for r in runs)
            lines.append(f"| {name} | {len(runs)} | {cells} | {seconds:.0f} |")
    if results:
        first = next(iter(results.values()))["table"]
        for ranking in ("before", "random", "oracle"):
            lines.append(f"| {ranking} | 1 | " + " | ".join(f"{first[ranking][m]:.4f}" for m in study.shown) + " | |")
    return "\n".join(lines) + "\n"


def main(study: Study, description: str | None) -> None:
    """Run what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the zip of images and labels")
    parser.add_argument("--weights", required=True, help="the trunk's weights, safetensors")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results" / study.results)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", default="", help="configurations whose name holds this text")
    parser.add_argument("--epochs", type=int, default=study.epochs)
    parser.add_argument("--change", nargs=argparse.REMAINDER, default=[], help="further --section.field value")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    for seed in given.seeds:
        for name, cell in study.cells.items():
            if given.only in name and f"{name}/{seed}" not in results:
                results[f"{name}/{seed}"] = run(study, cell, seed, given)
                given.results.write_text(json.dumps(results, indent=1) + "\n")
                after = results[f"{name}/{seed}"]["table"]["after"]
                print(f"{name}, seed {seed}: " + ", ".join(f"{m} {after[m]:.4f}" for m in study.shown), flush=True)
    print(table(study, results))
