"""Studies: many runs of `recipes/train.py`, several seeds each, kept in a results file, shown with 95 % intervals."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(Path(__file__).resolve().parent)]

import pages
import train as recipe

from beyond_binary.config import parse_config
from beyond_binary.neighbours import label_neighbours


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
    """What is run, and how it is shown.

    Attributes:
        base: arguments of every run, beside data, weights, seed and epochs.
        cells: the configurations by name.
        shown: the metrics of the tables; the first is drawn.
        results: the page below docs/results; its runs and pictures are kept beside it.
        epochs: epochs of each run, None: as configured.
        questions: which configurations a table compares, by its name; the first is what the others differ from.
        search: label neighbours whose search is timed for itself, 0: none.
        curves: names of configurations along an axis, by the axis' label and the curve's.
    """

    base: Sequence[str]
    cells: Mapping[str, Cell]
    shown: Sequence[str]
    results: str
    epochs: int | None
    questions: Mapping[str, Sequence[str]]
    search: int = 0
    curves: Mapping[str, Mapping[str, Mapping[float, str]]] = field(default_factory=dict)


def settings(study: Study, cell: Cell, seed: int, given: argparse.Namespace) -> list[str]:
    """Arguments of a run, all but the places of files."""
    epochs = ("--optimizer.epochs", str(given.epochs)) if given.epochs else ()
    quiet = ("--evaluation.every", "1000", "--report", "false", "--progress", "false")
    return [*study.base, "--seed", str(seed), *epochs, *quiet, *cell.changes, *given.change]


def fingerprint(study: Study, cell: Cell, seed: int, given: argparse.Namespace) -> str:
    """A hash of what the settings change: a run is taken for done only if it is this one's.

    Of the configuration only what differs from the defaults counts, so that a run stays valid when a setting is added.
    """
    config, around = parse_config(settings(study, cell, seed, given)), cell.around and cell.around.__qualname__
    return hashlib.sha256(repr((changed(config, type(config)()), around)).encode()).hexdigest()[:12]


def changed(config: Any, usual: Any) -> dict[str, Any]:
    """Settings that differ from the usual ones, by name."""
    pairs = ((f.name, getattr(config, f.name), getattr(usual, f.name)) for f in fields(config))
    return {name: changed(a, b) if is_dataclass(a) else a for name, a, b in pairs if a != b}


def run(study: Study, cell: Cell, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one configuration with one seed: the table of metrics, seconds of training and of getting ready."""
    torch.compiler.reset()  # else a model counts as one more version of the last one's
    with tempfile.TemporaryDirectory() as folder:
        files = [("--data.source", given.data), ("--embedder.weights", given.weights), ("--output", f"{folder}/run")]
        places = [word for name, value in files if value for word in (name, value)]
        config = parse_config([*settings(study, cell, seed, given), *places])
        began = time.perf_counter()
        setup, kept, accelerator = recipe.start(config)
        ready, began = time.perf_counter() - began, time.perf_counter()
        if study.search:
            target = setup.objective.target
            label_neighbours(target, target.encode(setup.data.items.labels), study.search)
        search = time.perf_counter() - began
        if cell.around is not None:
            setup.objective = cell.around(setup)
        result = recipe.fit(config, setup, kept, accelerator)
        judged = [line for line in kept.history() if line.get("event") == "evaluation"]
        history = {line["epoch"]: {metric: line[metric] for metric in study.shown} for line in judged}
        seconds = {kind: result[kind] for kind in ("train_seconds", "epoch_seconds")}
        seconds |= {"ready_seconds": ready, "search_seconds": search}
        return {"table": result["table"], "history": history, "epochs": result["epochs"], **seconds}


def main(study: Study, description: str | None) -> None:
    """Run what is missing, seed by seed, and bring tables and pictures of the results page up to date."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the zip of images and labels, where the study does not bring its own")
    parser.add_argument("--weights", help="the trunk's weights, safetensors")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results" / study.results)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="none: the page alone")
    parser.add_argument("--only", nargs="+", default=[""], help="configurations by name, or by what their names hold")
    parser.add_argument("--epochs", type=int, default=study.epochs)
    parser.add_argument("--change", nargs=argparse.REMAINDER, default=[], help="further --section.field value")
    given = parser.parse_args()
    store = given.results.with_suffix(".json")
    chosen = {
        name: study.cells[name]
        for text in given.only
        for name in ([text] if text in study.cells else [name for name in study.cells if text in name])
    }
    if unknown := [text for text in given.only if not any(text in name for name in study.cells)]:
        parser.error(f"no configuration is called or holds {', '.join(unknown)}; there are: {'; '.join(study.cells)}")
    for seed in given.seeds:
        for name, cell in chosen.items():
            key, mark = f"{name}/{seed}", fingerprint(study, cell, seed, given)
            if kept(store).get(key, {}).get("settings") != mark:
                made = run(study, cell, seed, given) | {"settings": mark}
                keep(store, key, made)
                after = made["table"]["after"]
                print(f"{name}, seed {seed}: " + ", ".join(f"{m} {after[m]:.4f}" for m in study.shown), flush=True)
    pages.write(given.results, study, kept(store))


def kept(store: Path) -> dict[str, Any]:
    """The runs so far; read anew each time, as another process may work on the same study."""
    found: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    return found


def keep(store: Path, key: str, made: dict[str, Any]) -> None:
    """Add a run; nothing is lost if this is cut short, or if another process adds one, too."""
    part = store.with_suffix(".part")
    with FileLock(store.with_suffix(".lock")):
        part.write_text(json.dumps(kept(store) | {key: made}, indent=1) + "\n")
        os.replace(part, store)
