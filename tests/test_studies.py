"""Studies: every configuration can be read, runs are not repeated, and the table says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from beyond_binary.config import parse_config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "recipes" / "studies"))

import estimated
import pose
import study


@pytest.mark.parametrize("module", [pose, estimated], ids=lambda m: m.__name__)
def test_every_configuration_of_a_study_can_be_read(module: Any) -> None:
    assert len(module.STUDY.cells) >= 7
    seen = set()
    for cell in module.STUDY.cells.values():
        config = parse_config([*module.STUDY.base, *cell.changes])
        seen.add((repr(config), cell.around))
    assert len(seen) == len(module.STUDY.cells)


def test_an_interval_is_students() -> None:
    values = [0.3, 0.5, 0.4, 0.45]
    mean, half = study.interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(study.interval([1.0])[1])


def test_runs_are_kept_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, tuple[str, ...]]] = []

    def run(of: study.Study, cell: study.Cell, seed: int, given: Any) -> dict[str, Any]:
        calls.append((seed, cell.changes))
        rows = {ranking: {"m": float(seed + len(calls))} for ranking in ("before", "after", "random", "oracle")}
        return {"table": rows, "train_seconds": 2.0, "ready_seconds": 1.0}

    monkeypatch.setattr(study, "run", run)
    cells = {"a": study.Cell(("--x", "1")), "b, c": study.Cell(("--x", "2"))}
    made = study.Study((), cells, ("m",), "unused.json", 1)
    given = ["study", "--data", "d", "--weights", "w", "--results", str(tmp_path / "r.json"), "--seeds", "0", "1"]
    monkeypatch.setattr(sys, "argv", [*given, "--only", "a"])
    study.main(made, None)
    assert [seed for seed, _ in calls] == [0, 1]
    monkeypatch.setattr(sys, "argv", given)
    study.main(made, None)
    assert calls[2:] == [(0, ("--x", "2")), (1, ("--x", "2"))]
    assert sorted(json.loads((tmp_path / "r.json").read_text())) == ["a/0", "a/1", "b, c/0", "b, c/1"]
    assert "| b, c | 2 | 4.0000 ± " in capsys.readouterr().out
