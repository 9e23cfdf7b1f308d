"""Time and peak memory of each registered loss, against the bare similarity matrix and pytorch-metric-learning.

Forward and backward of clustered unit embeddings. Each cell (a loss at one size) has a process of its own, in which
the floor (the bare matrix), our forms and the peer take turns: a ratio is the median of the ratios of single rounds,
so that a noisy machine hits all alike. Each peak has a further process. Results are written after every cell, and
cells that were measured with the same code are kept: to go on, or after a change of the code, give the command again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.util
import json
import logging
import math
import multiprocessing
import os
import platform
import resource
import shlex
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import results as report
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import beyond_binary as bb
from beyond_binary.losses import LOSSES

Step = Callable[[], float]  # one forward and backward; the loss
Emit = Callable[[dict[str, Any]], None]
ROOT = Path(__file__).parents[2]
ENGINE = ("blocks", "geometry", "keys", "mining", "objective", "softmax", "tiles", "walks")
MANY = 50_000  # from so many classes on: B = 512 and d = 128 alone, without soft_triple
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "beyond_binary", "pytorch_metric_learning.losses", "torch._dynamo"])


class Peer(NamedTuple):
    """What in pytorch-metric-learning equals a loss of ours under these options of ours."""

    options: dict[str, Any]
    name: str
    arguments: dict[str, Any]
    miner: str = ""
    same: bool = True  # whether the values can be compared


PEERS = {
    "angular": Peer({}, "AngularLoss", {"alpha": 45}),
    "arcface": Peer({}, "ArcFaceLoss", {"margin": math.degrees(0.5), "scale": 64}),
    "circle": Peer({"margin": 0.4, "scale": 80.0}, "CircleLoss", {"m": 0.4, "gamma": 80}),
    "contrastive": Peer({"power": 1, "average": "active"}, "ContrastiveLoss", {}),
    "cosface": Peer({}, "CosFaceLoss", {"margin": 0.35, "scale": 64}),
    "fastap": Peer({}, "FastAPLoss", {"num_bins": 10}),
    "generalized_lifted_structure": Peer(
        {"geometry": "euclidean(normalize=True)"},
        "GeneralizedLiftedStructureLoss",
        {"neg_margin": 1, "pos_margin": 0},
    ),
    "histogram": Peer({}, "HistogramLoss", {"n_bins": 100}),
    "lifted_structure": Peer({"geometry": "euclidean(normalize=True)"}, "LiftedStructureLoss", {}),
    "margin": Peer({"mining": "distance_weighted"}, "MarginLoss", {}, miner="DistanceWeightedMiner", same=False),
    "multi_similarity": Peer({}, "MultiSimilarityLoss", {}),
    "n_pairs": Peer({"geometry": "cosine"}, "NPairsLoss", {}),
    "normalized_softmax": Peer({}, "NormalizedSoftmaxLoss", {"temperature": 0.05}),
    "nt_xent": Peer({"temperature": 0.07, "positives": "separate"}, "NTXentLoss", {"temperature": 0.07}),
    "proxy_anchor": Peer({}, "ProxyAnchorLoss", {}),
    "proxy_nca_pp": Peer({}, "ProxyNCALoss", {"softmax_scale": 9}),
    "smooth_ap": Peer({"with_query": True}, "SmoothAPLoss", {"temperature": 0.01}, same=False),
    "snr_contrastive": Peer({"regularizer": 0.0}, "SignalToNoiseRatioContrastiveLoss", {}),
    "soft_triple": Peer(
        {"tau": 0.0}, "SoftTripleLoss", {"centers_per_class": 10, "la": 20, "gamma": 0.1, "margin": 0.01}
    ),
    "sphereface": Peer({"annealing": False}, "SphereFaceLoss", {"margin": 4, "scale": 1}),
    "supcon": Peer({}, "SupConLoss", {"temperature": 0.1}),
    "triplet": Peer({}, "TripletMarginLoss", {"margin": 0.2}),
    "tuplet_margin": Peer({"variance_weight": 0.0}, "TupletMarginLoss", {"margin": math.degrees(0.1), "scale": 64}),
}


@dataclass(frozen=True)
class Cell:
    """A loss at one size."""

    loss: str
    n: int
    dim: int
    samples: int  # of each class; 0: continuous labels
    proxies: int  # 0: the batch is compared with itself


@dataclass(frozen=True)
class How:
    """What is the same for all cells of a table."""

    threads: int = 2
    device: str = "cpu"
    precision: str = "float32"
    rounds: int = 15
    seconds: float = 1.0
    memory: float = 16.0
    limit: float = 60.0


# ---- what is measured


def data(cell: Cell) -> tuple[Tensor, Tensor]:
    """Clustered unit embeddings [n dim], and their classes [n] or continuous labels [n 3]."""
    rng = torch.Generator().manual_seed(0)
    group = torch.arange(cell.n) // (cell.samples or 4)
    place = torch.randn(cell.n, cell.dim + 3, generator=rng)[group]
    place += 0.5 * torch.randn(cell.n, cell.dim + 3, generator=rng)
    if cell.proxies:
        group = torch.randperm(cell.proxies, generator=rng)[group % cell.proxies]
    return F.normalize(place[:, : cell.dim], dim=1), group if cell.samples else place[:, cell.dim :]


class Mined(nn.Module):
    """A loss of the peer behind its miner."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """The loss of what the miner drew."""
        value: Tensor = self.loss(z, labels, self.miner(z, labels))
        return value


def create(who: str, cell: Cell) -> nn.Module:
    """The loss in the form `tiled`, `dense`, `compiled` or `PML`, with the same proxies in each."""
    peer = PEERS.get(cell.loss, Peer({}, "", {}))
    loss: nn.Module
    if who == "PML":
        from pytorch_metric_learning import losses, miners

        sizes: dict[str, Any] = {"num_classes": cell.proxies, "embedding_size": cell.dim} if cell.proxies else {}
        loss = getattr(losses, peer.name)(**peer.arguments, **sizes)
        loss = Mined(loss, getattr(miners, peer.miner)()) if peer.miner else loss
    else:
        sizes = {"num_classes": cell.proxies, "dim": cell.dim} if cell.proxies else {}
        form: dict[str, Any] = {} if who == "tiled" else {"block": None}
        target = "classes" if cell.samples else "euclidean"
        loss = bb.create_objective(cell.loss, target=target, **peer.options, **sizes, **form)
    for weight in loss.parameters():
        if weight.ndim == 2:  # theirs may be transposed
            start = torch.randn(weight.numel() // cell.dim, cell.dim, generator=torch.Generator().manual_seed(1))
            weight.data.copy_(start if weight.shape == start.shape else start.T)
    return torch.compile(loss, fullgraph=True, dynamic=False) if who == "compiled" else loss  # type: ignore[return-value]


def make_step(who: str, cell: Cell, how: How) -> Step:
    """Forward and backward of a form of the cell's loss, or of the floor."""
    z, labels = (tensor.to(how.device) for tensor in data(cell))
    learned: list[Tensor] = [z.requires_grad_()]
    dtype = getattr(torch, how.precision)
    gradient = None
    if who == "floor":
        if cell.proxies:
            learned.append(torch.randn(cell.proxies, cell.dim, device=how.device).requires_grad_())
        keys = learned[-1]
        gradient = torch.outer(torch.randn(cell.n) / cell.n, torch.randn(len(keys))).to(how.device, dtype)
    else:
        loss = create(who, cell).to(how.device)
        learned += loss.parameters()

    def step() -> float:
        for tensor in learned:
            tensor.grad = None
        with torch.autocast(how.device, torch.bfloat16, enabled=how.precision == "bfloat16"):
            x = z.to(dtype)
            if who == "floor":
                other = keys.to(dtype) if cell.proxies else x
                out = (F.normalize(x, dim=1) @ F.normalize(other, dim=1).T).to(dtype)
            else:
                out = loss(x, labels)
        out.backward(gradient)
        return out.detach().flatten()[0].item()

    return step


