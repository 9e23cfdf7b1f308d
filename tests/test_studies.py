"""Studies: every configuration can be read, runs are not repeated, and the table says what was measured."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from beyond_binary.config import Config, parse_config
from recipes import TINY

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes" / "studies"))

import distributions
import estimated
import flickr8k
import omniglot
import pages
import pose
import study
import tasks


@pytest.mark.parametrize(
    "module", [pose, estimated, tasks, flickr8k, distributions, omniglot], ids=lambda m: m.__name__
)
def test_every_configuration_of_a_study_can_be_read_and_is_asked_for_by_its_name(module: Any) -> None:
    asked = {name for names in module.STUDY.questions.values() for name in names}
    drawn = {n for curves in module.STUDY.curves.values() for points in curves.values() for n in points.values()}
    assert asked | drawn <= {*module.STUDY.cells}
    assert asked in (set(), {*module.STUDY.cells})
    seen = set()
    for cell in module.STUDY.cells.values():
        config = parse_config([*module.STUDY.base, *cell.changes])
        seen.add((repr(config), cell.around))
    assert len(seen) == len(module.STUDY.cells)


def test_an_interval_is_students() -> None:
    values = [0.3, 0.5, 0.4, 0.45]
    mean, half = pages.interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(pages.interval([1.0])[1])
    assert pages.shown([np.inf, np.inf]) == "inf"  # decidability of the oracle


def result(after: float, before: float = 0.0) -> dict[str, Any]:
    rows = {"after": {"m": after}, "before": {"m": before}, "random": {"m": 9.0}, "oracle": {"m": 10.0}}
    return {"table": rows, "epochs": 4, "train_seconds": 2.0, "ready_seconds": 1.0, "search_seconds": 0.25}


def test_a_table_compares_the_seeds_that_both_have() -> None:
    runs = {"a/0": result(1.0), "a/1": result(2.0), "b/0": result(1.5), "b/1": result(2.75), "b/2": result(9.0)}
    runs |= {"c/7": result(5.0), "ab/0": result(100.0)}
    rows = pages.table(["a", "b", "c", "d"], ["m"], runs).splitlines()
    mean, half = pages.interval([0.5, 0.75])
    assert rows[2].startswith("| a | 2 | 1.5000 ± 6.3531 |  |")
    assert rows[3] == f"| b | 3 | {pages.shown([1.5, 2.75, 9.0])} | {mean:+.4f} ± {half:.4f} |"
    assert rows[4] == "| c | 1 | 5.0000 |  |"
    assert len(rows) == 8
    assert pages.shown([0.5, 0.6], "+").startswith("+0.55")
    assert pages.shown([0.5, 0.50001], "+").startswith("**+0.5000")


def test_gains_are_taken_seed_by_seed() -> None:
    runs = {"a/0": result(1.0, 0.5), "a/1": result(5.0, 4.5)}
    assert "| a | m | 2 | 2.5000 ± 25.4124 | 3.0000 ± 25.4124 | **+0.5000 ± 0.0000** |" in pages.gains(
        ["a"], ["m"], runs
    )


def test_seconds_of_an_epoch_and_of_the_search() -> None:
    runs = {"a/0": result(1.0)}
    assert "| a | 2 | 0.5 | 1.0 | 0.25 |" in pages.seconds(["a", "b"], runs)
    runs |= {f"a/{seed}": result(1.0) | {"epoch_seconds": 0.25 * seed} for seed in (3, 4, 5)}
    assert "| a | 2 | 0.8 | 1.0 | 0.25 |" in pages.seconds(["a", "b"], runs)


def test_runs_are_kept_and_not_repeated_and_a_page_keeps_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, tuple[str, ...]]] = []

    def run(of: study.Study, cell: study.Cell, seed: int, given: Any) -> dict[str, Any]:
        calls.append((seed, cell.changes))
        return result(float(seed + len(calls)))

    monkeypatch.setattr(study, "run", run)
    cells = {"a": study.Cell(("--optimizer.lr", "0.1")), "b, c": study.Cell(("--optimizer.lr", "0.2"))}
    curves = {"size": {"all": {1.0: "a", 2.0: "b, c"}}}
    made = study.Study((), cells, ("m",), "unused.md", 1, {"which": ("a", "b, c")}, curves=curves)
    page = tmp_path / "r.md"
    given = ["study", "--results", str(page), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*given, "--only", "a"])
    study.main(made, None)
    assert [seed for seed, _ in calls] == [0, 1]
    page.write_text("Before.\n" + page.read_text().replace("| a |", "| old |") + "After.\n")
    monkeypatch.setattr(sys, "argv", given)
    study.main(made, None)
    assert calls[2:] == [(0, ("--optimizer.lr", "0.2")), (1, ("--optimizer.lr", "0.2"))]
    before = len(calls)
    monkeypatch.setattr(sys, "argv", [*given, "--epochs", "7", "--only", "b,"])
    study.main(made, None)
    assert len(calls) == before + 2  # other settings are other runs
    monkeypatch.setattr(sys, "argv", [*given, "--epochs", "7", "--only", "b,"])
    study.main(made, None)
    assert len(calls) == before + 2
    assert sorted(json.loads((tmp_path / "r.json").read_text())) == ["a/0", "a/1", "b, c/0", "b, c/1"]
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert "| b, c | 2 | 6.0000 ± " in text
    for name in ("r_questions", "r_size"):
        assert f"![{name}]({name}.png)" in text
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_another_loss_is_trained_in_the_place_of_the_objective(tmp_path: Path) -> None:
    around = study.Cell(around=lambda setup: study.Around(lambda z, labels, ids: z.square().mean()))
    made = study.Study(TINY, {"a": around}, ("recall_at_1",), "unused.md", 1, {})
    given = Namespace(epochs=1, change=[], data=None, weights=None)
    found = study.run(made, around, 0, given)
    assert found["epochs"] == 1
    assert found["epoch_seconds"] > 0


def test_a_run_is_known_by_what_differs_from_the_defaults() -> None:
    made = study.Study((), {}, ("m",), "unused.md", None, {})
    given = Namespace(epochs=3, change=[])

    def mark(*changes: str, seed: int = 0) -> str:
        return study.fingerprint(made, study.Cell(changes), seed, given)

    assert mark() == mark("--optimizer.lr", str(Config().optimizer.lr))
    assert len({mark(), mark(seed=1), mark("--optimizer.lr", "0.7"), mark("--embedder.dim", "7")}) == 4
    config = parse_config(["--embedder.dim", "7", "--seed", "5"])
    assert study.changed(config, Config()) == {"embedder": {"dim": 7}, "seed": 5}


def test_the_frozen_trunk_has_a_row_where_it_was_measured() -> None:
    run = result(1.0)
    assert "frozen" not in pages.table(["a"], ["m"], {"a/0": run})
    run["table"]["frozen"] = {"m": 3.0}
    assert "| *frozen* | | 3.0000 | |" in pages.table(["a"], ["m"], {"a/0": run})


def test_convergence_is_counted_from_the_start_of_each_run() -> None:
    way = {"0": {"m": 1.0}, "1": {"m": 2.0}, "2": {"m": 2.94}, "3": {"m": 2.97}, "4": {"m": 3.0}}
    runs = {"a/0": result(3.0) | {"history": way}, "b/0": result(1.0) | {"history": {"0": {"m": 0.0}, "4": {"m": 1.0}}}}
    runs["a/1"] = result(3.0) | {"history": {epoch: {"m": float(epoch)} for epoch in way}}
    lost = {"0": {"m": 2.0}, "1": {"m": 3.0}, "2": {"m": 1.0}, "8": {"m": 2.0}}
    runs["c/0"] = result(2.0) | {"history": lost}  # gained nothing: it came to rest nowhere
    rows = pages.convergence(["a", "b", "c"], "m", runs).splitlines()
    assert rows[0] == "| m after epoch | seeds | 0 | 1 | 2 | 3 | 4 | 8 | epochs to 95% of the gain |"
    assert rows[2] == "| a | 2 | 0.5000 | 1.5000 | 2.4700 | 2.9850 | 3.5000 |  | 2, 4 |"
    assert rows[3:] == ["| c | 1 | 2.0000 | 3.0000 | 1.0000 |  |  | 2.0000 |  |"]
