"""The report of a run: one HTML file with numbers, neighbours and curves, without scripts or links."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from ..data import Items, Splits
from ..metrics import COUNTS, MAIN, higher_is_better
from ..targets import Target
from .charts import (
    density_chart,
    loss_chart,
    map_chart,
    metric_chart,
    neighbour_chart,
    pair_chart,
    rank_chart,
    rate_chart,
)
from .labels import Paint, flattened, label_colours, painter
from .pairs import Pair, Sample, sample_pairs, separation, spread
from .style import CSS

RANKINGS = ("before", "after", "random", "oracle")
SHOWN = 8


@dataclass(frozen=True)
class View:
    """What every card of the gallery shares.

    Attributes:
        splits: where queries and neighbours are from.
        classes: whether neighbours are right or wrong, and not near or far.
        levels: mean label distances of the oracle and of the random ranking.
        paint: draws a label on its picture, or None.
    """

    splits: Splits
    classes: bool
    levels: Sequence[float]
    paint: Paint | None


def write_report(
    path: Path,
    *,
    title: str,
    config: dict[str, Any],
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
    splits: Splits,
    target: Target,
    geometry: str,
    before: Pair,
    after: Pair,
) -> None:
    """Write the report of a run as one self-contained HTML file.

    Args:
        path: the file; overwritten.
        title: heading, as plain text.
        config: the resolved configuration, sections as dicts.
        metrics: what metrics.json holds: "table" with the rows before, after, random and oracle, and facts
            of the run.
        history: lines of log.jsonl.
        splits: the data; queries and gallery are shown.
        target: what similar means in the evaluation.
        geometry: how embeddings are compared, such as "euclidean".
        before: embeddings of queries [q d] and gallery [k d] before training; gallery None: the queries were
            searched among themselves.
        after: the same after training.

    Raises:
        ImportError: Matplotlib is missing.
    """
    sample = sample_pairs(splits, target, geometry, before, after)
    classes = target.gives == "same"
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(config, metrics, splits)}</header>",
        _results(metrics),
        _gallery(sample, splits, classes, painter(target, splits.query)),
        _curves(history, metrics),
        _pairs(sample, geometry, classes),
        _map(splits, target, before, after),
        _settings(config, metrics),
    ]
    page = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>",
        *body,
        "</main></body></html>\n",
    ]
    path.write_text("\n".join(page), encoding="utf-8")


def number(value: float | None, digits: int = 4) -> str:
    """A value in few characters; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.{digits}g}"


def way(table: Mapping[str, Mapping[str, float]], ranking: str, name: str) -> float:
    """How far a row of the table is on the way from random (0) to oracle (1); NaN where those agree."""
    low, high = table["random"].get(name, math.nan), table["oracle"].get(name, math.nan)
    return (table[ranking].get(name, math.nan) - low) / (high - low) if high != low else math.nan


