"""Break each loss on purpose, one small change at a time, and see whether its tests notice.

    python tests/mutate.py [--losses NAME ...] [--limit N] [--jobs 2]

The changes are made to the loss's function and to what it calls in the folder of losses, in a temporary copy of the package;
the quick tests of that loss in `test_losses.py` then run against the copy. Changes of sign and missing terms in the
loss function itself must be noticed; the others are listed for a person to judge. Exit status 1: not so for some loss.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import functools
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SELECT = (
    "oracles or second_derivatives or repeated_ids or other_references or gradcheck or in_place or tiles_equal_dense or nothing_valid "
    "or empty_batch or degenerate or coincident or edges or official or published"
)
JUDGED = ("sign", "term")  # the kinds of change that must not survive in a loss function
TIMEOUT = 120  # seconds; a change that makes the tests hang is noticed

NEGATED = "(lambda r: (-r[0], *r[1:]) if isinstance(r, tuple) else -r)({})"

EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("log_ratio", "u - centre[:, None]", "u + centre[:, None]"): "any centre gives the same sum of squares",
    ("log_ratio", "u - centre[:, None]", "u"): "any centre gives the same sum of squares",
    ("dense_triplet", "x - torch.where(valid, x, 0).detach().mean(1, keepdim=True)", "x"): "the counts add up to 0",
    (
        "dense_triplet",
        "x - torch.where(valid, x, 0).detach().mean(1, keepdim=True)",
        "x + torch.where(valid, x, 0).detach().mean(1, keepdim=True)",
    ): "the counts add up to 0",
    ("_KeyMoments", "centre.double() + keys.mean(0)", "centre.double() - keys.mean(0)"): "a rounding error's size",
    ("_KeyMoments", "centre.double() + keys.mean(0)", "centre.double()"): "a rounding error's size",
}
"""(function, before, after) of changes that change nothing that could be noticed, with the reason."""

SWAPS = {
    "sign": [("add", "sub"), ("add_", "sub_")],
    "scale": [("mul", "div"), ("mul_", "div_")],
    "extreme": [
        ("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("fmin", "fmax"),
        ("cummin", "cummax"), ("clamp_min", "clamp_max"), ("clamp_min_", "clamp_max_"), ("any", "all"),
    ],
}  # fmt: skip
CALLS = {a: (kind, b) for kind, pairs in SWAPS.items() for pair in pairs for a, b in (pair, pair[::-1])}
OPERATORS: dict[type[ast.AST], tuple[str, type[Any]]] = {
    ast.Add: ("sign", ast.Sub), ast.Sub: ("sign", ast.Add), ast.Mult: ("scale", ast.Div), ast.Div: ("scale", ast.Mult),
    ast.Lt: ("compare", ast.Gt), ast.Gt: ("compare", ast.Lt), ast.LtE: ("compare", ast.GtE),
    ast.GtE: ("compare", ast.LtE), ast.Eq: ("compare", ast.NotEq), ast.NotEq: ("compare", ast.Eq),
    ast.BitAnd: ("mask", ast.BitOr), ast.BitOr: ("mask", ast.BitAnd),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of a source file: what stands between two bytes is replaced."""

    loss: str
    file: str
    function: str
    kind: str
    line: int
    before: str
    after: str
    start: int
    end: int
    judged: bool
    bare: bool  # stands without parentheses

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + (self.after if self.bare else f"({self.after})").encode() + source[self.end :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.before}  ->  {self.after}  ({self.kind})"


def losses() -> dict[str, tuple[Path, ast.FunctionDef]]:
    """Registered name to the file and function of each loss, as the source has them."""
    found = {}
    for path in sorted((ROOT / "beyond_binary" / "losses").glob("*.py")):
        for node in ast.parse(path.read_bytes()).body:
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "register_loss":
                    found[ast.literal_eval(mark.args[0])] = (path, node)
    return found


def used(path: Path, function: ast.FunctionDef, others: set[str]) -> list[tuple[Path, Any]]:
    """The function and what it (or its registration) uses in the folder of losses, directly or not; not other losses.

    Each with its file."""
    wanted, seen = [(path, function.name)], []
    while wanted:
        file, name = wanted.pop(0)
        there, elsewhere = names_of(file)
        if name in there and name not in others and (file, there[name]) not in seen:
            seen.append((file, there[name]))
            wanted += [(file, n.id) for n in ast.walk(there[name]) if isinstance(n, ast.Name)]
        elif name in elsewhere:
            wanted.append((elsewhere[name], name))
    return seen


