"""Tables and pictures of a study: means over seeds with 95 % intervals, and differences seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import stats

if TYPE_CHECKING:
    from study import Study

Runs = Mapping[str, Mapping[str, Any]]
LEVELS = {
    "frozen": ("tab:purple", "frozen trunk (purple)"),
    "before": ("tab:orange", "before training (orange)"),
    "random": ("0.6", "random (grey)"),
    "oracle": ("tab:green", "oracle (green)"),
}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (Student's t), which is NaN for a single value or infinite ones."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return statistics.fmean(values), float("nan")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread


def scores(results: Runs, name: str, metric: str, ranking: str = "after") -> dict[str, float]:
    """A metric of each seed of a configuration that has this row."""
    runs = {key.rsplit("/", 1)[1]: run for key, run in results.items() if key.rsplit("/", 1)[0] == name}
    return {seed: run["table"][ranking][metric] for seed, run in runs.items() if ranking in run["table"]}


def shown(values: Sequence[float], sign: str = "") -> str:
    """Mean and interval in a cell of a table; in bold if it is a difference whose interval does not hold 0."""
    mean, half = interval(values)
    text = f"{mean:{sign}.4f}" + (f" ± {half:.4f}" if half == half else "")
    return f"**{text}**" if sign and abs(mean) > half else text


def table(names: Sequence[str], metrics: Sequence[str], results: Runs) -> str:
    """Configurations measured so far, each with its difference from the first, over the seeds that both have."""
    there = [name for name in names if scores(results, name, metrics[0])]
    lines = ["| configuration | seeds | " + " | ".join(metrics) + f" | {metrics[0]}, minus the first |"]
    lines.append("|---" * (len(metrics) + 3) + "|")
    if not there:
        return "\n".join(lines) + "\n"
    first = scores(results, names[0], metrics[0])
    for name in there:
        own = scores(results, name, metrics[0])
        gaps = [own[seed] - first[seed] for seed in own if seed in first]
        less = shown(gaps, "+") if gaps and name != names[0] else ""
        cells = [shown([*scores(results, name, metric).values()]) for metric in metrics]
        lines.append(f"| {name} | {len(own)} | " + " | ".join(cells) + f" | {less} |")
    for level in LEVELS:
        rows = [[*scores(results, there[0], metric, level).values()] for metric in metrics]
        if rows[0]:
            lines.append(f"| *{level}* | | " + " | ".join(map(shown, rows)) + " | |")
    return "\n".join(lines) + "\n"


def gains(names: Sequence[str], metrics: Sequence[str], results: Runs) -> str:
    """What training gains over the embedder as it starts, seed by seed."""
    lines = ["| configuration | metric | seeds | before | after | gain | random | oracle |", "|---" * 8 + "|"]
    for name in names:
        for metric in metrics:
            rows = {r: scores(results, name, metric, r) for r in ("before", "after", "random", "oracle")}
            if rows["after"]:
                gain = shown([rows["after"][seed] - rows["before"][seed] for seed in rows["after"]], "+")
                before, after, random, oracle = (shown([*row.values()]) for row in rows.values())
                row = [name, metric, str(len(rows["after"])), before, after, gain, random, oracle]
                lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def seconds(names: Sequence[str], results: Runs) -> str:
    """Median seconds of training, of getting ready, and of the neighbour search that is part of that; those of an epoch.

    An epoch is the median one of the quickest run, which other work disturbed least. Runs that did not keep it count, where
    there are no others, with their mean, which holds the compiling too.
    """
    lines = ["| configuration | training, s | an epoch, s | getting ready, s | neighbour search, s |", "|---" * 5 + "|"]
    kinds = ("train_seconds", "ready_seconds", "search_seconds")
    for name in names:
        runs = [run for key, run in results.items() if key.rsplit("/", 1)[0] == name and {*kinds} <= run.keys()]
        if runs:
            train, ready, search = (statistics.median(run[kind] for run in runs) for kind in kinds)
            means = [run["train_seconds"] / max(run["epochs"], 1) for run in runs]
            epoch = min([run["epoch_seconds"] for run in runs if "epoch_seconds" in run] or means)
            lines.append(f"| {name} | {train:.0f} | {epoch:.1f} | {ready:.1f} | {search:.2f} |")
    return "\n".join(lines) + "\n"


def convergence(names: Sequence[str], metric: str, results: Runs, near: float = 0.95) -> str:
    """A metric on the way, mean over seeds, and how soon runs had gained 95 % of what they gained in the end."""
    ways: dict[str, list[dict[int, float]]] = {}
    for key, run in results.items():
        if len(history := run.get("history", ())) > 3:
            way = {int(epoch): values[metric] for epoch, values in history.items()}
            ways.setdefault(key.rsplit("/", 1)[0], []).append(way)
    chosen = {name: ways[name] for name in names if name in ways}
    epochs = sorted({epoch for some in chosen.values() for way in some for epoch in way})
    lines = [
        f"| {metric} after epoch | seeds | {' | '.join(map(str, epochs))} | epochs to {near:.0%} of the gain |",
        "|---" * (len(epochs) + 3) + "|",
    ]
    for name, some in chosen.items():
        means = [
            statistics.fmean(found) if (found := [w[epoch] for w in some if epoch in w]) else None for epoch in epochs
        ]
        gains = [(way, way[max(way)] - way[0]) for way in some]
        reached = [min(e for e, x in way.items() if x - way[0] >= near * gain) for way, gain in gains if gain > 0]
        cells = ["" if mean is None else f"{mean:.4f}" for mean in means]
        lines.append(f"| {name} | {len(some)} | {' | '.join(cells)} | {', '.join(map(str, sorted(reached)))} |")
    return "\n".join(lines) + "\n"


def write(page: Path, study: Study, results: Runs) -> None:
    """Put tables and pictures where the page has `<!-- name -->` ... `<!-- end -->`; a new page has all of them."""
    made = {name: table(names, study.shown, results) for name, names in study.questions.items()}
    made["gains"] = gains([*study.cells], study.shown, results)
    made["seconds"] = seconds([*study.cells], results)
    made["convergence"] = convergence([*study.cells], study.shown[0], results)
    for path in plots(page, study, results):
        made[path.stem] = f"![{path.stem}]({path.name})\n"
    text = page.read_text() if page.exists() else "\n".join(f"<!-- {name} -->\n<!-- end -->\n" for name in made)
    for name, part in made.items():
        start, mark, rest = text.partition(f"<!-- {name} -->\n")
        if mark:
            text = start + mark + part + rest[rest.index("<!-- end -->") :]
    page.write_text(text)


def plots(page: Path, study: Study, results: Runs) -> list[Path]:
    """Draw the first metric of each question's configurations, and the curves, as far as measured; the files."""
    metric = study.shown[0]

    def measured(name: str) -> bool:
        return bool(scores(results, name, metric))

    asked = {question: [*filter(measured, names)] for question, names in study.questions.items()}
    paths = draw_questions(page, {q: names for q, names in asked.items() if names}, metric, results)
    for axis, curves in study.curves.items():
        there = {c: {x: name for x, name in points.items() if measured(name)} for c, points in curves.items()}
        paths += draw_curves(page, axis, {c: points for c, points in there.items() if points}, metric, results)
    return paths