# ---- in the process of a cell


def cpu_seconds() -> tuple[float, float]:
    """Processor seconds of the whole machine (0 where it does not tell), and of this process with its children."""
    with contextlib.suppress(OSError):
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
    return 0.0, 0.0


def failure(error: Exception) -> str:
    """In few words, for the table."""
    memory = isinstance(error, MemoryError) or any(w in str(error).lower() for w in ("alloc", "out of memory"))
    return "out of memory" if memory else " ".join(f"{type(error).__name__}: {error}".split())[:90].replace("|", "/")


def timed(step: Step, calls: int = 1) -> float:
    """Mean seconds of a call."""
    begin = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - begin) / calls


def start(who: str, cell: Cell, how: How, emit: Emit) -> tuple[Step, int] | None:
    """The step and how many calls to time at once, or nothing if it fails, or is so slow that once is enough."""
    try:
        step = make_step(who, cell, how)
        begin = time.perf_counter()
        emit({"who": who, "value": step()})
        first = time.perf_counter() - begin
        if who == "compiled" or first < 0.1:  # of which most was no step
            first = timed(step)
        if first < 5 * how.seconds:
            return step, max(1, min(50, int(0.01 / first)))
        emit({"who": who, "round": 0, "ms": first * 1e3})
    except Exception as error:
        emit({"who": who, "failed": failure(error)})
    return None


