"""The pages of the losses: up to date, complete, and true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Literal

import pytest

import beyond_binary as bb
from beyond_binary.losses import LOSSES, check_fit
from beyond_binary.targets import TARGETS
from recipes import ROOT, load

generate = load("docs/generate.py")
every_loss = pytest.mark.parametrize("name", LOSSES.names())


def test_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_a_page_that_changed_is_missing_or_is_left_over_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"README.md": generate.MARK, "a.md": f"{generate.MARK}\n\na", "b.md": f"{generate.MARK}\n\nb"}
    monkeypatch.setattr(generate, "pages", lambda: wanted)
    folder = ["--folder", str(tmp_path / "losses")]
    assert generate.main(["--check", *folder]) == 1
    assert generate.main(folder) == 0
    assert generate.main(["--check", *folder]) == 0
    by_hand, old, changed = (tmp_path / "losses" / f"{name}.md" for name in ("notes", "old", "a"))
    by_hand.write_text("written by a person")
    old.write_text(generate.MARK)
    changed.write_text("something else")
    capsys.readouterr()
    assert generate.main(["--check", *folder]) == 1
    assert "not up to date: a.md, old.md;" in capsys.readouterr().out
    assert generate.main(folder) == 0
    assert generate.main(["--check", *folder]) == 0
    assert by_hand.exists()
    assert not old.exists()


@every_loss
def test_docstring_says_what_options_mean_what_the_paper_set_and_what_it_costs(name: str) -> None:
    loss = generate.describe(name)
    assert loss.summary
    assert loss.returns
    assert [o.name for o in loss.options if not o.meaning] == []
    assert sorted(loss.labelled) == ["Cost", "Paper settings"]
    assert "O(" in loss.labelled["Cost"]
    written = generate.arguments(generate.sections(LOSSES[name].build.__doc__ or "")["Args"])
    known = {o.name for o in loss.options} | set(inspect.signature(LOSSES[name].build).parameters)
    assert set(written) <= known, "Args of options that do not exist"


@every_loss
def test_page_has_every_option_of_the_loss(name: str) -> None:
    text = (ROOT / "docs" / "losses" / f"{name}.md").read_text()
    shown = set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE))
    functions = (LOSSES[name].build, *LOSSES[name].parts)
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
    assert shown == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"num_classes"}


def test_targets_of_a_loss_are_those_that_give_what_it_reads() -> None:
    specs = generate.target_specs()
    assert sorted(specs) == TARGETS.names()
    for name in LOSSES.names():
        facts = LOSSES[name].info["facts"]
        readable = generate.fits(name)
        for target, spec in specs.items():
            try:
                check_fit(name, facts.reads, spec, TARGETS[target].build.gives)
                gives_it = target == "classes" or not facts.needs_classes
            except ValueError:
                gives_it = False
            assert (target in readable) is gives_it, (name, target)


def test_every_target_but_the_wrappers_says_which_labels_it_takes() -> None:
    for target in TARGETS.names():
        assert generate.labels_of(target) or target in ("nearest", "scaled", "within")


def test_readme_names_every_loss_and_is_linked() -> None:
    text = (ROOT / "docs" / "losses" / "README.md").read_text()
    for name in bb.list_losses():
        assert f"\n- [`{name}`]({name}.md): " in text
    assert "(docs/losses/README.md)" in (ROOT / "README.md").read_text()
    assert "(losses/README.md)" in (ROOT / "docs" / "concepts.md").read_text()


def test_docstrings_come_apart() -> None:
    text = "First line.\n\n    Some text\n    of two lines. Cost: not here.\n    Paper settings: a 1,\n    b 2.\n    Cost: O(n).\n"
    args = "\n    Args:\n        a: one\n            and more; see b: two.\n        b: none.\n\n    Returns:\n        a: b.\n"
    parts = generate.sections(text + args)
    assert parts["Returns"] == "a: b."
    assert generate.arguments(parts["Args"]) == {"a": "one and more; see b: two.", "b": "none."}
    rest, labelled = generate.take_labelled(parts[""])
    assert rest == "First line.\n\nSome text\nof two lines. Cost: not here."
    assert labelled == {"Paper settings": "a 1, b 2.", "Cost": "O(n)."}


def test_text_for_markdown() -> None:
    assert generate.cell("a*b < |c| and `d*e < |f|`") == "a\\*b &lt; \\|c\\| and `d*e < \\|f\\|`"
    assert generate.prose("* one\n* two\n\n    x * y < z\n") == "* one\n* two\n\n    x * y < z\n"
    assert generate.type_text(float) == "float"
    assert generate.type_text(int | None) == "int or None"
    assert generate.type_text(Literal["a", "b"]) == '"a" or "b"'
    assert generate.value_text("a") == '`"a"`'
    assert generate.value_text(inspect.Parameter.empty) == "required"


def test_examples_are_repeatable_and_leave_nothing_behind() -> None:
    code = generate.example("proxy_anchor", generate.fits("proxy_anchor"))
    assert "num_classes=4, dim=8" in code
    assert generate.run(code) == generate.run(code)
    assert float(generate.run(code)) > 0