@functools.cache
def names_of(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """What a module defines, and the files of what it imports from modules beside it."""
    body = ast.parse(path.read_bytes()).body
    imports = [n for n in body if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module]
    files = {alias.name: path.parent / f"{n.module}.py" for n in imports for alias in n.names}
    return {n.name: n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}, files


def is_zero(node: ast.AST) -> bool:
    """Whether an expression is 0 with a graph, such as `z.sum() * 0`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return is_zero(node.left) and is_zero(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return any(isinstance(side, ast.Constant) and side.value == 0 for side in (node.left, node.right))
    return False


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """(kind, part, what to put in its place) of all changes to a node itself."""

    def with_(part: Any, **fields: Any) -> Any:
        new = copy.copy(part)
        vars(new).update(fields)
        return new

    match node:
        case ast.BinOp(left, op, right):
            kind, other = OPERATORS.get(type(op), ("", None))
            if other is None or is_zero(left) or is_zero(right):
                return
            yield kind, node, with_(node, op=other())
            if kind == "sign":
                yield "term", node, left
                yield "term", node, right if isinstance(op, ast.Add) else ast.UnaryOp(ast.USub(), right)
        case ast.UnaryOp(ast.USub(), ast.Constant(value)):
            yield "constant", node, ast.UnaryOp(ast.USub(), ast.Constant(value + 1))
        case ast.UnaryOp(op, operand) if isinstance(op, ast.USub | ast.Invert | ast.Not):
            yield "sign" if isinstance(op, ast.USub) else "mask", node, operand
        case ast.Compare(_, [op], _) if type(op) in OPERATORS:
            yield OPERATORS[type(op)][0], node, with_(node, ops=[OPERATORS[type(op)][1]()])
        case ast.Constant(value) if type(value) in (int, float):
            new = value + 1 if isinstance(value, int) else 2 * value or 1.0
            yield "constant", node, ast.Constant(new)
        case ast.Call(ast.Attribute(_, name) as function) if name in CALLS:
            yield CALLS[name][0], node, with_(node, func=with_(function, attr=CALLS[name][1]))
        case ast.Call(ast.Name(name) as function) if name in CALLS:
            yield CALLS[name][0], node, with_(node, func=with_(function, id=CALLS[name][1]))
        case ast.AugAssign(_, op, _) if type(op) in OPERATORS:
            kind, other = OPERATORS[type(op)]
            yield kind, node, with_(node, op=other())
            if kind == "sign":
                yield "term", node, ast.Pass()
        case ast.Return(ast.Tuple([first, *_])):
            yield "sign", first, ast.UnaryOp(ast.USub(), first)
        case ast.Return(ast.expr() as value) if not isinstance(value, ast.Constant) and not is_zero(value):
            yield "sign", value, ast.parse(NEGATED.format(ast.unparse(value)), mode="eval").body


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, without what is no formula: refusals, registrations, annotations, zeros with a graph."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or is_zero(node):
        return
    if isinstance(node, ast.If) and all(isinstance(each, ast.Raise) for each in node.body) and not node.orelse:
        return
    yield node
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("decorator_list", "annotation", "returns"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from inside(each)


def mutants(name: str, path: Path, function: ast.FunctionDef, others: set[str]) -> list[Mutant]:
    """All changes of a loss, each once, without those known to change nothing."""
    found = {}
    for file, part in used(path, function, others - {function.name}):
        source = file.read_bytes()
        starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
        for node in inside(part):
            for kind, old, new in changes(node):
                start = starts[old.lineno - 1] + old.col_offset  # type: ignore[attr-defined]
                end = starts[old.end_lineno - 1] + old.end_col_offset  # type: ignore[attr-defined]
                before, after = " ".join(source[start:end].decode().split()), ast.unparse(new)
                if (part.name, before, after) in EQUIVALENT:
                    continue
                bare = isinstance(new, ast.stmt | ast.Constant)
                judged = part.name == function.name and kind in JUDGED
                where = str(file.relative_to(ROOT)), part.name, kind, old.lineno  # type: ignore[attr-defined]
                found[file, start, end, after] = Mutant(name, *where, before, after, start, end, judged, bare)
    return list(found.values())


class Only:
    """Pytest plugin: keep the tests of one loss."""

    def __init__(self, loss: str) -> None:
        self.loss = loss

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if self.wanted(item)]

    def wanted(self, item: Any) -> bool:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        return case.loss == self.loss if case is not None else self.loss in item.name


def run_tests(folder: Path, loss: str, select: str) -> int:
    """Exit status of the loss's tests against the copy in `folder`, in a child process; negative: a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 3
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TIMEOUT)
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        sys.path.insert(0, str(folder))
        import pytest

        tests = [str(ROOT / "tests" / "test_losses.py"), "--rootdir", str(ROOT), "-k", select]
        quick = [
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--assert=plain",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]
        status = int(pytest.main([*quick, *tests], plugins=[Only(loss)]))
        used_copy = Path(sys.modules["beyond_binary"].__file__ or "").is_relative_to(folder)
        status = status if used_copy else 4
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def copied(folder: Path) -> Path:
    """A copy of the package in a new folder, for this process."""
    lane = Path(tempfile.mkdtemp(dir=folder))
    shutil.copytree(ROOT / "beyond_binary", lane / "beyond_binary")
    return lane


LANE = Path()


def enter_lane(folder: Path) -> None:
    """Give this worker a copy of the package."""
    global LANE
    LANE = copied(folder)


def survives(job: tuple[int, Mutant, str]) -> bool:
    """Whether the tests pass in spite of a change."""
    number, mutant, select = job
    path = LANE / mutant.file
    source, times = path.read_bytes(), path.stat()
    path.write_bytes(mutant.applied(source))
    os.utime(path, (number, number))  # a time of its own, or Python would take the compiled file of another change
    try:
        return run_tests(LANE, mutant.loss, select) == 0
    finally:
        path.write_bytes(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def chosen(everything: Sequence[Mutant], limit: int | None, seed: int) -> list[Mutant]:
    """At most `limit` changes by lot, those that must be noticed before the others."""
    drawn = random.Random(seed).sample(everything, len(everything))
    return sorted(drawn, key=lambda m: not m.judged)[:limit]


def report(name: str, outcome: Sequence[tuple[Mutant, bool]], share: float) -> bool:
    """Print the line of a loss and its survivors; whether it passes."""
    judged = [survived for mutant, survived in outcome if mutant.judged]
    killed = sum(not survived for _, survived in outcome)
    noticed = sum(not survived for survived in judged)
    good = killed > 0 and noticed >= share * len(judged)
    verdict = "ok" if good else "NOT NOTICED"
    print(f"{name:28} {len(outcome):8} {killed:8} {noticed:8} of {len(judged):3}   {verdict}")
    for mutant, survived in sorted(outcome, key=lambda pair: (pair[0].file, pair[0].start)):
        if survived:
            print(f"    {'survived!' if mutant.judged else 'survived '} {mutant}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--limit", type=int, help="at most this many changes per loss")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--share", type=float, default=1.0, help="of sign and term changes that must be noticed")
    parser.add_argument("--select", default=SELECT, help="pytest -k expression: the tests to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    there = losses()
    if unknown := sorted(set(given.losses or []) - set(there)):
        parser.error(f"no such loss: {', '.join(unknown)}; there are {', '.join(there)}")
    names = given.losses or list(there)
    own = {function.name for _, function in there.values()}
    todo = [m for n in names for m in chosen(mutants(n, *there[n], own), given.limit, given.seed)]
    jobs = [(number, mutant, given.select) for number, mutant in enumerate(todo)]

    import hypothesis.strategies  # noqa: F401  (once, for all children)
    import pytest  # noqa: F401
    import torch.testing  # noqa: F401

    started, good = time.time(), True
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        whole = copied(folder)
        for name in names:
            if status := run_tests(whole, name, given.select):
                print((whole / "log.txt").read_text()[-2000:])
                print(f"{name}: the tests fail (or there are none) without any change, pytest's status is {status}")
                return 1
        pool = stack.enter_context(multiprocessing.get_context("fork").Pool(given.jobs, enter_lane, (folder,)))
        print(f"{'loss':28} {'changes':>8} {'noticed':>8} {'sign, term':>15}", flush=True)
        survived = pool.imap(survives, jobs)
        for name in names:
            good &= report(name, [(m, next(survived)) for m in todo if m.loss == name], given.share)
    print(f"{len(jobs)} changes in {time.time() - started:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