def times(cell: Cell, how: How, forms: list[str], emit: Emit) -> None:
    """Emit the milliseconds of each form in each round: at least 3, or as many as fit in 5 times `seconds`."""
    begin, before = time.perf_counter(), cpu_seconds()

    def load() -> None:
        """Processors that others used so far."""
        machine, own = (b - a for a, b in zip(before, cpu_seconds(), strict=True))
        emit({"who": "", "load": round(max(0.0, (machine - own) / (time.perf_counter() - begin)), 2)})

    steps = {who: started for who in forms if (started := start(who, cell, how, emit))}
    spent = dict.fromkeys(steps, 0.0)
    load()
    for number in range(how.rounds):
        for who, (step, calls) in steps.items():
            if spent[who] < how.seconds * (1 if number >= 3 else 5):
                mean = timed(step, calls)
                spent[who] += mean * calls
                emit({"who": who, "round": number, "ms": mean * 1e3})
        load()


def resident(field: str) -> float:
    """A field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def peak_extra(step: Step, device: str) -> tuple[float, str]:
    """Most memory that the step held on top of what was there before (MB), and how that was measured."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, "torch.cuda.max_memory_allocated"
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step()
        return max(resident("VmHWM") - before, 0.0), "VmHWM, reset just before the step, minus VmRSS"
    except (OSError, AttributeError):
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit, "growth of ru_maxrss"


def peak(cell: Cell, how: How, forms: list[str], emit: Emit) -> None:
    """Emit the peak of one step of the only form, after a small one that loads libraries (or compiles)."""
    (who,) = forms
    small = replace(cell, n=32, samples=min(cell.samples, 4), proxies=min(cell.proxies, 100))
    try:
        step = make_step(who, cell, how)
        _ = step() if who == "compiled" else make_step(who, small, how)()
        gc.collect()
        megabytes, method = peak_extra(step, how.device)
        emit({"who": who, "peak_mb": megabytes, "method": method})
    except Exception as error:
        emit({"who": who, "failed": failure(error)})


def child(emit: Any, measure: Callable[..., None], cell: Cell, how: How, forms: list[str]) -> None:
    """Entry of a process: what is measured goes to the other end of the connection. Memory has a limit."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if how.device == "cpu":
        with contextlib.suppress(ValueError, OSError):  # not every system can
            resource.setrlimit(resource.RLIMIT_DATA, (int(how.memory * 2**30), resource.RLIM_INFINITY))
    torch.set_num_threads(how.threads)
    measure(cell, how, forms, emit.send)


# ---- in the process of the command


def run(measure: Callable[..., None], cell: Cell, how: How, forms: list[str]) -> tuple[list[dict[str, Any]], str]:
    """What a fresh process measured as far as it got, and why it got no further (or nothing)."""
    receive, send = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=child, args=(send, measure, cell, how, forms))
    process.start()
    send.close()
    results, end = [], time.monotonic() + how.limit
    try:
        while receive.poll(max(0.0, end - time.monotonic())):
            results.append(receive.recv())
        return results, f"> {how.limit:g} s"
    except EOFError:
        process.join()
        return results, {0: "", -9: "out of memory"}.get(process.exitcode or 0, f"exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receive.close()


def run_times(cell: Cell, how: How, forms: list[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Results of all forms, and why some have none. If one takes too long or kills the process, again without it."""
    results, ended = run(times, cell, how, forms)
    failed = {r["who"]: r["failed"] for r in results if "failed" in r}
    for key in ("value", "ms"):
        stuck = [who for who in forms if who not in failed and not any(r["who"] == who and key in r for r in results)]
        if ended and stuck:
            others = [who for who in forms if who != stuck[0]]
            again, reasons = run_times(cell, how, others)
            return again, {stuck[0]: ended, **reasons}
    return results, failed


