"""Model cards: the README.md of a published embedder, from its config and the record of its run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from .metrics import COUNTS, MAIN
from .trunks import base_model

COLUMNS = {
    "after": "trained", "before": "untrained", "frozen": "frozen trunk", "random": "random", "oracle": "best possible",
}  # fmt: skip
"""Rows of metrics.json's table in the order and with the words of the card."""

SECTIONS = ("embedder", "objective", "sampler", "augment", "optimizer")


@dataclass(frozen=True)
class Record:
    """What a card tells of a run.

    Attributes:
        config: the resolved settings, sections as dicts.
        metrics: what metrics.json holds.
        curves: file name of the picture of the training curves, if there is one.
        gallery: file name of the picture of queries and their neighbours, if there is one.
        report: file name of the HTML report, if there is one.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    curves: str | None = None
    gallery: str | None = None
    report: str | None = None


def write_card(
    embedder: Mapping[str, Any], hub_id: str, run: Record | None = None, *, license: str | None = None
) -> str:
    """The README.md of an embedder with this config, with what is known of its run.

    Args:
        embedder: `Embedder.config`.
        hub_id: "user/name", for the snippets and the title.
        run: the run it comes from.
        license: identifier such as "mit" or "apache-2.0"; the card says so where there is none.

    Raises:
        KeyError, TypeError, ValueError: a record that lacks what every run has.
    """
    parts = [_metadata(embedder, hub_id, run, license), f"# {hub_id.split('/')[1]}", _summary(embedder, run)]
    parts += ["## Use", _snippets(embedder, hub_id)]
    if run is not None:
        parts += ["## Results", _results(embedder, run), "## Data", _data(run), "## Training", _training(run)]
    parts += ["## Intended use and limits", _limits(embedder, run)]
    if run is not None and run.metrics.get("versions"):
        told = ", ".join(f"{name} {version}" for name, version in run.metrics["versions"].items())
        parts += ["## Versions", told]
    parts += ["## Licence", _licence(embedder, license)]
    return "\n\n".join(parts) + "\n"


def _metadata(embedder: Mapping[str, Any], hub_id: str, run: Record | None, license: str | None) -> str:
    """The YAML block that the Hub reads, with the metrics as model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    library = embedder["trunk"].split("/")[0]
    searches_text = library == "open_clip" and embedder["head"] == "none"
    known: dict[str, Any] = {
        "library_name": "beyond_binary",
        "license": license,
        "tags": ["beyond_binary", "metric-learning", "image-retrieval", library],
        "pipeline_tag": "zero-shot-image-classification" if searches_text else "image-feature-extraction",
    }
    if base := base_model(embedder):
        known["base_model"] = base
    if run is not None:
        source, origin = run.config["data"]["source"], run.metrics.get("origin") or {}
        if uploaded := re.match(r"(?:\w+:)?hub:([^/]+(?:/[^/]+)?)", source):
            known["datasets"] = [uploaded[1]]
        known["tags"].append(f"loss:{run.config['objective']['loss']}")
        known["model_name"] = hub_id.split("/")[1]
        known["eval_results"] = [
            EvalResult(
                task_type="image-feature-extraction",
                task_name="Image retrieval",
                dataset_type=known.get("datasets", [source.replace(":", "-")])[0],
                dataset_name=_name(source),
                dataset_split="held-out queries",
                dataset_revision=origin.get("commit", run.config["data"].get("revision")),
                metric_type=name,
                metric_name=name,
                metric_value=round(value, 6),
            )
            for name, value in run.metrics["table"]["after"].items()
            if name not in COUNTS and math.isfinite(value)
        ]
        if not known["eval_results"]:
            del known["eval_results"], known["model_name"]
    return f"---\n{ModelCardData(**known).to_yaml().strip()}\n---"


def _name(source: str) -> str:
    """A data source without the folders of somebody's machine."""
    kind, _, rest = source.rpartition(":")
    return source if kind.endswith(("hub", "embedded")) else (f"{kind}:" if kind else "") + PurePath(rest).name


