"""The script that breaks losses on purpose: which changes it makes, and that it tells noticed from unnoticed ones."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import mutate
import pytest

from beyond_binary.losses import LOSSES

SCRIPT = Path(mutate.__file__)


def changes_of(code: str) -> list[tuple[str, str, str]]:
    """(kind, before, after) of all changes to a function."""
    nodes = mutate.inside(ast.parse(code).body[0])
    return [(kind, ast.unparse(old), ast.unparse(new)) for n in nodes for kind, old, new in mutate.changes(n)]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("a + b", [("sign", "a - b"), ("term", "a"), ("term", "b")]),
        ("a - b", [("sign", "a + b"), ("term", "a"), ("term", "-b")]),
        ("a * b", [("scale", "a / b")]),
        ("a < b", [("compare", "a > b")]),
        ("-a", [("sign", "a")]),
        ("~a & b", [("mask", "~a | b"), ("mask", "a")]),
        ("a.amax(1)", [("extreme", "a.amin(1)"), ("constant", "2")]),
        ("max(a, b)", [("extreme", "min(a, b)")]),
        ("a.sum(-1)", [("constant", "-2")]),
        ("0.5", [("constant", "1.0")]),
        ("a.sum() * 0 + b.sum() * 0", []),
        ("a + b.sum() * 0", []),
    ],
)
def test_changes_of_a_formula(formula: str, expected: list[tuple[str, str]]) -> None:
    found = changes_of(f"def f(a, b):\n    c = {formula}")
    assert [(kind, after) for kind, _, after in found] == expected


def test_changes_of_statements() -> None:
    assert changes_of("def f(a):\n    a += b") == [("sign", "a += b", "a -= b"), ("term", "a += b", "pass")]
    assert changes_of("def f(a):\n    return a, b") == [("sign", "a", "-a")]
    ((kind, _, after),) = changes_of("def f(a):\n    return g(a)")
    assert kind == "sign"
    assert eval(after, {"g": lambda a: (a, 2), "a": 1}) == (-1, 2)
    assert eval(after, {"g": lambda a: a, "a": 1}) == -1
    assert changes_of("def f(a, *, k: float = 2.0) -> None:\n    pass") == [("constant", "2.0", "4.0")]
    assert changes_of("def f(a):\n    if a < 0:\n        raise ValueError(a - 1)") == []


def test_every_registered_loss_is_found_and_its_changes_can_be_compiled() -> None:
    there = mutate.losses()
    assert sorted(there) == LOSSES.names()
    own = {function.name for _, function in there.values()}
    for name, (path, function) in there.items():
        found = mutate.mutants(name, path, function, own)
        assert any(m.judged for m in found), name
        for mutant in mutate.chosen(found, 8, seed=0):
            source = (mutate.ROOT / mutant.file).read_bytes()
            assert ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source)), mutant


def test_changes_reach_what_a_loss_takes_from_modules_beside_its_own() -> None:
    there = mutate.losses()
    own = {function.name for _, function in there.values()}
    found = {(Path(m.file).name, m.function) for m in mutate.mutants("pd_loss", *there["pd_loss"], own)}
    assert {("moments.py", "pd_loss"), ("scores.py", "_KeyMoments")} <= found
    assert not {function for _, function in found} & (own - {"pd_loss"})


def test_what_is_said_to_change_nothing_still_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    excused = dict(mutate.EQUIVALENT)
    monkeypatch.setattr(mutate, "EQUIVALENT", {})
    there = mutate.losses()
    own = {function.name for _, function in there.values()}
    found = {(m.function, m.before, m.after) for name in there for m in mutate.mutants(name, *there[name], own)}
    assert set(excused) <= found
    assert all(excused.values())


def run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(SCRIPT), "--losses", "contrastive", "supcon", "--jobs", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_changes_of_sign_are_noticed() -> None:
    status, output = run("--limit", "3")
    assert status == 0, output
    assert "survived!" not in output
    assert re.search(r"contrastive +3 +3 +3 of +3 +ok", output), output
    assert re.search(r"supcon +3 +\d +1 of +1 +ok", output), output


@pytest.mark.slow
def test_tests_that_see_nothing_are_seen_through() -> None:
    status, output = run("--limit", "2", "--select", "half_precision")  # compares a loss with itself
    assert status == 1, output
    assert "NOT NOTICED" in output
    assert re.search(r"survived! beyond_binary/losses/pairs.py:\d+ contrastive: .* -> ", output), output


@pytest.mark.slow
def test_no_tests_at_all_is_no_success() -> None:
    status, output = run("--limit", "1", "--select", "no_such_test")
    assert status == 1
    assert "there are none" in output