def draw_questions(page: Path, asked: Mapping[str, Sequence[str]], metric: str, results: Runs) -> list[Path]:
    """Each configuration's mean with its interval and seeds, a panel for each question."""
    from matplotlib.figure import Figure

    if not asked:
        return []
    rows = [len(names) + 1.5 for names in asked.values()]
    figure = Figure(figsize=(8, 0.28 * sum(rows) + 0.6), layout="constrained")
    top = max(max(scores(results, name, metric).values()) for names in asked.values() for name in names)
    grid = figure.subplots(len(asked), 1, sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (question, names) in zip(grid, asked.items(), strict=True):
        each = [[*scores(results, name, metric).values()] for name in names]
        means, halves = zip(*map(interval, each), strict=True)
        lines = levels(axes, results, names[0], metric, top, across=False)
        axes.errorbar(means, [*range(len(names))], xerr=halves, fmt="D", ms=6, capsize=4, alpha=0.6)
        axes.set_yticks([*range(len(names))], names)
        axes.set_ylim(-0.7, len(names) - 0.3)
        for place, values in enumerate(each):
            axes.plot(values, [place] * len(values), "k.", ms=4)
        axes.invert_yaxis()
        axes.set_title(question, loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
    words = f"{metric.replace('_', ' ')}, mean and 95 % interval; dots: seeds"
    figure.supxlabel(f"{words}\n{lines}", fontsize=8)
    return [saved(figure, page, "questions")]


def draw_curves(
    page: Path, axis: str, curves: Mapping[str, Mapping[float, str]], metric: str, results: Runs
) -> list[Path]:
    """Means with intervals along an axis."""
    from matplotlib.figure import Figure

    if not curves:
        return []
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    everything: list[float] = []
    for place, (label, points) in enumerate(curves.items()):
        found = [interval([*scores(results, name, metric).values()]) for name in points.values()]
        means, halves = zip(*found, strict=True)
        beside = 1.02 ** (place - (len(curves) - 1) / 2)  # so that intervals do not hide each other
        axes.errorbar([x * beside for x in points], means, yerr=halves, marker="o", ms=4, capsize=3, label=label)
        everything += means
    names = [name for points in curves.values() for name in points.values()]
    top = max(max(scores(results, name, metric).values()) for name in names)
    lines = levels(axes, results, names[0], metric, top, across=True)
    stand = [value for level in LEVELS for value in scores(results, names[0], metric, level).values()]
    low, high = min([*everything, *(value for value in stand if value <= 2 * top)]), max(everything)
    axes.set(xscale="log", ylabel=metric.replace("_", " "), ylim=(low - (high - low) / 8, high + (high - low) / 4))
    axes.set_xlabel(f"{axis}\n{lines}", fontsize=8)
    ticks = sorted({x for points in curves.values() for x in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.xaxis.minorticks_off()
    figure.legend(loc="outside lower center", ncol=2, fontsize=8, frameon=False)
    return [saved(figure, page, axis.replace(" ", "_"))]


def saved(figure: Any, page: Path, name: str) -> Path:
    """Write a figure beside the page; where."""
    path = page.with_name(f"{page.stem}_{name}.png")
    figure.savefig(path, dpi=110)
    return path


def levels(axes: Any, results: Runs, name: str, metric: str, top: float, *, across: bool) -> str:
    """Draw where the embedder before training, a random ranking and the oracle stand, as far as known; what is drawn.

    Those beyond twice `top`, the highest score in the picture, would press all others together: they are told in words.
    """
    drawn, beyond = [], []
    for level, (colour, words) in LEVELS.items():
        if values := [*scores(results, name, metric, level).values()]:
            place = interval(values)[0]
            if place > 2 * top:
                beyond.append(f"; {level} {place:.3g} (not drawn)")
            else:
                (axes.axhline if across else axes.axvline)(place, color=colour, ls="--", lw=1, zorder=0)
                drawn.append(words)
    return f"dashed: {', '.join(drawn)}{''.join(beyond)}"
