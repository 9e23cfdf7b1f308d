"""Write the pages of `docs/losses/` and `docs/targets.md` from what losses and targets say about themselves.

One page per registered loss (its facts, its docstring, an example that was run), a README that leads from labels to
losses, and one page of all targets. `python docs/generate.py` writes them, `python docs/generate.py --check` exits with 1 if they would change.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from beyond_binary import create_objective
from beyond_binary.losses import LOSSES, LossFacts
from beyond_binary.targets import TARGETS
from beyond_binary.targets.captions import Captions
from beyond_binary.targets.tables import PairScores, Precomputed
from beyond_binary.targets.words import WordVectors

FOLDER = ROOT / "docs"
MARK = "<!-- Written by docs/generate.py. Do not edit: change the docstring or the registration and run it again. -->"
LABELS = ("Paper settings", "Cost")
CLASSES, DIM, ITEMS = 4, 8, 32
WRAPPED = {"radius": 0.3, "k": 5, "factor": 2.0}
SPECS = {
    "captions": "captions('vectors.npz')",
    "sum": "sum(('circular', \"scaled('classes', factor=90.0)\"))",
    "precomputed": "precomputed('distances.npy')",
    "pair_scores": "pair_scores('scores.csv')",
}
TABLES = {
    "captions": Captions(WordVectors(torch.zeros(1, 1), {"word": 0})),
    "precomputed": Precomputed([[0.0]]),
    "pair_scores": PairScores([[0, 1, 1.0]]),
}
FIELDS = {
    "form": "form of the function",
    "in_place": "has an in-place form",
    "per_row": "reads of each row its",
    "penalty": "has a regulariser",
    "scale_free": "unchanged when all embeddings are scaled",
    "any_proxies": "takes proxies with labels of any kind (`proxy_codes=`)",
    "proxy_init": "proxies start as",
    "proxy_rate": "learning rate of what it learns, times the network's",
    "label_sets": "takes sets of labels, too",
    "weighted_by": "reads the value of label distances, too, with",
}
READS = {
    "same": "whether two labels are the same or different",
    "order": "the order of label distances",
    "magnitude": "the value of label distances",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a loss, as its signature and docstring have it."""

    name: str
    hint: Any
    default: Any
    meaning: str


@dataclasses.dataclass(frozen=True)
class Loss:
    """What can be said about a registered loss without running it."""

    name: str
    facts: LossFacts
    summary: str
    text: str
    labelled: Mapping[str, str]
    options: Sequence[Option]
    returns: str
    module: str
    function: str


def sections(doc: str) -> dict[str, str]:
    """A docstring by its headings (`Args`, `Returns`, ...); what comes before the first is under the empty string."""
    parts = re.split(r"^([A-Z][a-z]+):\n", inspect.cleandoc(doc), flags=re.MULTILINE)
    return {
        "": parts[0].strip(),
        **{k: inspect.cleandoc("\n" + v) for k, v in zip(parts[1::2], parts[2::2], strict=True)},
    }


