"""Time and peak memory of each registered loss, against the bare similarity matrix and other code.

Forward and backward, float32 on the CPU, clustered and normalised embeddings, 4 of a class. Every cell is
measured in its own process; for the time, floor, ours and peer (pytorch-metric-learning) take turns in that
process, and a ratio is the median of the ratios of single rounds, so that a noisy machine hits all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import beyond_binary as bb
from beyond_binary.losses import LOSSES

SAMPLES = 4  # of each class
# our options that equal the peer, the peer's class, its arguments; a loss that is not listed has no peer
PEERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "arcface": ({}, "ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 64}),
    "circle": ({"margin": 0.4, "scale": 80.0}, "CircleLoss", {"m": 0.4, "gamma": 80}),
    "contrastive": ({"power": 1, "average": "active"}, "ContrastiveLoss", {}),
    "cosface": ({}, "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    "fastap": ({}, "FastAPLoss", {"num_bins": 10}),
    "generalized_lifted_structure": (
        {"geometry": "euclidean(normalize=True)"},
        "GeneralizedLiftedStructureLoss",
        {"neg_margin": 1, "pos_margin": 0},
    ),
    "lifted_structure": ({"geometry": "euclidean(normalize=True)"}, "LiftedStructureLoss", {}),
    "multi_similarity": ({}, "MultiSimilarityLoss", {}),
    "normalized_softmax": ({}, "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    "nt_xent": ({"temperature": 0.07, "positives": "separate"}, "NTXentLoss", {"temperature": 0.07}),
    "proxy_anchor": ({}, "ProxyAnchorLoss", {}),
    "proxy_nca_pp": ({}, "ProxyNCALoss", {"softmax_scale": 9}),
    "soft_triple": ({"tau": 0.0}, "SoftTripleLoss", {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01}),
    "supcon": ({}, "SupConLoss", {"temperature": 0.1}),
    "triplet": ({}, "TripletMarginLoss", {"margin": 0.2}),
    "tuplet_margin": (
        {"variance_weight": 0.0},
        "TupletMarginLoss",
        {"margin": math.degrees(0.1), "scale": 64},
    ),
}

Step = Callable[[], float]  # one forward and backward; the loss


def data(n: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clustered unit embeddings [n dim], their classes [n] and continuous labels [n 8]."""
    rng = torch.Generator().manual_seed(0)
    classes = torch.arange(n) // SAMPLES
    centre = torch.randn(len(classes.unique()), dim + 8, generator=rng)[classes]
    place = centre + 0.5 * torch.randn(n, dim + 8, generator=rng)
    return F.normalize(place[:, :dim], dim=1), classes, place[:, dim:]


def make_step(who: str, name: str, n: int, dim: int, proxies: int) -> Step:
    """The step of `floor`, `tiled`, `dense` or `PML` for the loss called `name`."""
    facts = LOSSES[name].info["facts"]
    z, classes, continuous = data(n, dim)
    z.requires_grad_()
    options, peer, arguments = PEERS.get(name, ({}, "", {}))
    start = torch.randn(proxies, dim, generator=torch.Generator().manual_seed(1))
    learned: list[Tensor] = [z]
    if facts.needs_proxies:
        classes = classes % proxies
        options = {**options, "num_classes": proxies, "dim": dim}
        arguments = {**arguments, "num_classes": proxies, "embedding_size": dim}
    if who == "floor":
        keys = start.requires_grad_() if facts.needs_proxies else z
        learned.append(keys)
        weight = torch.randn(n, len(keys), generator=torch.Generator().manual_seed(2)) / n

        def run() -> Tensor:
            scores = F.normalize(z, dim=1) @ F.normalize(keys, dim=1).T
            scores.backward(weight)
            return scores[0, 0]

    else:
        labels = classes if facts.reads == "same" else continuous
        loss: torch.nn.Module
        if who == "PML":
            from pytorch_metric_learning import losses

            loss = getattr(losses, peer)(**arguments)
        else:
            target = "classes" if facts.reads == "same" else "euclidean"
            form: dict[str, Any] = {"block": None} if who == "dense" else {}
            loss = bb.create_objective(name, target=target, **options, **form)
        for parameter in loss.parameters():  # the same proxies for both; the peer may hold them transposed
            if parameter.ndim == 2:
                rows = parameter.numel() // dim
                start = torch.randn(rows, dim, generator=torch.Generator().manual_seed(1))
                parameter.data.copy_(start if parameter.shape == start.shape else start.T)
            learned.append(parameter)

        def run() -> Tensor:
            value: Tensor = loss(z, labels)
            value.backward()
            return value

    def step() -> float:
        for tensor in learned:
            tensor.grad = None
        return run().item()

    return step