def duration(seconds: float) -> str:
    """A time in words: 42 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _facts(config: Mapping[str, Any], metrics: Mapping[str, Any], splits: Splits) -> str:
    """The summary line under the title."""
    objective, embedder = config.get("objective", {}), config.get("embedder", {})
    items = [f"{len(splits.train):,} train", f"{len(splits.query):,} query"]
    items += [] if splits.gallery is None else [f"{len(splits.gallery):,} gallery"]
    facts = {
        "loss": objective.get("loss"),
        "target": objective.get("target") or splits.target,
        "trunk": embedder.get("trunk"),
        "dimensions": embedder.get("dim"),
        "items": " · ".join(items),
        "epochs": metrics.get("epochs"),
        "steps": f"{metrics['steps']:,}" if "steps" in metrics else None,
        "training time": duration(metrics["train_seconds"]) if "train_seconds" in metrics else None,
    }
    shown = (f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v is not None)
    return f'<dl class="facts">{"".join(shown)}</dl>'


def _results(metrics: Mapping[str, Any]) -> str:
    """Headline tiles and the table of all metrics."""
    table = metrics["table"]
    names = [name for name in table["after"] if name not in COUNTS]
    main = [name for name in MAIN if name in names][:3] or names[:3]
    tiles = "".join(_tile(table, name) for name in main)
    head = "".join(f'<th scope="col"><i class="dot" style="--c:var(--{r})"></i>{r}</th>' for r in RANKINGS)
    rows = "".join(_row(table, name) for name in names)
    found, lost = (table["after"].get(name, 0.0) for name in COUNTS)
    counts = f"Means over {found:,.0f} queries" + (f"; {lost:,.0f} without a match left out" if lost else "")
    return _section(
        "Results",
        f'<div class="tiles">{tiles}</div>'
        f'<div class="scroll"><table><thead><tr><th scope="col">metric</th>{head}'
        f'<th scope="col" class="share">random → oracle</th></tr></thead><tbody>{rows}</tbody></table></div>',
        f"{counts}. The bars show where the embedding stands between a random ranking and the best possible "
        "one, before (thin mark) and after training (bar). ↑ higher is better, ↓ lower is better.",
    )


def _bar(table: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Place of before and after between random and oracle, as a bar."""
    start, stop = (way(table, ranking, name) for ranking in ("before", "after"))
    if not math.isfinite(stop):
        return '<span class="way none"></span>'
    mark = f'<b style="left:{min(max(start, 0), 1):.1%}"></b>' if math.isfinite(start) else ""
    words = f"before {start:.0%}, after {stop:.0%} of the way" if mark else f"after {stop:.0%} of the way"
    bar = f'<i style="width:{min(max(stop, 0), 1):.1%}"></i>'
    return f'<span class="way" role="img" aria-label="{words}">{bar}{mark}</span>'


def _percent(value: float) -> str:
    return f"{value:.0%}".replace("-0%", "0%") if math.isfinite(value) else "-"


def _tile(table: Mapping[str, Mapping[str, float]], name: str) -> str:
    values = [number(table[ranking].get(name), 3) for ranking in RANKINGS]
    shares = [_percent(way(table, ranking, name)) for ranking in ("before", "after")]
    return (
        f'<div class="tile"><h3>{escape(name)}</h3><p class="big"><span>{values[0]} →</span> {values[1]}</p>'
        f'{_bar(table, name)}<p class="ends"><span>random {values[2]}</span><span>oracle {values[3]}</span></p>'
        f"<p>{' → '.join(shares)} of the gap from random to oracle</p></div>"
    )


def _row(table: Mapping[str, Mapping[str, float]], name: str) -> str:
    arrow = "↑" if higher_is_better(name) else "↓"
    cells = "".join(f'<td class="{r}">{number(table[r].get(name))}</td>' for r in RANKINGS)
    share = _percent(way(table, "after", name))
    return (
        f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}&nbsp;<small>{arrow}</small></th>{cells}'
        f'<td class="share"><div>{_bar(table, name)}<span>{share}</span></div></td></tr>'
    )


def _gallery(sample: Sample, splits: Splits, classes: bool, paint: Paint | None) -> str:
    """Queries between best and worst, each with its nearest neighbours after and before training."""
    levels = [_mean(sample.distances[name][:, :SHOWN]) for name in ("oracle", "random")]
    chosen, view = spread(sample, SHOWN), View(splits, classes, levels, paint)
    cards = "".join(_card(sample, row, word, view) for row, word in chosen.items())
    order = "the share of wrong ones" if classes else "the mean label distance"
    if classes:
        dots = (("same", "✓ same"), ("different", "✗ different"))
        key = " ".join(f'<i class="dot" style="--c:var(--{colour})"></i>{word}' for colour, word in dots)
        note = "."
    else:
        key = f'oracle {number(levels[0], 3)} <i class="scale"></i> random {number(levels[1], 3)}'
        note = "; numbers are label distances, coloured from the oracle's mean to the random one's."
    return _section(
        "Nearest neighbours",
        f'<p class="key">{key}</p>{cards or "<p>No query has anything to find.</p>"}',
        f"{len(chosen)} of {len(sample.rows):,} queries from best to worst by {order} among the first "
        f"{SHOWN} neighbours after training, nearest first. The smaller row shows what was found before{note}",
    )