def arguments(section: str) -> dict[str, str]:
    """Name to meaning, from an `Args:` section."""
    found = re.findall(r"^(\w+):(.*(?:\n[ ]+.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def take_labelled(text: str) -> tuple[str, dict[str, str]]:
    """The text without its lines `Paper settings: ...` and `Cost: ...` (up to the next one or a blank line), and those."""
    pattern = rf"^({'|'.join(LABELS)}):[ ]*(.*(?:\n(?!{'|'.join(f'{x}:' for x in LABELS)}).+)*)\n?"
    found = {label: " ".join(rest.split()) for label, rest in re.findall(pattern, text, flags=re.MULTILINE)}
    return re.sub(pattern, "", text, flags=re.MULTILINE).strip(), found


def evaluated(function: Callable[..., Any], hint: Any) -> Any:
    """An annotation that may be a string, in the module of its function (whose other annotations may not resolve)."""
    return eval(hint, vars(sys.modules[function.__module__])) if isinstance(hint, str) else hint


def options_of(*functions: Callable[..., Any]) -> list[Option]:
    """Keyword-only parameters of functions, each once, with the meaning from the first docstring that has one."""
    meanings = [arguments(sections(f.__doc__ or "").get("Args", "")) for f in functions]
    parameters = {
        p.name: p.replace(annotation=evaluated(f, p.annotation))
        for f in reversed(functions)
        for p in inspect.signature(f).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "num_classes"
    }
    order = {p: None for f in functions for p in inspect.signature(f).parameters if p in parameters}
    return [
        Option(n, parameters[n].annotation, parameters[n].default, next((m[n] for m in meanings if n in m), ""))
        for n in order
    ]


def describe(name: str) -> Loss:
    """Read a registered loss."""
    build, facts = LOSSES[name].build, LOSSES[name].info["facts"]
    parts = sections(build.__doc__ or "")
    summary, _, text = parts[""].partition("\n\n")
    text, labelled = take_labelled(text)
    return Loss(
        name, facts, " ".join(summary.split()), text, labelled,
        options_of(build, *LOSSES[name].parts),
        parts.get("Returns", ""), build.__module__, build.__qualname__,
    )  # fmt: skip


def target_specs() -> dict[str, str]:
    """A spec of each registered target; one that wraps another is put around `euclidean`."""
    specs = dict(SPECS)
    for name in sorted(set(TARGETS.names()) - set(SPECS)):
        required = [p.name for p in inspect.signature(TARGETS[name].build).parameters.values() if p.default is p.empty]
        values = ["'euclidean'" if p == "target" else f"{p}={WRAPPED.get(p, 1)}" for p in required]
        specs[name] = f"{name}({', '.join(values)})" if values else name
    return dict(sorted(specs.items()))


def arguments_for(name: str, target: Any) -> dict[str, Any] | None:
    """What `create_objective` needs for a loss to read a target; None if it refuses."""
    base = {} if target == "classes" else {"target": target}
    for more in ({}, {"num_classes": CLASSES, "dim": DIM}):
        with contextlib.suppress(ValueError):
            create_objective(name, **base, **more)
            return {**base, **more}
    return None


def fits(name: str) -> dict[str, dict[str, Any]]:
    """Target name to the arguments with which `create_objective` takes it, for all targets that the loss can read."""
    found = {target: arguments_for(name, TABLES.get(target, spec)) for target, spec in target_specs().items()}
    return {target: given for target, given in found.items() if given is not None}


def example(name: str, readable: Mapping[str, dict[str, Any]]) -> str:
    """Code that computes the loss on random embeddings with labels that fit."""
    target = next(t for t in ("classes", "euclidean", *readable) if t in readable)
    labels = {"classes": f"torch.randint({CLASSES}, ({ITEMS},))  # one class per item"}
    starts = LOSSES[name].info["facts"].proxy_init == "class_mean"
    given = "".join(f", {k}={v!r}".replace("'", '"') for k, v in readable[target].items())
    return "\n".join([
        "import torch",
        "import beyond_binary as bb",
        "",
        "torch.manual_seed(0)",
        f"embeddings = torch.randn({ITEMS}, {DIM}, requires_grad=True)  # from any model",
        f"labels = {labels.get(target, f'torch.rand({ITEMS}, 2)  # a vector per item')}",
        f'objective = bb.create_objective("{name}"{given})',
        *(["objective.start_at_means(embeddings, labels)  # of the whole training set, before the first step"] if starts else []),
        "loss = objective(embeddings, labels)",
        "loss.backward()",
        'print(f"{loss.item():.3g}")',
    ])  # fmt: skip


def run(code: str) -> str:
    """What a piece of code prints, in single precision; the random state is left as it was."""
    printed, kind = io.StringIO(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
            exec(compile(code, "example", "exec"), {"__name__": "example"})
    finally:
        torch.set_default_dtype(kind)
    return printed.getvalue().strip()


def prose(text: str) -> str:
    """Docstring text as Markdown: stars and angle brackets outside of code stay what they are."""
    blocks = re.split(r"(^(?:[ ]{4,}.*\n?)+|`[^`]*`)", text, flags=re.MULTILINE)
    outside = (re.sub(r"(?<!\n)\*(?! )|(?<=\S)\*", r"\\*", part).replace("<", "&lt;") for part in blocks[::2])
    return "".join(part for pair in zip(outside, [*blocks[1::2], ""], strict=True) for part in pair)


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return prose(text).replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def type_text(hint: Any) -> str:
    """An annotation in words: `float`, `"all" or "semi_hard"`, `int or None`, `sequence of int`."""
    if hint is type(None):
        return "None"
    if get_origin(hint) is Literal:
        return " or ".join(f'"{v}"' if isinstance(v, str) else repr(v) for v in get_args(hint))
    if get_origin(hint) is None:
        return getattr(hint, "__name__", str(hint))
    if get_origin(hint) is Sequence:
        return f"sequence of {type_text(get_args(hint)[0])}"
    return " or ".join(map(type_text, get_args(hint)))


def value_text(value: Any) -> str:
    """A default as it would be written."""
    if value is inspect.Parameter.empty:
        return "required"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value!r}`"


def compared(facts: LossFacts) -> str:
    """What the rows and the columns of the block are."""
    side = {"item": "items of the batch", "proxy": "proxies, one per class"}
    rows, keys = side.get(facts.rows, facts.rows), side.get(facts.keys, facts.keys)
    return f"rows: {rows}; keys: {keys}"


def facts_table(loss: Loss, readable: Mapping[str, dict[str, Any]]) -> str:
    """The facts of a loss as rows of a table; those this script knows nothing about are shown as they are."""
    facts, specs = loss.facts, target_specs()
    options = ", ".join(f"`{k}=`" for k in next(iter(readable.values())) if k != "target")
    rows = [
        ("paper", cell(facts.paper)),
        ("reads", READS.get(facts.reads, facts.reads)),
        ("targets", ", ".join(f"`{specs[t]}`" for t in readable)),
        ("geometry", f"`{facts.geometry}` (any geometry that gives a {facts.x})"),
        ("compares", compared(facts)),
        ("needs", options or "nothing but embeddings and labels"),
        *((label.lower(), cell(text)) for label, text in loss.labelled.items()),
    ]
    known = {"paper", "reads", "x", "geometry", "rows", "keys", "between", "classes_only"}
    for field in dataclasses.fields(facts):
        value = getattr(facts, field.name)
        if field.name not in known and value not in (None, field.default):
            plain = not isinstance(value, bool) and not callable(value)
            shown = f"`{value}`" if plain else "yes" if value else "no"
            rows.append((FIELDS.get(field.name, field.name.replace("_", " ")), shown))
    return table(("", ""), rows)


def page(loss: Loss) -> str:
    """The page of a loss."""
    readable = fits(loss.name)
    code = example(loss.name, readable)
    path = Path(*loss.module.split(".")).with_suffix(".py")
    parts = [MARK, f"# {loss.name}", prose(loss.summary), facts_table(loss, readable)]
    parts += ["## What it computes", *([prose(loss.text)] if loss.text else [])]
    if loss.returns:
        parts.append(f"The function `{loss.function}` returns: {prose(loss.returns)}")
    if loss.options:
        rows = [(f"`{o.name}`", cell(type_text(o.hint)), value_text(o.default), cell(o.meaning)) for o in loss.options]
        parts += ["## Options", table(("option", "type", "default", "meaning"), rows)]
    parts += [
        "## Example",
        f"```python\n{code}\n```",
        f"It prints\n\n```text\n{run(code)}\n```",
        f"Source: `{loss.function}` in [{path}](../../{path}). [All losses](README.md)",
    ]
    return "\n\n".join(parts) + "\n"


def link(name: str) -> str:
    """A link to a loss's page."""
    return f"[`{name}`]({name}.md)"


def labels_of(target: str) -> str:
    """The kind of labels that a target says it takes."""
    found = re.search(
        r"Labels: (.*?)(?:;\s|(?<![ .])\.\s|\.$|$)", " ".join((TARGETS[target].build.__doc__ or "").split())
    )
    return found[1] if found else ""


def first_sentence(target: str) -> str:
    """What a target says first of itself."""
    return " ".join(inspect.cleandoc(TARGETS[target].build.__doc__ or "").partition("\n\n")[0].split())


def readme(losses: Sequence[Loss]) -> str:
    """The page that leads from labels to losses."""
    with_proxies = {loss.name for loss in losses if loss.facts.needs_proxies}
    specs = target_specs()
    readers: dict[tuple[str, ...], list[str]] = {}
    for target in specs:
        readers.setdefault(tuple(loss.name for loss in losses if target in fits(loss.name)), []).append(target)
    kinds = [(f"`{specs[t]}`", TARGETS[t].build.gives, cell(labels_of(t) or first_sentence(t))) for t in specs]
    groups = [
        (", ".join(f"`{t}`" for t in targets), ", ".join(link(n) for n in names if n not in with_proxies),
         ", ".join(link(n) for n in names if n in with_proxies) or "none")
        for names, targets in readers.items()
    ]  # fmt: skip
    facts = [
        (link(x.name), x.facts.reads, x.facts.x, compared(x.facts),
         "`num_classes`, `dim`" if x.name in with_proxies else "", cell(x.labelled.get("Cost", "")))
        for x in losses
    ]  # fmt: skip
    return "\n\n".join([
        MARK,
        "# Which loss for which label",
        "A loss reads one of three things of the labels: whether two are the same, the order of their distances, or "
        "the value of the distances. A target says which of them it gives. `create_objective` refuses the rest, and "
        "the tables here hold what it accepts.",
        table(("target", "gives", "your labels"), kinds),
        "`within` and `nearest` make same and different out of any target's distances, so that continuous labels also "
        "reach the losses that read same or different.",
        table(("targets", "losses", "losses with proxies"), groups),
        "Losses with proxies learn one embedding per class. They need integer classes from 0 on, their number "
        "(`num_classes=`) and the width of the embeddings (`dim=`), and their proxies go to the optimizer.",
        "## What they need and what they cost",
        table(("loss", "reads", "x", "compares", "needs", "cost"), facts),
        "n items, c classes, d dimensions, k keys of a row. All losses with rows are walked in tiles, so that no "
        "matrix of all pairs is kept unless a cost says so.",
        "## Pages",
        "\n".join(f"- {link(x.name)}: {prose(x.summary)}" for x in losses),
    ]) + "\n"  # fmt: skip


def targets_page() -> str:
    """The page of all targets."""
    parts = []
    for name in TARGETS.names():
        build = TARGETS[name].build
        doc = sections(build.__doc__ or "")
        meanings = arguments(doc.get("Args", ""))
        parts += [f"## {name}", f"Gives: {build.gives}. " + prose(doc[""])]
        if rows := [
            (
                f"`{p.name}`",
                cell(type_text(evaluated(build, p.annotation))),
                value_text(p.default),
                cell(meanings[p.name]),
            )
            for p in inspect.signature(build).parameters.values()
            if p.name in meanings
        ]:
            parts.append(table(("option", "type", "default", "meaning"), rows))
    return "\n\n".join([
        MARK,
        "# Targets",
        "A target says what similar means: it encodes the label of each item and gives the label distance of each pair. "
        "Losses, miners, samplers, metrics and pictures take any of them; [which loss fits which](losses/README.md).",
        *parts,
    ]) + "\n"  # fmt: skip


def pages() -> dict[str, str]:
    """Path below `docs/` to contents, for everything that is written here."""
    losses = [describe(name) for name in LOSSES.names()]
    files = {"losses/README.md": readme(losses), **{f"losses/{x.name}.md": page(x) for x in losses}}
    return {"targets.md": targets_page(), **files}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page would change")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pages are")
    given = parser.parse_args(argv)
    wanted = pages()
    there = {path.relative_to(given.folder).as_posix(): path.read_text() for path in given.folder.rglob("*.md")}
    old = [name for name, text in there.items() if name not in wanted and text.startswith(MARK)]
    stale = sorted([name for name, text in wanted.items() if there.get(name) != text] + old)
    if given.check:
        if stale:
            print(f"not up to date: {', '.join(stale)}; run python docs/generate.py")
        return bool(stale)
    (given.folder / "losses").mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in wanted:
            (given.folder / name).write_text(wanted[name])
        else:
            (given.folder / name).unlink()
    print(f"{len(wanted)} pages, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