def status(field: str) -> float:
    """A field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def peak_extra(step: Step) -> tuple[float, str]:
    """Most memory that the step held on top of what was there before (MB), and how that was measured."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        step()
        return max(status("VmHWM") - before, 0.0), "VmHWM, reset just before the step, minus VmRSS"
    except OSError:
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit, "growth of ru_maxrss"


def measure(cell: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Do one cell and emit results as they come: the peak of one step, or the milliseconds of each round."""
    torch.set_num_threads(cell["threads"])
    where = cell["loss"], cell["n"], cell["dim"], cell["proxies"]
    if cell["what"] == "memory":
        (who,) = cell["who"]
        make_step(who, cell["loss"], 32, cell["dim"], cell["proxies"])()  # load libraries and kernels
        step = make_step(who, *where)
        peak, method = peak_extra(step)
        emit({"who": who, "peak_mb": peak, "method": method})
        return
    steps, calls = {}, {}
    for who in cell["who"]:
        steps[who] = make_step(who, *where)
        value = steps[who]()
        begin = time.perf_counter()
        steps[who]()
        calls[who] = max(1, min(50, int(0.01 / (time.perf_counter() - begin))))
        emit({"who": who, "value": value})
    for number in range(cell["rounds"]):
        for who, step in steps.items():
            begin = time.perf_counter()
            for _ in range(calls[who]):
                step()
            emit({"who": who, "round": number, "ms": (time.perf_counter() - begin) / calls[who] * 1e3})


def child(cell: dict[str, Any]) -> None:
    """Entry of a cell's process: results as JSON lines. Too much memory is made an exception."""

    def emit(result: dict[str, Any]) -> None:
        print(json.dumps(result), flush=True)

    with contextlib.suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_DATA, (int(cell["memory"] * 2**30), resource.RLIM_INFINITY))
    try:
        measure(cell, emit)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error).lower():
            raise
        emit({"failed": "out of memory"})


def run_cell(cell: dict[str, Any], limit: float) -> tuple[list[dict[str, Any]], str]:
    """Results of a cell in a fresh process, as far as it got, and why it got no further (or nothing).

    Raises:
        RuntimeError: the process failed otherwise than by time or memory.
    """
    command = [sys.executable, __file__, "--cell", json.dumps(cell)]
    env = {**os.environ, "OMP_NUM_THREADS": str(cell["threads"])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=env)
        output, failed = done.stdout, "out of memory" if done.returncode == -9 else ""
        if done.returncode not in (0, -9):
            raise RuntimeError(f"cell {cell} failed:\n{done.stderr[-2000:]}")
    except subprocess.TimeoutExpired as late:
        output, failed = (late.stdout or b"").decode(), f"> {limit:g} s"
    results = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    return [r for r in results if "who" in r], next((r["failed"] for r in results if "failed" in r), failed)


def run_row(cell: dict[str, Any], limit: float) -> dict[str, Any]:
    """One row of the table: times, ratios and peaks of everything that `cell` names under `who`."""
    row: dict[str, Any] = {key: cell[key] for key in ("loss", "n", "dim", "proxies", "who")}
    row |= {"failed": {}, "peak_mb": {}, "method": ""}
    results, failed = run_cell({**cell, "what": "time"}, limit)
    if failed and "PML" in cell["who"] and not any("ms" in r and r["who"] == "PML" for r in results):
        row["failed"]["PML"] = failed
        alone = [who for who in cell["who"] if who != "PML"]
        results, failed = run_cell({**cell, "what": "time", "who": alone}, limit)
    rounds = {who: [r["ms"] for r in results if r["who"] == who and "ms" in r] for who in cell["who"]}
    row["value"] = {r["who"]: r["value"] for r in results if "value" in r and r["who"] != "floor"}
    row["ms"] = {who: statistics.median(times) for who, times in rounds.items() if times}
    ratios = {who: [a / b for a, b in zip(rounds[who], rounds["floor"], strict=False)] for who in row["ms"]}
    row["to_floor"] = {who: statistics.median(each) for who, each in ratios.items()}
    row["failed"] = {who: failed for who in cell["who"] if who not in row["ms"]} | row["failed"]
    for who in row["ms"]:
        peak, failed = run_cell({**cell, "what": "memory", "who": [who]}, limit)
        row["failed"] |= {f"{who} memory": failed} if failed else {}
        row["peak_mb"] |= {r["who"]: r["peak_mb"] for r in peak}
        row["method"] = peak[0]["method"] if peak else row["method"]
    return row


