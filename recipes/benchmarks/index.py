"""Time, memory and recall of `beyond_binary.index`: `python recipes/benchmarks/index.py --items 1000000 --page docs/results/index.md`.

Vectors are synthetic and clustered: centres on the unit sphere, items around them by normal noise, normalised, and queries
drawn in the same way, none of them an item. The longer the noise (`--spread`), the harder the search: at 0.8 clusters lie
apart, at 2 they overlap in all dimensions, which is harder than most embeddings. Each kind of index is built in a process of its own; memory is what that
process grows by at its peak while it builds and searches, the vectors themselves (which are there before) not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beyond_binary.index import Index

KINDS = ("exact", "flat", "ivf", "hnsw")


def clustered(items: int, queries: int, dim: int, clusters: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Unit vectors [items + queries dim] around random centres; `spread` is the length of the noise."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    z = rng.standard_normal((items + queries, dim), dtype=np.float32) * np.float32(spread / dim**0.5)
    for part in range(0, len(z), 1 << 16):
        rows = z[part : part + (1 << 16)]
        rows += centres[rng.integers(0, clusters, len(rows))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(z)


def peak() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))


def measure(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """Build and search one kind of index: seconds, milliseconds a query, MB, and the places found [queries k]."""
    torch.set_num_threads(given.threads)
    if kind != "exact":
        import faiss

        faiss.omp_set_num_threads(given.threads)
    z = clustered(given.items, given.queries, given.dim, given.clusters, given.spread[0])
    items, queries = z[: given.items], z[given.items :]
    before, began = peak(), time.perf_counter()
    index = Index(items, kind=kind)  # type: ignore[arg-type]
    index.search(queries[:1], given.k)  # faiss builds on first use
    build, began = time.perf_counter() - began, time.perf_counter()
    hits = index.search(queries, given.k)
    together, alone = time.perf_counter() - began, []
    for query in queries[: given.alone]:
        began = time.perf_counter()
        index.search(query, given.k)
        alone.append(time.perf_counter() - began)
    return {
        "kind": kind,
        "build_s": build,
        "together_ms": together / len(queries) * 1e3,
        "alone_ms": float(np.median(alone)) * 1e3,
        "memory_mb": peak() - before,
        "places": hits.places.tolist(),
    }


def recall(found: list[list[int]], true: list[list[int]]) -> float:
    """Share of the true places that were found."""
    return float(np.mean([len(set(f) & set(t)) / len(t) for f, t in zip(found, true, strict=True)]))


def page(rows: list[dict[str, Any]], given: argparse.Namespace, command: str) -> str:
    """The results as Markdown."""
    mb = given.items * given.dim * 4 / (1 << 20)
    lines = [
        "# Search",
        "",
        f"{given.items:,} vectors of {given.dim} dimensions (float32, {mb:,.0f} MB), cosine, {given.threads} thread{'' if given.threads == 1 else 's'} of "
        f"{processor()}, torch {torch.__version__}, faiss {faiss_version()}. The vectors are synthetic: unit vectors around "
        f"{given.clusters:,} random centres (of length 1), at a noise of 0.8 well apart and at 2 overlapping in all "
        "dimensions; recall on embeddings of your own lies somewhere, `Index.recall` measures it.",
        "",
        f"| noise | kind | build s | memory MB | ms a query, {given.queries:,} at once | ms a query, one by one | recall@{given.k} |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['spread']:g} | {row['kind']} | {row['build_s']:.1f} | {row['memory_mb']:,.0f} | {row['together_ms']:.3f} | "
            f"{row['alone_ms']:.2f} | {row['recall']:.4f} |"
        )
    lines += [
        "",
        "Memory is what the process grows by at its peak, beside the vectors that it was given; `exact` (torch) and `flat` "
        "(faiss) compare with every vector, `ivf` searches a tenth of its cells, `hnsw` is built by one thread so that it "
        f"is the same each time. Recall is against `exact`; `one by one` is the median of {given.alone}.",
        "",
        "```sh",
        command,
        "```",
        "",
    ]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name."""
    facts = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in facts.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def faiss_version() -> str:
    """The version of the faiss that is imported, whichever package it came with (faiss-cpu, faiss-gpu-cu12, conda's)."""
    try:
        import faiss
    except ImportError:
        return "(not installed)"
    return str(faiss.__version__)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=50, help="queries that are also searched one by one")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument(
        "--spread", type=float, nargs="+", default=[0.8, 2.0], help="length of the noise, one table row each"
    )
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="exact is always measured")
    parser.add_argument("--page", type=Path, help="file to write the results to")
    parser.add_argument("--one", choices=KINDS, help="measure one kind and print it as JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> list[dict[str, Any]]:
    """Measure each kind in a process of its own; print and write the table."""
    given = parse(argv)
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return []
    rows: list[dict[str, Any]] = []
    command = " ".join(["python", "recipes/benchmarks/index.py", *argv])
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    for spread in given.spread:
        true: list[list[int]] = []
        for kind in ("exact", *(kind for kind in given.kinds if kind != "exact")):
            words = [sys.executable, __file__, *argv, "--one", kind, "--spread", str(spread)]
            printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            row = json.loads(printed.splitlines()[-1])
            places = row.pop("places")
            true = true or places
            rows.append({"spread": spread, **row, "recall": recall(places, true)})
            print(rows[-1], flush=True)
            if given.page is not None:  # the last rows take long
                given.page.parent.mkdir(parents=True, exist_ok=True)
                given.page.write_text(page(rows, given, command))
    print(page(rows, given, command))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
