"""Write the held-out items of a finished run as a table: embeddings, labels, neighbours, names.

python recipes/items.py runs/pose --items items.parquet     # or items.npz; see docs/elsewhere.md
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from train import geometry

from beyond_binary.config import parse_config
from beyond_binary.data import load_checked
from beyond_binary.export import write_items
from beyond_binary.index import SPACES
from beyond_binary.runs import data_facts


def write(run: Path, path: Path, k: int = 10) -> int:
    """Write the queries of a run, and its gallery behind them, with a column "split"; returns how many there are.

    Raises:
        FileNotFoundError: no finished run.
        ValueError: the data is not what the run held out, or labels that the file cannot hold.
    """
    for name in ("config.yaml", "metrics.json", "embeddings/after.safetensors"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} is no finished run: it has no {name}")
    config = parse_config(["--config", str(run / "config.yaml")])
    splits, _ = load_checked(config.data)
    found, noted = data_facts(splits), json.loads((run / "metrics.json").read_text())["data"]
    if odd := [part for part in ("query", "gallery") if found.get(part) != noted.get(part)]:
        raise ValueError(f"{config.data.source} has another {odd[0]} split than the run: items or labels have changed")
    z = load_file(str(run / "embeddings" / "after.safetensors"))
    parts = {"query": splits.query} | ({} if splits.gallery is None else {"gallery": splits.gallery})
    labels = np.concatenate([items.labels for items in parts.values()])
    columns: dict[str, Any] = {"split": [name for name, items in parts.items() for _ in range(len(items))]}
    if splits.class_names is not None and labels.ndim == 1:
        columns["class_name"] = [splits.class_names[c] for c in labels.tolist()]
    compared = geometry(config)
    write_items(
        path,
        torch.cat([z[name] for name in parts]),
        labels=labels,
        ids=np.concatenate([items.ids for items in parts.values()]),
        names=[name for items in parts.values() for name in items.names],
        columns=columns,
        k=k,
        geometry=compared if compared in SPACES else "euclidean",
    )
    return len(labels)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and write; what does not fit ends with a short message and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--items", type=Path, required=True, help="file to write, .parquet or .npz")
    parser.add_argument("--k", type=int, default=10, help="neighbours of each item")
    given = parser.parse_args(argv)
    try:
        count = write(given.run, given.items, given.k)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{given.items}: {count} items")


if __name__ == "__main__":
    main()