def describe(argv: list[str], threads: int) -> dict[str, str]:
    """Command, date, machine and versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("THP_MEM", "MALLOC_"))]
    packages = [f"{package} {version(package)}" for package in ("torch", "pytorch-metric-learning")]
    return {
        "command": shlex.join(["python", "recipes/benchmarks/losses.py", *argv]),
        "date": date.today().isoformat(),
        "machine": f"{cpu}, {os.cpu_count()} CPUs, {threads} threads used, {platform.system()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *packages]),
        "allocator": " ".join(settings) or "default",
    }


def entry(row: dict[str, Any], who: str) -> tuple[str, str]:
    """Time (with its ratio to the floor) and memory of one form, or why there are none."""
    if who not in row["ms"]:
        return (row["failed"].get(who, "-"),) * 2
    ratio = "" if who == "floor" else f" ({row['to_floor'][who]:.2f}x)"
    peak = f"{row['peak_mb'][who]:.0f}" if who in row["peak_mb"] else row["failed"][f"{who} memory"]
    return f"{row['ms'][who]:.3g}{ratio}", peak


def markdown(facts: dict[str, str], rows: list[dict[str, Any]], forms: list[str]) -> str:
    """The table, with what it is and how it was made."""
    columns = [f"{who} {unit}" for unit in ("ms", "MB") for who in forms]
    lines = ["# Cost of the losses: forward and backward", ""]
    lines += [f"- {key}: {text}" for key, text in facts.items()]
    lines += [
        "- floor: `S = normalize(x) @ normalize(x).T; S.backward(G)`, the second x being the proxies if any",
        "- tiled: our block engine (the default); dense: our plain form; PML: pytorch-metric-learning",
        "- in parentheses: times the floor, median over rounds; MB: peak on top of data and parameters",
        f"- peak: {next((r['method'] for r in rows if r['method']), '-')}",
        "- difference: of tiled and PML in value, relative, options set equal; `-`: PML lacks the loss",
        "",
        "| " + " | ".join(["loss", "B x keys", "d", *columns, "difference"]) + " |",
        "|" + "---|" * (len(columns) + 4),
    ]
    for row in rows:
        keys = row["proxies"] if LOSSES[row["loss"]].info["facts"].needs_proxies else row["n"]
        times, peaks = zip(*(entry(row, who) for who in forms), strict=True)
        ours, peer = (row["value"].get(who, math.nan) for who in ("tiled", "PML"))
        gap = f"{abs(ours - peer) / (abs(peer) or 1):.0e}".replace("nan", "-")
        cells = [row["loss"], f"{row['n']} x {keys}", str(row["dim"]), *times, *peaks, gap]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Measure, print, write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--losses", nargs="+", default=bb.list_losses(), help="registered losses")
    add("--batch", nargs="+", type=int, default=[512, 2048, 4096], help="batch sizes B")
    add("--dims", nargs="+", type=int, default=[128, 512], help="widths d of the embeddings")
    add("--proxies", nargs="+", type=int, default=[100], help="numbers of proxies")
    add("--rounds", type=int, default=15, help="rounds of the timing")
    add("--limit", type=float, default=60, help="seconds that one cell may take")
    add("--memory", type=float, default=12, help="GiB that one cell may allocate")
    add("--threads", type=int, default=2, help="threads of each cell")
    add("--dense", action="store_true", help="also our dense form (block=None)")
    add("--output", type=Path, default=Path("docs/results/losses.md"), help="the table; JSON beside it")
    options = parser.parse_args(argv)
    entries = [LOSSES[name] for name in options.losses]  # an unknown name fails here, with near names
    forms = ["floor", "tiled", *(["dense"] if options.dense else []), "PML"]
    how = {key: getattr(options, key) for key in ("rounds", "threads", "memory")}
    facts, rows = describe(argv, options.threads), []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for loss, n, dim in itertools.product(entries, options.batch, options.dims):
        who = [form for form in forms if form != "PML" or loss.name in PEERS]
        for proxies in options.proxies[: None if loss.info["facts"].needs_proxies else 1]:
            cell = {"loss": loss.name, "n": n, "dim": dim, "proxies": proxies, "who": who, **how}
            rows.append(run_row(cell, options.limit))
            table = markdown(facts, rows, forms)
            print(table.splitlines()[-1], flush=True)
            options.output.write_text(table)
            options.output.with_suffix(".json").write_text(json.dumps({**facts, "rows": rows}, indent=1))
    print(options.output.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        child(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
