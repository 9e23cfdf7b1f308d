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
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import results as report
import torch
from cells import PEERS, Cell, How, Step, make_step

import beyond_binary as bb
from beyond_binary.losses import LOSSES

Emit = Callable[[dict[str, Any]], None]
ROOT = Path(__file__).parents[2]
ENGINE = ("blocks", "geometry", "keys", "mining", "objective", "softmax", "tiles", "walks")
MANY = 50_000  # from so many classes on: B = 512 and d = 128 alone, without soft_triple
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "beyond_binary", "pytorch_metric_learning.losses", "torch._dynamo"])


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