def _summary(embedder: Mapping[str, Any], run: Record | None) -> str:
    length = "of length 1" if embedder["normalize"] else "not normalised"
    told = f"Image embeddings of {embedder['dim']} dimensions, {length}, from the trunk `{embedder['trunk']}`."
    if run is not None:
        told += (
            f" Trained on `{_name(run.config['data']['source'])}` with the loss `{run.config['objective']['loss']}`, so "
            f"that images are near each other where their labels are; what that means, the target says: `{_target(run)}`."
        )
    return told + " Made with beyond_binary."


def _target(run: Record) -> str:
    return run.metrics.get("target") or run.config["objective"].get("target") or "the own one of the set"


def _snippets(embedder: Mapping[str, Any], hub_id: str) -> str:
    library = embedder["trunk"].split("/")[0]
    height, width = embedder["preprocess"]["size"]
    ours = f"""With the package `beyond_binary` installed:

```python
from PIL import Image
import beyond_binary as bb

model = bb.Embedder.from_pretrained("{hub_id}")
images = [Image.new("RGB", ({width}, {height}), colour) for colour in ("red", "green")]  # or paths of image files
z = model.encode(images)  # [2, {embedder["dim"]}]
print((z[0] - z[1]).norm())  # small for similar images
```"""
    theirs = {
        "timm": f"""The trunk alone, without head, in timm:

```python
import timm

trunk = timm.create_model("hf-hub:{hub_id}", pretrained=True)
```""",
        "open_clip": f"""The trunk alone, without head, in open_clip:

```python
import open_clip

trunk, preprocess = open_clip.create_model_from_pretrained("hf-hub:{hub_id}")
```""",
    }
    texts = f"""Images by text, for search and zero-shot classification:

```python
from PIL import Image
import beyond_binary as bb

model = bb.Embedder.from_pretrained("{hub_id}")
images = model.encode([Image.new("RGB", ({width}, {height}), colour) for colour in ("red", "green")])
texts = model.encode_text([f"a photo of something {{colour}}" for colour in ("red", "green", "blue")])
print(images @ texts.T)  # [2, 3]; the largest in a row is the text that fits the image best
```"""
    searches_text = library == "open_clip" and embedder["head"] == "none"
    return "\n\n".join([ours, *([texts] if searches_text else []), theirs[library]])


def _results(embedder: Mapping[str, Any], run: Record) -> str:
    """The metrics beside the untrained embedder and the random and the best possible ranking."""
    table = run.metrics["table"]
    shown = {row: word for row, word in COLUMNS.items() if row in table}
    if "before" in shown and run.config["embedder"]["head"] == "none":
        shown["before"] = "frozen trunk"
    names = [name for name in table["after"] if name not in COUNTS]
    lines = [f"| metric | {' | '.join(shown.values())} |", f"|---|{'---:|' * len(shown)}"]
    lines += [f"| {name} | {' | '.join(_number(table[row].get(name)) for row in shown)} |" for name in names]
    queries, gallery = run.metrics.get("query_items"), run.metrics.get("gallery_items")
    where = "searched among themselves" if gallery is None else f"searched in a gallery of {gallery}"
    told = f"Measured on {queries} held-out queries, {where}. Untrained is the same embedder before training, frozen trunk "
    told += f"are the features below its head ({embedder.get('weights') or 'random'} weights), by cosine."
    pictures = [f"![Training curves]({run.curves})"] if run.curves else []
    if run.gallery:
        told_below = "Queries from the best to the worst found, left, each with its nearest neighbours after training. "
        told_below += "Green frames: right, or near in label; red ones: wrong, or far."
        pictures += [f"![Queries and their nearest neighbours]({run.gallery})", told_below]
    link = [
        f"[{run.report}]({run.report}) has galleries of neighbours and more curves: download it and open it in a browser."
    ]
    return "\n\n".join([told, "\n".join(lines), *pictures, *(link if run.report else [])])


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _data(run: Record) -> str:
    data, found = run.config["data"], run.metrics.get("data") or {}
    facts = {"source": _name(data["source"])}
    facts |= {
        name: data[name]
        for name in ("config_name", "revision", "table", "label", "splitting", "rows", "limit", "seed")
        if data.get(name) is not None
    }
    origin = run.metrics.get("origin") or {}
    facts |= {name: origin[name] for name in ("config", "splits", "commit") if name in origin}
    told = "\n".join(f"- {name}: `{value}`" for name, value in facts.items())
    lines = ["| split | items | hash of ids, names and labels |", "|---|---:|---|"]
    lines += [f"| {split} | {fact['items']} | `{fact['hash']}` |" for split, fact in found.items()]
    return f"{told}\n\n" + ("\n".join(lines) if found else "The run kept no hashes of its splits.")