@functools.cache
def run_peak(cell: Cell, how: How, who: str) -> dict[str, Any]:
    """The peak of a form and how it was measured, or why there is none."""
    results, ended = run(peak, cell, how, [who])
    return results[0] if results else {"who": who, "failed": ended}


def measure(cell: Cell, how: How, forms: list[str], skip: dict[str, str]) -> dict[str, Any]:
    """One row: times, ratios and peaks of all forms but those to skip (why they are)."""
    results, failed = run_times(cell, how, [who for who in forms if who not in skip])
    rounds: dict[str, dict[int, float]] = {}
    for result in results:
        if "ms" in result:
            rounds.setdefault(result["who"], {})[result["round"]] = result["ms"]
    ratios = {
        (who, other): statistics.median(each[number] / rounds[other][number] for number in each if number in rounds[other])
        for who, each in rounds.items()
        for other in ("floor", "tiled")
        if other in rounds
    }  # fmt: skip
    bare = replace(cell, loss="", samples=4)  # the floor's is the same for all losses
    peaks = [run_peak(bare if who == "floor" else cell, how, who) for who in rounds]
    failed |= {f"{r['who']} memory": r["failed"] for r in peaks if "failed" in r}
    return {
        **asdict(cell),
        "forms": forms,
        "value": {r["who"]: r["value"] for r in results if "value" in r and r["who"] != "floor"},
        "ms": {who: statistics.median(each.values()) for who, each in rounds.items()},
        "to_floor": {who: ratio for (who, other), ratio in ratios.items() if other == "floor"},
        "to_tiled": {who: ratio for (who, other), ratio in ratios.items() if other == "tiled"},
        "peak_mb": {r["who"]: r["peak_mb"] for r in peaks if "peak_mb" in r},
        "method": next((r["method"] for r in peaks if "method" in r), ""),
        "load": next((r["load"] for r in reversed(results) if "load" in r), None),
        "failed": {**skip, **failed},
    }


# ---- the command