def _card(sample: Sample, row: int, word: str, view: View) -> str:
    splits, classes = view.splits, view.classes
    query, gallery = splits.query, splits.query if splits.gallery is None else splits.gallery
    place = int(sample.rows[row])
    rows = []
    for ranking in ("after", "before"):
        y = sample.distances[ranking][row, :SHOWN]
        known = [i for i, value in enumerate(y.tolist()) if not math.isnan(value)]
        found = ((int(sample.neighbours[ranking][row, i]), float(y[i])) for i in known)
        hits = "".join(_hit(gallery, neighbour, value, view) for neighbour, value in found)
        right = sum(float(y[i]) == 0 for i in known)
        score = f"{right} of {len(known)} right" if classes else f"mean {number(_mean(y), 3)}"
        rows.append(f'<div class="row {ranking}"><p>{ranking}: {score}</p><div class="hits">{hits}</div></div>')
    caption = _caption(query, place, splits)
    return (
        f'<article class="query"><figure class="ask"><p>{word}</p>{_img(query, place, 160, view.paint)}'
        f'<figcaption title="{escape(str(query.names[place]))}">{caption}</figcaption></figure>'
        f'<div class="answers">{"".join(rows)}</div></article>'
    )


def _hit(items: Items, place: int, y: float, view: View) -> str:
    """One neighbour, framed in the colour of how right it is."""
    if view.classes:
        colour, mark = ("var(--same)", "✓") if y == 0 else ("var(--different)", "✗")
    else:
        oracle, random = view.levels
        share = min(max((y - oracle) / (random - oracle), 0), 1) if random > oracle else 0.5
        colour, mark = f"hsl({160 - 155 * share:.0f} 62% 45%)", number(y, 3)
    return (
        f'<figure style="--c:{colour}" title="{escape(_title(items, place))}">{_img(items, place, 112, view.paint)}'
        f"<figcaption><b>{mark}</b>{_caption(items, place, view.splits)}</figcaption></figure>"
    )


def _title(items: Items, place: int) -> str:
    """The item's name, and all its captions."""
    texts = np.ravel(items.labels[place]) if items.labels.dtype.kind == "U" else ()
    return "\n".join([str(items.names[place]), *(str(text) for text in texts if text)])


def _caption(items: Items, place: int, splits: Splits) -> str:
    """The label, if it has few words, and the end of the item's name."""
    label, name = items.labels[place], str(items.names[place])
    words = [name if len(name) <= 20 else "…" + name[-19:]]
    if items.labels.dtype.kind == "U":
        words = [str(text) for text in np.ravel(label)[:1]]
    elif items.labels.ndim == 1 and items.labels.dtype.kind == "f":
        words.insert(0, f"{float(label):g}")
    elif items.labels.ndim == 1:
        known = splits.class_names is not None and 0 <= label < len(splits.class_names)
        words.insert(0, str(splits.class_names[label]) if known and splits.class_names else f"class {label}")
    return "".join(f"<span>{escape(word)}</span>" for word in words)


def _img(items: Items, place: int, side: int, paint: Paint | None) -> str:
    """A picture with its label as small as it is shown, inline: PNG, or JPEG where that is smaller."""
    image: Image.Image = items.images[place].convert("RGB")
    if paint is not None:
        scale = side / max(image.size)
        image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
        image = paint(image, items.labels[place], scale)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[kind] = buffer.getvalue()
    kind = min(files, key=lambda k: len(files[k]))
    data = base64.b64encode(files[kind]).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/{kind};base64,{data}" alt="{escape(str(items.names[place]))}" {size}>'


def _curves(history: Iterable[Mapping[str, Any]], metrics: Mapping[str, Any]) -> str:
    """Loss and learning rate per step, and each metric over epochs."""
    lines = list(history)
    steps = [line for line in lines if "loss" in line]
    table, evaluations = metrics["table"], [line for line in lines if line.get("event") == "evaluation"]
    if not steps and not evaluations:
        return ""
    if evaluations and evaluations[-1]["epoch"] < metrics.get("epochs", 0):
        evaluations.append({"epoch": metrics["epochs"], **table["after"]})
    parts = []
    if steps:
        step, loss, rate = ([line.get(name, math.nan) for line in steps] for name in ("step", "loss", "lr"))
        charts = [_chart(loss_chart(step, loss), "loss per step")]
        charts += [_chart(rate_chart(step, rate), "learning rate per step")]
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    names = [n for n in table["after"] if n not in COUNTS and any(n in line for line in evaluations)]
    charts = []
    for name in names:
        epochs, values = ([line.get(key, math.nan) for line in evaluations] for key in ("epoch", name))
        levels = {ranking: table[ranking].get(name, math.nan) for ranking in ("random", "oracle")}
        charts.append(_chart(metric_chart(name, epochs, values, levels), f"{name} over epochs"))
    if charts:
        parts.append(_key({"after": "held-out items", "random": "random", "oracle": "oracle"}))
        parts.append(f'<div class="charts small">{"".join(charts)}</div>')
    return _section("Training", "".join(parts))