def _training(run: Record) -> str:
    from .losses import LOSSES
    from .tracking import flat

    metrics, loss = run.metrics, run.config["objective"]["loss"]
    paper = LOSSES[loss].info["facts"].paper if loss in LOSSES else None
    told = [f"- loss: `{loss}`" + (f" ({paper})" if paper else "")]
    told += [f"- target: `{_target(run)}`"]
    told += [f"- {key}: {metrics[key]}" for key in ("epochs", "steps", "train_seconds", "processes") if key in metrics]
    told += [f"- {key}: {run.config[key]}" for key in ("seed", "precision") if key in run.config]
    settings = flat({name: run.config[name] for name in SECTIONS if name in run.config})
    shown = "\n".join(f"{name}: {value}" for name, value in settings.items() if value is not None)
    entries = "" if paper is None else f"\n\n```bibtex\n{bibtex(paper)}\n```"
    return (
        "\n".join(told)
        + f"{entries}\n\n<details><summary>All settings</summary>\n\n```yaml\n{shown}\n```\n\n</details>"
    )


def bibtex(papers: str) -> str:
    """BibTeX of "AUTHORS: TITLE, VENUE YEAR; ...", with the surnames that are there and without a venue as @misc."""
    entries = []
    for paper in re.sub(r" \([^)]*\)$", "", papers).split("; "):
        found = re.fullmatch(r"(.+?): (.+), (?:([^,]+) )?(\d{4})", paper)
        if found is None:
            raise ValueError(f"expected 'AUTHORS: TITLE, VENUE YEAR', got {paper!r}")
        names, title, venue, year = found.groups()
        authors = " and ".join(names.replace(" et al.", ", others").split(", "))
        kind, place = ("misc", "howpublished") if venue is None or "." in venue else ("inproceedings", "booktitle")
        fields = {"author": authors, "title": f"{{{title}}}", place: venue, "year": year}
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
        key = re.sub(r"\W", "", authors.split(" and ")[0].lower()) + year
        entries.append("\n".join([f"@{kind}{{{key},", *lines, "}"]))
    return "\n".join(entries)


def _limits(embedder: Mapping[str, Any], run: Record | None) -> str:
    told = (
        "For finding and grouping similar images by the distance of their embeddings, and as a start for fine-tuning."
    )
    if run is None:
        return f"{told} Nothing is recorded about its training or its quality: measure it on your own data before use."
    return (
        f"{told} It was measured on held-out items of `{_name(run.config['data']['source'])}` alone; on other images, "
        "other cameras or other meanings of similar it may be much worse, so measure it on your own data first. It "
        "carries the biases of its training images. It was not examined for decisions about people."
    )


def _licence(embedder: Mapping[str, Any], license: str | None) -> str:
    told = f"`{license}`." if license else "The author has not chosen a licence."
    if embedder.get("weights"):
        told += (
            f" Training started from the pretrained weights `{embedder['weights']}`, which have a licence of their own."
        )
    return told


def training_curves(history: Sequence[Mapping[str, Any]], table: Mapping[str, Mapping[str, float]]) -> bytes | None:
    """A PNG of loss per step and of the main metric per epoch; None without a history.

    Raises:
        ImportError: Matplotlib is missing.
    """
    steps = [line for line in history if "loss" in line]
    if not steps:
        return None
    from .report.charts import training_picture

    name = next((n for n in MAIN if n in table["after"]), next(iter(table["after"]), ""))
    judged = [line for line in history if line.get("event") == "evaluation" and name in line]
    return training_picture(
        [line["step"] for line in steps],
        [line["loss"] for line in steps],
        name,
        [line["epoch"] for line in judged],
        [line[name] for line in judged],
        {row: table[row][name] for row in ("random", "oracle") if name in table.get(row, {})},
    )
