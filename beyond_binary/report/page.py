"""The report of a run: one HTML file with numbers, neighbours and curves, without scripts or links."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ..data import Splits
from ..metrics import COUNTS, MAIN, higher_is_better
from ..targets import Target
from .charts import (
    density_chart,
    distance_picture,
    loss_chart,
    map_chart,
    metric_chart,
    neighbour_chart,
    pair_chart,
    rank_chart,
    rate_chart,
)
from .gallery import gallery_picture, gallery_section, make_view
from .labels import flattened, label_colours
from .pairs import Pair, Sample, sample_pairs, separation
from .parts import chart, key, number, section, short_name
from .style import CSS

RANKINGS = ("before", "after", "random", "oracle")
PICTURE, DISTANCES = "gallery.png", "distances.png"


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
    """Write the report of a run as one self-contained HTML file, and beside it pictures: `gallery.png` for the model card
    and, where labels are more than classes, `distances.png`, the pairs and the map of the embeddings.

    Args:
        path: the file; overwritten.
        title: heading, as plain text.
        config: the resolved configuration, sections as dicts.
        metrics: what metrics.json holds: "table" with the rows before, after, random and oracle (and
            frozen, where it was measured), and facts of the run.
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
    view = make_view(sample, splits, target)
    placed = _placed(splits, target, before, after)
    body = [
        f"<header><h1>{escape(title)}</h1>{_facts(config, metrics, splits)}</header>",
        _results(metrics),
        gallery_section(sample, view),
        _curves(history, metrics),
        _pairs(sample, geometry, view.classes),
        _map(*placed),
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
    if (picture := gallery_picture(sample, view)) is not None:
        picture.save(path.with_name(PICTURE), optimize=True)
    if not view.classes:
        x = {name: part.numpy() for name, part in sample.x.items()}
        path.with_name(DISTANCES).write_bytes(distance_picture(x, sample.y.numpy(), _nearness(geometry), *placed))


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
    shown = [ranking for ranking in ("frozen", *RANKINGS) if ranking in table]
    head = "".join(f'<th scope="col"><i class="dot" style="--c:var(--{r})"></i>{r}</th>' for r in shown)
    rows = "".join(_row(table, name, shown) for name in names)
    found, lost = (table["after"].get(name, 0.0) for name in COUNTS)
    counts = f"Means over {found:,.0f} queries" + (f"; {lost:,.0f} without a match left out" if lost else "")
    return section(
        "Results",
        f'<div class="tiles">{tiles}</div>'
        f'<div class="scroll"><table><thead><tr><th scope="col">metric</th>{head}'
        f'<th scope="col" class="share">random → oracle</th></tr></thead><tbody>{rows}</tbody></table></div>',
        f"{counts}. The bars show where the embedding stands between a random ranking and the best possible "
        "one, before (thin mark) and after training (bar). "
        + ("Frozen: the trunk's own features before training, without a head, by cosine. " if "frozen" in shown else "")
        + "↑ higher is better, ↓ lower is better.",
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


def _row(table: Mapping[str, Mapping[str, float]], name: str, shown: Sequence[str]) -> str:
    arrow = "↑" if higher_is_better(name) else "↓"
    cells = "".join(f'<td class="{r}">{number(table[r].get(name))}</td>' for r in shown)
    share = _percent(way(table, "after", name))
    return (
        f'<tr><th scope="row">{escape(name).replace("_", "_<wbr>")}&nbsp;<small>{arrow}</small></th>{cells}'
        f'<td class="share"><div>{_bar(table, name)}<span>{share}</span></div></td></tr>'
    )


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
        charts = [chart(loss_chart(step, loss), "loss per step")]
        charts += [chart(rate_chart(step, rate), "learning rate per step")]
        parts.append(f'<div class="charts">{"".join(charts)}</div>')
    names = [n for n in table["after"] if n not in COUNTS and any(n in line for line in evaluations)]
    charts = []
    for name in names:
        epochs, values = ([line.get(key, math.nan) for line in evaluations] for key in ("epoch", name))
        levels = {ranking: table[ranking].get(name, math.nan) for ranking in ("random", "oracle")}
        charts.append(chart(metric_chart(name, epochs, values, levels), f"{name} over epochs"))
    if charts:
        parts.append(key({"after": "held-out items", "random": "random", "oracle": "oracle"}))
        parts.append(f'<div class="charts small">{"".join(charts)}</div>')
    return section("Training", "".join(parts))


def _nearness(geometry: str) -> str:
    """What a geometry gives, in words."""
    words = {"cosine": "cosine similarity", "dot": "inner product"}
    return words.get(geometry, f"{geometry} distance".replace("_", " "))


def _pairs(sample: Sample, geometry: str, classes: bool) -> str:
    """How embedding distances relate to the labels, before and after training."""
    label = _nearness(geometry)
    y, charts, note = sample.y.numpy(), [], ""
    for name in ("before", "after"):
        x = sample.x[name].numpy()
        if classes:
            title = f"{name} training, d' = {number(separation(sample.x[name], sample.y, geometry), 2)}"
            svg = pair_chart(f"pairs-{name}", title, x, y, label)
        else:
            svg = density_chart(f"pairs-{name}", f"{name} training", x, y, label, name)
        charts.append(chart(svg, f"{label} of pairs {name} training"))
    body = f'<div class="charts">{"".join(charts)}</div>'
    known = int((~sample.y.isnan()).sum())
    if classes:
        note = "Genuine pairs are the same, impostors differ; d' is the distance of their means in deviations."
    else:
        found = {name: sample.distances[name].numpy() for name in RANKINGS}
        body += f"<h3>Label distance of the nearest {sample.distances['after'].shape[1]} neighbours</h3>"
        body += key({name: name for name in RANKINGS})
        charts = [chart(neighbour_chart(found), "histogram of the neighbours' label distances")]
        charts += [chart(rank_chart(found), "mean label distance by place")]
        body += f'<div class="charts">{"".join(charts)}</div>'
        note = "Darker cells hold more pairs."
    return section("Pairs", body, f"{known:,} pairs of a seeded sample. {note}")


def _placed(
    splits: Splits, target: Target, before: Pair, after: Pair, most: int = 800
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Where embeddings of some items lie in a plane [n 2], before and after training, and colours of their labels [n 3]."""
    items = splits.gallery or splits.query
    some = np.sort(np.random.default_rng(0).permutation(len(items))[:most])
    found = {name: pair[0] if pair[1] is None else pair[1] for name, pair in (("before", before), ("after", after))}
    z = {name: part[torch.as_tensor(some)] for name, part in found.items()}
    colours = label_colours(target, target.encode(items.labels[some], z["after"]))
    return {name: flattened(part) for name, part in z.items()}, colours


def _map(place: Mapping[str, np.ndarray], colours: np.ndarray) -> str:
    """Where the embeddings lie, in two dimensions, in colours that say where the labels do."""
    charts = (
        chart(map_chart(f"map-{name}", f"{name} training", part, colours), f"map of embeddings {name} training")
        for name, part in place.items()
    )
    note = "The two leading principal components of the embeddings; colours are near where labels are near."
    return section("Map", f'<div class="charts">{"".join(charts)}</div>', f"{len(colours):,} items. {note}")


def _settings(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The resolved configuration, and what was left out of the data."""
    text = escape(yaml.safe_dump(dict(config), sort_keys=False))
    skipped = metrics.get("skipped_images") or []
    listed = "".join(f"<li>{escape(short_name(name))}</li>" for name in skipped[:50])
    parts = [f"<details><summary>Configuration</summary><pre>{text}</pre></details>"]
    if skipped:
        parts += [f"<details><summary>{len(skipped)} images left out</summary><ul>{listed}</ul></details>"]
    return f"<section>{''.join(parts)}</section>"