def _pairs(sample: Sample, geometry: str, classes: bool) -> str:
    """How embedding distances relate to the labels, before and after training."""
    words = {"cosine": "cosine similarity", "dot": "inner product"}
    label = words.get(geometry, f"{geometry} distance".replace("_", " "))
    y, charts, note = sample.y.numpy(), [], ""
    for name in ("before", "after"):
        x = sample.x[name].numpy()
        if classes:
            title = f"{name} training, d' = {number(separation(sample.x[name], sample.y), 2)}"
            svg = pair_chart(f"pairs-{name}", title, x, y, label)
        else:
            svg = density_chart(f"pairs-{name}", f"{name} training", x, y, label, name)
        charts.append(_chart(svg, f"{label} of pairs {name} training"))
    body = f'<div class="charts">{"".join(charts)}</div>'
    known = int((~sample.y.isnan()).sum())
    if classes:
        note = "Genuine pairs are the same, impostors differ; d' is the distance of their means in deviations."
    else:
        found = {name: sample.distances[name].numpy() for name in RANKINGS}
        body += f"<h3>Label distance of the nearest {sample.distances['after'].shape[1]} neighbours</h3>"
        body += _key({name: name for name in RANKINGS})
        charts = [_chart(neighbour_chart(found), "histogram of the neighbours' label distances")]
        charts += [_chart(rank_chart(found), "mean label distance by place")]
        body += f'<div class="charts">{"".join(charts)}</div>'
        note = "Darker cells hold more pairs."
    return _section("Pairs", body, f"{known:,} pairs of a seeded sample. {note}")


def _map(splits: Splits, target: Target, before: Pair, after: Pair, most: int = 800) -> str:
    """Where the embeddings lie, in two dimensions, in colours that say where the labels do."""
    items = splits.gallery or splits.query
    some = np.sort(np.random.default_rng(0).permutation(len(items))[:most])
    found = {name: pair[0] if pair[1] is None else pair[1] for name, pair in (("before", before), ("after", after))}
    z = {name: part[torch.as_tensor(some)] for name, part in found.items()}
    colours = label_colours(target, target.encode(items.labels[some], z["after"]))
    charts = (
        _chart(
            map_chart(f"map-{name}", f"{name} training", flattened(part), colours), f"map of embeddings {name} training"
        )
        for name, part in z.items()
    )
    note = "The two leading principal components of the embeddings; colours are near where labels are near."
    return _section("Map", f'<div class="charts">{"".join(charts)}</div>', f"{len(some):,} items. {note}")


def _settings(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The resolved configuration, and what was left out of the data."""
    text = escape(yaml.safe_dump(dict(config), sort_keys=False))
    skipped = metrics.get("skipped_images") or []
    listed = "".join(f"<li>{escape(str(name))}</li>" for name in skipped[:50])
    parts = [f"<details><summary>Configuration</summary><pre>{text}</pre></details>"]
    if skipped:
        parts += [f"<details><summary>{len(skipped)} images left out</summary><ul>{listed}</ul></details>"]
    return f"<section>{''.join(parts)}</section>"


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{note}{body}</section>"


def _chart(svg: str, words: str) -> str:
    return f'<figure class="chart" role="img" aria-label="{escape(words)}">{svg}</figure>'


def _key(words: Mapping[str, str]) -> str:
    """Legend: the line of each colour and what it stands for."""
    lines = (f'<i class="dash {colour}" style="--c:var(--{colour})"></i>{word}' for colour, word in words.items())
    return f'<p class="key">{" ".join(lines)}</p>'


def _mean(y: torch.Tensor) -> float:
    return float(y.nanmean()) if not bool(y.isnan().all()) else math.nan
