import importlib.util
import json
import math
from pathlib import Path

import pytest

import beyond_binary as bb

SCRIPT = Path(__file__).parent.parent / "recipes" / "benchmarks" / "losses.py"


@pytest.fixture(scope="module")
def benchmark_losses():
    spec = importlib.util.spec_from_file_location("benchmark_losses", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(benchmark_losses, tmp_path_factory):
    """The table and its JSON after one tiny run of the command."""
    path = tmp_path_factory.mktemp("benchmark") / "made" / "losses.md"
    tiny = {"losses": "supcon", "batch": 16, "dims": 4, "rounds": 2, "threads": 1, "limit": 120, "output": path}
    benchmark_losses.main([text for name, value in tiny.items() for text in (f"--{name}", str(value))])
    return path.read_text(), json.loads(path.with_suffix(".json").read_text())


def test_the_table_has_a_row_with_every_time_and_peak(written):
    table, _ = written
    header, rule, row = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert len(header) == len(rule) == len(row)
    cells = {name.strip(): cell.strip() for name, cell in zip(header, row, strict=True)}
    assert (cells["loss"], cells["B x keys"], cells["d"]) == ("supcon", "16 x 16", "4")
    for form in ("floor", "tiled", "PML"):
        assert float(cells[f"{form} ms"].split(" (")[0]) > 0
        assert float(cells[f"{form} MB"]) >= 0
    assert cells["tiled ms"].endswith("x)")
    assert float(cells["difference"]) < 1e-5
    for line in ("- command: ", "- date: ", "- machine: ", "- versions: ", "- peak: "):
        assert line in table


def test_the_json_holds_the_same_numbers(written):
    _, found = written
    (row,) = found["rows"]
    assert row["failed"] == {}
    assert set(row["ms"]) == set(row["to_floor"]) == set(row["peak_mb"]) == {"floor", "tiled", "PML"}
    assert row["to_floor"]["floor"] == 1


@pytest.mark.parametrize("name", bb.list_losses())
def test_each_form_of_each_loss_has_the_same_value(benchmark_losses, name):
    forms = ["tiled", "dense", *(["PML"] if name in benchmark_losses.PEERS else [])]
    tiled, *others = (benchmark_losses.make_step(form, name, 64, 8, 5)() for form in forms)
    assert math.isfinite(tiled)
    assert tiled != 0
    assert others == pytest.approx([tiled] * len(others), rel=1e-4)
    assert math.isfinite(benchmark_losses.make_step("floor", name, 64, 8, 5)())


def test_every_peer_is_registered(benchmark_losses):
    assert set(benchmark_losses.PEERS) <= set(bb.list_losses())


def cell(**changes):
    how = {"what": "time", "rounds": 1, "threads": 1, "memory": 4}
    return {
        "loss": "supcon",
        "n": 16,
        "dim": 4,
        "proxies": 5,
        "who": ["floor", "tiled", "PML"],
        **how,
        **changes,
    }


def test_what_takes_too_long_is_recorded(benchmark_losses):
    row = benchmark_losses.run_row(cell(), 0.01)
    assert row["failed"] == {"floor": "> 0.01 s", "tiled": "> 0.01 s", "PML": "> 0.01 s"}
    text = benchmark_losses.markdown({}, [row], ["floor", "tiled", "PML"])
    assert text.count("> 0.01 s") == 6


def test_a_peer_that_runs_out_of_memory_costs_only_its_own_column(benchmark_losses, monkeypatch):
    def run_cell(asked, limit):
        found = [{"who": who, "value": 1.0, "ms": 2.0, "peak_mb": 3.0, "method": "m"} for who in asked["who"]]
        return ([], "out of memory") if "PML" in asked["who"] else (found, "")

    monkeypatch.setattr(benchmark_losses, "run_cell", run_cell)
    row = benchmark_losses.run_row(cell(), 1)
    assert row["failed"] == {"PML": "out of memory"}
    assert row["ms"] == {"floor": 2.0, "tiled": 2.0}
    assert benchmark_losses.entry(row, "PML") == ("out of memory", "out of memory")


def test_an_allocation_beyond_the_cap_is_reported(benchmark_losses, monkeypatch, capsys):
    def too_much(asked, emit):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(benchmark_losses, "measure", too_much)
    monkeypatch.setattr(benchmark_losses.resource, "setrlimit", lambda *_: None)
    benchmark_losses.child(cell())
    assert json.loads(capsys.readouterr().out) == {"failed": "out of memory"}


def test_an_unknown_loss_fails_before_anything_is_measured(benchmark_losses, tmp_path):
    with pytest.raises(ValueError, match="supcon"):
        benchmark_losses.main(["--losses", "supconn", "--output", str(tmp_path / "t.md")])
    assert list(tmp_path.iterdir()) == []