def plan(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells, the small first; the options say in their help which sizes are combined."""
    for n in options.batch:
        for dim in options.dims:
            for name in options.losses:
                facts = LOSSES[name].info["facts"]
                if facts.needs_proxies:
                    for proxies in options.proxies:
                        if proxies < MANY or (n == 512 and dim == 128 and name != "soft_triple"):
                            yield Cell(name, n, dim, options.samples[0], proxies)
                elif facts.reads == "same":
                    for samples in options.samples[: None if n == 2048 else 1]:
                        yield Cell(name, n, dim, samples, 0)
                else:
                    yield Cell(name, n, dim, 0, 0)


def forms_of(cell: Cell, options: argparse.Namespace) -> list[str]:
    """The forms to measure in a cell."""
    first = cell.dim == options.dims[0] and cell.samples in (0, options.samples[0])
    compiled = cell.n in options.compiled and first and cell.proxies in (0, options.proxies[0])
    wanted = {"dense": options.dense, "compiled": compiled, "PML": cell.loss in PEERS}
    return ["floor", "tiled", *(who for who, is_wanted in wanted.items() if is_wanted)]


def to_skip(cell: Cell, how: How, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Forms that cannot run here, or failed at a smaller batch, and why."""
    skip = {}
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if how.device == "cpu" and shutil.which(compiler) is None:
        skip["compiled"] = "no C++ compiler"
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        skip["PML"] = "not installed"
    for row in rows:
        if all(row[key] == getattr(cell, key) for key in ("loss", "dim", "samples", "proxies")) and row["n"] < cell.n:
            why = {who: reason.split(" at B")[0] for who, reason in row["failed"].items() if who in row["forms"]}
            skip |= {who: f"{reason} at B = {row['n']}" for who, reason in why.items() if who not in skip}
    return skip


def code_version() -> str:
    """Changes with what the times depend on: the losses, the engine and torch, but for comments and docstrings."""
    engine = [ROOT / f"beyond_binary/{name}.py" for name in ENGINE]
    text = str(torch.__version__)
    for path in sorted([*engine, *(ROOT / "beyond_binary/losses").glob("*.py")]):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        text += ast.dump(tree)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def describe(argv: list[str], how: How) -> dict[str, str]:
    """Command, date, machine and versions."""
    chip = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        chip = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    chip += f", {os.cpu_count()} CPUs, {how.threads} threads used, {platform.system()}"
    settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith(("THP_MEM", "MALLOC_"))]
    packages = ["torch", *(["pytorch-metric-learning"] if importlib.util.find_spec("pytorch_metric_learning") else [])]
    return {
        "command": shlex.join(["python", "recipes/benchmarks/losses.py", *argv]),
        "date": date.today().isoformat(),
        "machine": (torch.cuda.get_device_name() + ", " if how.device == "cuda" else "") + chip,
        "precision": "float32" if how.precision == "float32" else "bfloat16 embeddings under autocast",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
        "allocator": " ".join(settings) or "default",
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; an unknown loss fails here, with near names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--losses", nargs="+", default=bb.list_losses(), help="registered losses")
    add("--batch", nargs="+", type=int, default=[128, 512, 2048, 4096, 8192], help="batch sizes B")
    add("--dims", nargs="+", type=int, default=[128, 512], help="widths d of the embeddings")
    add(
        "--samples", nargs="+", type=int, default=[4, 32, 256], help="items M of a class; all but the first at B = 2048"
    )
    add("--proxies", nargs="+", type=int, default=[100, 11318, 100_000, 1_000_000],
        help=f"classes of proxy losses; {MANY:,} or more at B = 512 and d = 128")  # fmt: skip
    add("--compiled", nargs="*", type=int, default=[2048], help="B at which the dense form is measured compiled, too")
    add("--dense", action="store_true", help="also our dense form (block=None)")
    add("--threads", type=int, default=How.threads, help="threads of each cell")
    add("--device", choices=["cpu", "cuda"], default=How.device, help="where the losses are computed")
    add("--precision", choices=["float32", "bfloat16"], default=How.precision, help="of embeddings and autocast")
    add("--rounds", type=int, default=How.rounds, help="most rounds of the timing")
    add("--seconds", type=float, default=How.seconds, help="timing of a form, about")
    add("--memory", type=float, default=How.memory, help="GiB that the process of a cell may allocate (CPU)")
    add("--limit", type=float, default=How.limit, help="seconds that a process of a cell may take")
    add("--minutes", type=float, default=60, help="start no cell after so many")
    add("--again", action="store_true", help="measure also what is already measured with this code")
    add("--output", type=Path, default=Path("docs/results/losses.md"), help="the table; JSON and plots beside it")
    options = parser.parse_args(argv)
    options.losses = [LOSSES[name].name for name in options.losses]
    return options


def load(store: Path, setting: dict[str, Any]) -> dict[Cell, dict[str, Any]]:
    """What was measured before, which must be under the same setting."""
    found: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {"setting": setting, "rows": []}
    if found.get("setting") != setting:
        raise SystemExit(f"{store} was measured with {found.get('setting')}; give another --output")
    return {Cell(**{key: row[key] for key in Cell.__dataclass_fields__}): row for row in found["rows"]}


def main(argv: list[str]) -> None:
    """Measure what is missing, print and store each row; the page and its plots at the end, also after Ctrl-C."""
    options = parse(argv)
    how = How(**{name: getattr(options, name) for name in How.__dataclass_fields__})
    setting = {name: getattr(how, name) for name in ("threads", "device", "precision")}
    store, code, begin = options.output.with_suffix(".json"), code_version(), time.monotonic()
    rows = load(store, setting)
    heading = {**describe(argv, how), "code": code}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    todo = []
    for cell, forms in ((cell, forms_of(cell, options)) for cell in plan(options)):
        old = rows.get(cell, {"code": "", "forms": []})
        if options.again or old["code"] != code or not {*forms} <= {*old["forms"]}:
            todo.append((cell, forms))
    try:
        for number, (cell, forms) in enumerate(todo):
            if time.monotonic() - begin > options.minutes * 60:
                print(f"{options.minutes:g} minutes are over; to measure {len(todo) - number} more: the same again")
                break
            known = [row for row in rows.values() if row["code"] == code]
            rows[cell] = {**measure(cell, how, forms, to_skip(cell, how, known)), "code": code}
            print(f"{number + 1}/{len(todo)}", report.line(rows[cell]), flush=True)
            part = store.with_suffix(".part")
            part.write_text(json.dumps({"setting": setting, **heading, "rows": [*rows.values()]}, indent=1))
            part.replace(store)
    finally:
        different = {name for name, peer in PEERS.items() if not peer.same}
        pictures = report.plot([*rows.values()], options.output)
        options.output.write_text(report.markdown(heading, [*rows.values()], different, pictures))


if __name__ == "__main__":
    main(sys.argv[1:])
