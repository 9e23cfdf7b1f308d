"""Run folders: claimed once, logged line by line, and checkpointed so that a kill at any moment loses little.

config.yaml      the resolved configuration
data.json        the data it was begun on: commit of a Hub set, hashes of the splits
log.jsonl        a line per step, and one per evaluation ("event": "evaluation")
checkpoints/     step_00000120/ ..., complete or absent
best/            the embedder of the best evaluation
embedder/        the embedder the run ended with
metrics.json     the final table
report.html      pictures
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .config import Config, dump_config
from .data import Splits
from .fingerprint import fingerprint

DATA = "data.json"
_HUB = ("push_to_hub", "hub_id", "hub_private", "hub_license", "hub_proxies")
_FREE = ("output", "resume", "trackers", "progress", "report", "cpu", *_HUB)  # may differ in a run's continuation


class Run:
    """One run folder, as seen by the process that writes it.

    Attributes:
        folder: where it is.
        checkpoint: the newest complete checkpoint to continue from, or None for a fresh start.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sorted((folder / "checkpoints").glob("*.kept"))
        self.checkpoint: Path | None = found[-1] if found else None

    @property
    def log_path(self) -> Path:
        """The per-step log."""
        return self.folder / "log.jsonl"

    def log(self, **values: Any) -> None:
        """Append one line to the log."""
        with self.log_path.open("a") as file:
            file.write(to_json(values) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All lines of the log; numbers that JSON does not know are NaN."""
        if not self.log_path.exists():
            return []
        return [with_nan(json.loads(line)) for line in self.log_path.read_text().splitlines()]

    def log_size(self) -> int:
        """Bytes of the log so far, to be kept with a checkpoint."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def rewind(self, size: int) -> None:
        """Forget what was logged after a checkpoint was written."""
        if self.log_path.exists():
            os.truncate(self.log_path, min(size, self.log_size()))

    def draft(self) -> Path:
        """The folder that the next checkpoint is written into, before `keep` gives it its name."""
        return self.folder / "checkpoints" / "draft"

    def new_draft(self) -> None:
        """Empty the draft folder."""
        shutil.rmtree(self.draft(), ignore_errors=True)
        self.draft().mkdir(parents=True)

    def keep(self, step: int, epoch: int) -> None:
        """Give a written checkpoint its name, in one rename, then drop the older ones.

        A checkpoint is never touched while it is the newest complete one, so a kill at any moment leaves one to
        continue from. Names sort by step and epoch: one at the end of an epoch follows one at its last step.
        """
        kept = self.draft().with_name(f"step{step:08d}_epoch{epoch:05d}.kept")
        for path in (*self.draft().iterdir(), self.log_path):
            _flush(path)
        if not kept.exists():
            self.draft().rename(kept)
            _flush(kept.parent)
        for other in kept.parent.glob("*.kept"):
            if other != kept:
                other.rename(other.with_suffix(".dropped"))
        for dropped in kept.parent.glob("*.dropped"):
            shutil.rmtree(dropped)
        self.checkpoint = kept

    def pin(self, splits: Splits) -> Run:
        """Write down what data the run begins on, or see that its continuation has the same; returns the run.

        Raises:
            ValueError: the run has a checkpoint that was trained on other data.
        """
        path, now = self.folder / DATA, {"origin": splits.origin or {}, "data": data_facts(splits)}
        if self.checkpoint is None or not path.exists():
            self.write_json(DATA, now)
            return self
        began = json.loads(path.read_text())
        commits = [facts["origin"].get("commit") for facts in (began, now)]
        different = [name for name in began["data"] | now["data"] if began["data"].get(name) != now["data"].get(name)]
        told = [f"commit {commits[0]} of the set then, {commits[1]} now"] if commits[0] != commits[1] else []
        told += [f"other ids, names or labels in {', '.join(different)}"] if different else []
        if told:
            back = f", or continue it on that commit with --data.revision {commits[0]}" if len(set(commits)) > 1 else ""
            raise ValueError(
                f"{self.folder} was begun on other data ({'; '.join(told)}); start a run of its own with another --output{back}"
            )
        return self

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the folder, complete or not at all."""
        draft = self.folder / f".{name}"
        draft.write_text(to_json(content, indent=2) + "\n")
        draft.replace(self.folder / name)


def to_json(content: Any, **options: Any) -> str:
    """JSON in which NaN and infinities, which it does not know, are null."""

    def known(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: known(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [known(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(known(content), allow_nan=False, **options)


def with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers read from JSON, with NaN in the place of null."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def claim(config: Config, name: str) -> Run:
    """Create the run folder of a configuration, or find the one to continue.

    Args:
        config: the resolved configuration; `config.output` may name the folder.
        name: name of a new folder under `runs` when it does not.

    Raises:
        FileExistsError: the folder holds a run (or anything else), and `resume` is not `auto`.
        ValueError: the folder holds a run of another configuration; the differing fields are named.
    """
    folder = Path(config.output) if config.output else _free_or_own(config, name)
    settings, draft = folder / "config.yaml", folder / ".config.yaml"
    if folder.exists() and any(path != draft for path in folder.iterdir()):
        if not settings.exists():
            raise FileExistsError(f"{folder} holds other files and no run; choose another --output")
        if config.resume == "never":
            raise FileExistsError(
                f"{folder} already holds a run; continue it with --resume auto, or choose another --output"
            )
        if different := _differences(settings, config):
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(different)}); choose another --output, or repeat "
                f"its settings with --config {settings}"
            )
        return Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    draft.write_text(dump_config(config))
    draft.replace(settings)
    return Run(folder)


def data_facts(splits: Splits) -> dict[str, dict[str, Any]]:
    """Number of items of each split, and a hash of their ids, names and labels in their order."""
    facts = {}
    for name in ("train", "query", "gallery"):
        if (items := getattr(splits, name)) is not None:
            labels = items.labels.tolist() if items.labels.dtype == object else np.asarray(items.labels)
            facts[name] = {"items": len(items), "hash": fingerprint(items.ids, list(items.names), labels)}
    return facts


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    names = ("beyond_binary", "torch", "torchvision", "timm", "open_clip_torch", "accelerate", "datasets", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # used from a folder, without installing
            continue
    return found


def _flush(path: Path) -> None:
    """Make sure that what was written to a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free_or_own(config: Config, name: str) -> Path:
    """runs/NAME, or with the first number that is free; with `resume: auto` the newest of these that fits."""
    number, newest = 1, None
    while (folder := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        settings = folder / "config.yaml"
        if settings.exists() and not _differences(settings, config) and not (folder / "metrics.json").exists():
            newest = folder
        number += 1
    return newest if config.resume == "auto" and newest is not None else folder


def _differences(settings: Path, config: Config) -> list[str]:
    """Dotted names of the fields in which a run's settings differ from a configuration.

    The commit that the run began on is no other data.revision than the one that led there.
    """
    data = settings.with_name(DATA)
    commit = json.loads(data.read_text())["origin"].get("commit") if data.exists() else None
    old, new = yaml.safe_load(settings.read_text()), yaml.safe_load(dump_config(config))
    different = []
    for key in [k for k in {**new, **old} if k not in _FREE]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if key == "data" and commit is not None and b.get("revision") == commit:
                a["revision"] = commit
            different += [f"{key}.{k}" for k in {**a, **b} if a.get(k) != b.get(k)]
        elif a != b:
            different.append(key)
    return different


def format_table(table: dict[str, dict[str, float]]) -> str:
    """The rows frozen (if there), before, after, random and oracle as aligned text, one line per metric."""
    rows = list(table)
    width = max(len(name) for name in table["after"]) + 2
    lines = ["".ljust(width) + "".join(r.rjust(10) for r in rows)]
    lines += [n.ljust(width) + "".join(f"{table[r][n]:10.4f}" for r in rows) for n in table["after"]]
    return "\n".join(lines)
