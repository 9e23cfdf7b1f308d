"""Time of caption distances and neighbours on a folder or zip of captioned images with a table of captions.

For example `python recipes/benchmarks/captions.py flickr8k_112.zip glove_twitter_25d.npz --items 6000`: the codes, the
relaxed distances of all pairs, the neighbours by them (each pair once, or row by row), the exact nearest neighbours of all items with the share of pairs that were solved, and
the same by brute force for some of the items. Wall time, and CPU time with that of all processes.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import os
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beyond_binary.distances import label_distances
from beyond_binary.neighbours import Method, label_neighbours
from beyond_binary.targets.captions import Captions, search


def read_captions(path: Path, items: int) -> np.ndarray[Any, Any]:
    """Captions [items c] of a zip file's `labels.csv`, its columns cap0, cap1, ..."""
    with zipfile.ZipFile(path) as file, file.open("labels.csv") as table:
        rows = list(csv.DictReader(io.TextIOWrapper(table, "utf-8")))[:items]
    columns = [name for name in rows[0] if name.startswith("cap")]
    return np.array([[row[name] for name in columns] for row in rows])


def cpu_of_all() -> float:
    """CPU seconds of this process and of those that it started, also of running ones (Linux)."""
    ticks, own = os.sysconf("SC_CLK_TCK"), {os.getpid()}
    total = 0.0
    stats = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stats[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
    while more := {pid for pid, stat in stats.items() if int(stat[1]) in own} - own:
        own |= more
    for pid in own & stats.keys():
        total += sum(map(int, stats[pid][11:15])) / ticks
    return total


def timed(what: str, run: Callable[[], Any], into: dict[str, Any]) -> Any:
    """The result of `run`, with its times under `what`."""
    wall, cpu = time.perf_counter(), cpu_of_all()
    result = run()
    into[what] = {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(cpu_of_all() - cpu, 2)}
    print(what, into[what], flush=True)
    return result


def main() -> None:
    """Measure, print and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", type=Path, help="zip file with labels.csv")
    parser.add_argument("vectors", type=Path, help="file of word vectors")
    parser.add_argument("--items", type=int, default=6000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--sample", type=int, default=20, help="items that are searched by brute force too")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    texts = read_captions(given.captions, given.items)
    numbers: dict[str, Any] = {"items": len(texts), "captions": texts.shape[1], "k": given.k}
    target = timed("vectors", lambda: Captions(given.vectors, relaxed=False), numbers)
    code = timed("codes", lambda: target.encode(texts), numbers)
    print(target.reader.report())
    with tempfile.TemporaryDirectory() as folder:
        timed("relaxed_all_pairs", lambda: label_distances(Captions(target.vectors), code, folder), numbers)
    relaxed = Captions(target.vectors)
    methods: dict[str, Method] = {"relaxed_neighbours": "exact", "relaxed_neighbours_by_rows": "plain"}
    for name, method in methods.items():
        timed(name, functools.partial(label_neighbours, relaxed, code, given.k, method=method), numbers)
    found = timed("exact_neighbours", lambda: search(code, target.vectors.vectors, given.k, progress=True), numbers)
    indices, distances, solved = found
    numbers["solves_an_item"] = round(solved / len(code), 1)
    numbers["share_of_pairs_solved"] = solved / (len(code) ** 2 * texts.shape[1] ** 2)
    rows = torch.randperm(len(code), generator=torch.Generator().manual_seed(0))[: given.sample]
    table = timed("brute_force_of_sample", lambda: target.distance(code[rows], code), numbers)
    table[torch.arange(len(rows)), rows] = torch.inf
    nearest, where = table.sort(dim=1, stable=True)
    numbers["sample"] = len(rows)
    numbers["same_items"] = bool((where[:, : given.k] == indices[rows]).all())
    numbers["largest_difference"] = float((nearest[:, : given.k] - distances[rows]).abs().max())
    print(json.dumps(numbers, indent=2))
    if given.output:
        given.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
