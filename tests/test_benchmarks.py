import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import beyond_binary as bb
from beyond_binary.losses import LOSSES
from recipes import load

FOLDER = Path(__file__).parent.parent / "recipes" / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """The module by its name: the processes of the cells import it, too."""
    sys.path.insert(0, str(FOLDER))
    try:
        import losses

        yield losses
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def tiny(script):
    return script.Cell("supcon", 16, 4, 4, 0), script.How(threads=1, rounds=2, seconds=0.01, memory=8.0, limit=120.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Page and JSON after one tiny run of the command."""
    path = tmp_path_factory.mktemp("benchmark") / "made" / "losses.md"
    command = f"--losses supcon --batch 16 --dims 4 --rounds 2 --threads 1 --limit 120 --output {path}"
    subprocess.run([sys.executable, str(FOLDER / "losses.py"), *command.split()], check=True)
    return path, json.loads(path.with_suffix(".json").read_text())


# ---- the command


def test_the_table_has_a_row_with_every_time_and_peak(written):
    table = written[0].read_text()
    header, rule, row = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert len(header) == len(rule) == len(row)
    cells = {name.strip(): cell.strip() for name, cell in zip(header, row, strict=True)}
    assert "## 4 of a class, d = 4" in table
    assert (cells["loss"], cells["B"]) == ("supcon", "16")
    for form in ("floor", "tiled", "PML"):
        assert float(cells[f"{form} ms"].split(" (")[0]) > 0
        assert float(cells[f"{form} MB"]) >= 0
    assert cells["tiled ms"].endswith("x)")
    assert float(cells["difference"]) < 1e-5
    assert float(cells["PML / tiled"]) > 0
    for line in ("- command: ", "- date: ", "- machine: ", "- versions: ", "- peak: "):
        assert line in table


def test_the_json_holds_the_same_numbers(written):
    (row,) = written[1]["rows"]
    assert row["failed"] == {}
    assert set(row["ms"]) == set(row["to_floor"]) == set(row["peak_mb"]) == {"floor", "tiled", "PML"}
    assert row["to_floor"]["floor"] == row["to_tiled"]["tiled"] == 1


def test_the_page_shows_both_plots(written):
    path, _ = written
    for name in ("losses_time.png", "losses_memory.png"):
        assert f"]({name})" in path.read_text()
        assert path.with_name(name).read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def measured(script, monkeypatch, tmp_path):
    """The command with nothing really measured: `measured(...)` returns the cells it would measure."""
    cells = []

    def measure(cell, how, forms, skip):
        cells.append(cell)
        numbers = {"value": {}, "ms": {}, "to_floor": {}, "to_tiled": {}, "peak_mb": {}, "failed": {}}
        return {**asdict(cell), **numbers, "forms": forms, "method": "", "load": 0.0}

    def command(text):
        cells.clear()
        script.main([*text.split(), "--output", str(tmp_path / "t.md")])
        return list(cells)

    monkeypatch.setattr(script, "measure", measure)
    monkeypatch.setattr(script.report, "plot", lambda *_: [])
    return command


def test_what_is_measured_with_this_code_is_kept(script, measured, monkeypatch, tmp_path):
    one, two = "--losses supcon --batch 16 --dims 4", "--losses supcon triplet --batch 16 --dims 4"
    assert [cell.loss for cell in measured(one)] == ["supcon"]
    assert measured(one) == []
    assert [cell.loss for cell in measured(two)] == ["triplet"]
    assert [cell.loss for cell in measured(one + " --dense")] == ["supcon"]
    assert len(measured(two + " --again")) == 2
    assert "*" not in (tmp_path / "t.md").read_text().split("## ")[1]
    monkeypatch.setattr(script, "code_version", lambda: "changed")
    assert [cell.loss for cell in measured(one)] == ["supcon"]
    assert "| triplet * | 16" in (tmp_path / "t.md").read_text()


def test_another_setting_wants_another_file(measured):
    measured("--losses supcon --batch 16 --threads 1")
    with pytest.raises(SystemExit, match=r"threads.*another --output"):
        measured("--losses supcon --batch 16 --threads 2")


def test_no_cell_starts_after_the_minutes(measured, capsys):
    assert measured("--minutes -1") == []
    assert "the same again" in capsys.readouterr().out


def test_the_plan_covers_every_loss_at_every_size(script):
    cells = list(script.plan(script.parse([])))
    assert len(set(cells)) == len(cells)
    for name in bb.list_losses():
        sizes = Counter((cell.samples, cell.proxies) for cell in cells if cell.loss == name)
        if LOSSES[name].info["facts"].needs_proxies:
            many = {} if name == "soft_triple" else {(4, 100_000): 1, (4, 1_000_000): 1}
            assert sizes == {(4, 100): 10, (4, 11318): 10, **many}
        elif LOSSES[name].info["facts"].reads == "same":
            assert sizes == {(4, 0): 10, (32, 0): 2, (256, 0): 2}
        else:
            assert sizes == {(0, 0): 10}


def test_the_compiled_form_is_measured_once_for_each_loss(script):
    options = script.parse([])
    compiled = [cell for cell in script.plan(options) if "compiled" in script.forms_of(cell, options)]
    assert sorted(cell.loss for cell in compiled) == sorted(bb.list_losses())


def test_an_unknown_loss_fails_before_anything_is_measured(script, tmp_path):
    with pytest.raises(ValueError, match="supcon"):
        script.main(["--losses", "supconn", "--output", str(tmp_path / "t.md")])
    assert list(tmp_path.iterdir()) == []


# ---- what is measured


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:__array_wrap__")
@pytest.mark.parametrize("name", bb.list_losses())
def test_each_form_of_each_loss_has_the_same_value(script, tiny, name):
    facts = LOSSES[name].info["facts"]
    proxies = 5 if facts.needs_proxies else 0
    cell, how = script.Cell(name, 64, 8, 4 if facts.reads == "same" else 0, proxies), tiny[1]
    forms = ["tiled", "dense", *(["PML"] if name in script.PEERS else [])]
    values = {form: script.make_step(form, cell, how)() for form in forms}
    assert all(math.isfinite(value) for value in values.values())
    if name not in script.PEERS or script.PEERS[name].same:
        tiled = values.pop("tiled")
        assert tiled != 0
        assert values == pytest.approx(dict.fromkeys(values, tiled), rel=1e-4)
    assert math.isfinite(script.make_step("floor", cell, how)())


def test_every_peer_is_registered(script):
    assert set(script.PEERS) <= set(bb.list_losses())


@pytest.mark.parametrize("name", ["supcon", "arcface"])
def test_half_precision_embeddings_under_autocast(script, tiny, name):
    cell, how = script.Cell(name, 16, 4, 4, 5 * (name == "arcface")), tiny[1]
    for who in ("floor", "tiled", "PML"):
        exact, half = (script.make_step(who, cell, replace(how, precision=p))() for p in ("float32", "bfloat16"))
        assert half != exact
        assert half == pytest.approx(exact, rel=0.1, abs=0.02) or who == "floor"


def test_continuous_labels_of_three_dimensions(script):
    z, labels = sys.modules["cells"].data(script.Cell("log_ratio", 12, 5, 0, 0))
    assert (z.shape, labels.shape) == ((12, 5), (12, 3))
    assert z.norm(dim=1) == pytest.approx(torch.ones(12))


# ---- what goes wrong


@pytest.mark.parametrize("reached", [0, 2], ids=["before its first step", "after it"])
@pytest.mark.parametrize("reason", ["> 60 s", "out of memory"])
def test_a_peer_that_ends_the_process_costs_only_its_own_column(script, tiny, monkeypatch, reason, reached):
    def run(_, cell, how, forms):
        ended = "PML" in forms
        first = [{"who": who, "value": 1.0} for who in forms if who != "PML" or reached]
        return first + [{"who": who, "round": 0, "ms": 2.0} for who in forms[:reached]], reason if ended else ""

    monkeypatch.setattr(script, "run", run)
    results, failed = script.run_times(*tiny, ["floor", "tiled", "PML"])
    assert failed == {"PML": reason}
    assert {r["who"] for r in results if "value" in r} == {"floor", "tiled"}


def test_a_process_ends_at_its_limit(script, tiny):
    cell, how = tiny
    row = script.measure(cell, replace(how, limit=0.01), ["floor", "tiled"], {"PML": "not installed"})
    assert row["failed"] == {"PML": "not installed", "floor": "> 0.01 s", "tiled": "> 0.01 s"}
    assert script.report.entry({**row, "forms": ["PML"]}, "PML") == ("not installed", "not installed")
    assert script.report.plot([row], Path("not_written.md")) == []


def test_memory_beyond_the_cap_is_reported(script, tiny):
    large = script.Cell("supcon", 30_000, 4, 4, 0)
    results, ended = script.run(script.peak, large, replace(tiny[1], memory=3.0), ["floor"])
    assert (results, ended) == ([{"who": "floor", "failed": "out of memory"}], "")


def test_other_failures_are_told_in_short(script):
    assert script.failure(RuntimeError("CUDA out of memory")) == "out of memory"
    assert script.failure(MemoryError()) == "out of memory"
    assert script.failure(ValueError("a | b\nc")) == "ValueError: a / b c"


def test_what_failed_at_a_smaller_batch_is_not_tried_again(script, tiny):
    cell, how = tiny
    row = {**asdict(cell), "forms": ["floor", "PML"], "failed": {"PML": "> 60 s"}}
    skip = script.to_skip(replace(cell, n=32), how, [row])
    assert skip["PML"] == "> 60 s at B = 16"
    for other in (cell, replace(cell, n=32, dim=8), replace(cell, n=32, loss="triplet")):
        assert "PML" not in script.to_skip(other, how, [row])


def test_without_a_compiler_the_compiled_form_says_so(script, tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert script.to_skip(*tiny, [])["compiled"] == "no C++ compiler"


def test_a_slow_step_is_measured_once(script, tiny, monkeypatch):
    monkeypatch.setattr(script, "make_step", lambda who, cell, how: lambda: time.sleep(0.02) or 1.0)
    results = []
    script.times(tiny[0], replace(tiny[1], seconds=0.001), ["floor"], results.append)
    assert [r["round"] for r in results if "ms" in r] == [0]
    assert next(r["load"] for r in results if "load" in r) >= 0


@pytest.mark.slow
def test_a_clip_step_is_measured_beside_open_clips_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip_step = load("recipes/benchmarks/clip_step.py")
    monkeypatch.setattr(sys, "argv", ["clip_step", "--tiny", "--batch", "4", "--rounds", "2"])
    clip_step.main()
    found = json.loads(capsys.readouterr().out)
    assert min(found[f"{name}_images_per_s"] for name in ("bare", "ours")) > 0
    assert all(0 < found[f"{name}_loss_share"] < 1 for name in ("bare", "ours"))


def test_both_steps_of_the_clip_benchmark_train_both_towers() -> None:
    clip_step = load("recipes/benchmarks/clip_step.py")
    embedder = bb.create_embedder("open_clip/ViT-B-32", dim=None, head="none", text=True, trunk_options=clip_step.TINY)
    images, tokens = torch.randn(4, 3, 64, 64), torch.randint(1, 100, (4, 16))
    for step in (clip_step.Bare(embedder), clip_step.Ours(embedder, bb.create_objective("nt_xent"))):
        embedder.zero_grad()
        loss, alone = step(images, tokens)
        assert float(alone().detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        loss.backward()
        touched = {name.split(".")[1] for name, p in embedder.named_parameters() if p.grad is not None and p.grad.any()}
        assert {"visual", "transformer", "token_embedding"} <= touched
