"""The table and the plots of what `losses.py` measured."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FORMS = ["floor", "tiled", "dense", "compiled", "PML"]
COLOURS = {"floor": "0.6", "tiled": "tab:blue", "dense": "tab:purple", "compiled": "tab:green", "PML": "tab:red"}
LEAST = {"to_floor": 0.02, "peak_mb": 0.5}  # what less is drawn as
NOTES = """
- floor: `S = normalize(x) @ normalize(x).T; S.backward(G)`, the second x being the proxies if any
- tiled: our block engine (the default); dense: our plain form; compiled: that by torch.compile with inductor; PML:
  pytorch-metric-learning
- in parentheses: times the floor, median over rounds; PML / tiled: how many times faster tiled is
- MB: peak on top of data and parameters, so gradients of both are in it; each in a fresh process
- difference: of tiled and PML in value, relative, options set equal; `-`: no peer, or one of another value (it draws at
  random, or errs)
- fastap: on these clustered points the loss is 0 or nearly so, and the peer's value rounding (it is negative at B = 128)
- load: processors that others used meanwhile; where it is not near 0, believe the ratios, not the times
- a row with * was measured before the last change of the code
""".strip()


def kind(row: Row) -> tuple[int, bool, int, int]:
    """What has a table of its own: number of proxies, continuous labels, items of a class, width."""
    return row["proxies"], not row["samples"], row["samples"], row["dim"]


def title(row: Row) -> str:
    """In words."""
    what = "Continuous labels"
    if row["proxies"]:
        what = f"{row['proxies']:,} proxies"
    elif row["samples"]:
        what = f"{row['samples']} of a class"
    return f"{what}, d = {row['dim']}"


def entry(row: Row, who: str) -> tuple[str, str]:
    """Time (with its ratio to the floor) and memory of one form, or why there are none."""
    if who not in row["ms"]:
        return (row["failed"].get(who, "-") if who in row["forms"] else "-",) * 2
    ratio = f" ({row['to_floor'][who]:.2f}x)" if who in row["to_floor"] and who != "floor" else ""
    peak = f"{row['peak_mb'][who]:.0f}" if who in row["peak_mb"] else row["failed"].get(f"{who} memory", "-")
    return f"{row['ms'][who]:.4g}{ratio}", peak


def line(row: Row) -> str:
    """A row for the screen."""
    forms = [f"{who} {' '.join(entry(row, who))}" for who in row["forms"]]
    return f"{row['loss']}, B = {row['n']}, {title(row)}: {', '.join(forms)}; load {row['load']}"


def difference(row: Row) -> str:
    """How far our value is from the peer's."""
    ours, peer = (row["value"].get(who, math.nan) for who in ("tiled", "PML"))
    return "-" if math.isnan(ours - peer) else f"{abs(ours - peer) / (abs(peer) or 1):.0e}"


def table(rows: list[Row], code: str, different: set[str]) -> list[str]:
    """Lines of the table of one kind, by loss and batch."""
    forms = [who for who in FORMS if any(who in row["forms"] for row in rows)]
    names = ["loss", "B", *(f"{who} ms" for who in forms), "PML / tiled", *(f"{who} MB" for who in forms)]
    lines = ["| " + " | ".join([*names, "difference", "load"]) + " |", "|" + "---|" * (len(names) + 2)]
    for row in sorted(rows, key=lambda row: (row["loss"], row["n"])):
        times, peaks = zip(*(entry(row, who) for who in forms), strict=True)
        gap = "-" if row["loss"] in different else difference(row)
        faster = f"{row['to_tiled']['PML']:.3g}" if "PML" in row["to_tiled"] else "-"
        name = row["loss"] + ("" if row["code"] == code else " *")
        cells = [name, str(row["n"]), *times, faster, *peaks, gap, "-" if row["load"] is None else str(row["load"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def markdown(heading: dict[str, str], rows: list[Row], different: set[str], pictures: list[Path]) -> str:
    """The page: what was measured and how, the plots, a table of each kind."""
    lines = ["# Cost of the losses: forward and backward", ""]
    lines += [f"- {key}: {text}" for key, text in heading.items()]
    lines += [f"- peak: {next((row['method'] for row in rows if row['method']), '-')}", *NOTES.splitlines()]
    for path in pictures:
        lines += ["", f"![{path.stem}]({path.name})"]
    for _, each in groupby(sorted(rows, key=kind), kind):
        group = list(each)
        lines += ["", f"## {title(group[0])}", "", *table(group, heading["code"], different)]
    return "\n".join(lines) + "\n"


def panels(rows: list[Row]) -> list[list[Row]]:
    """Rows of each panel: a loss, its fewest items of a class, of its numbers of proxies the largest with most sizes."""
    chosen = []
    for _, each in groupby(sorted(rows, key=lambda row: (row["proxies"] > 0, row["loss"])), lambda row: row["loss"]):
        groups: dict[tuple[int, int], list[Row]] = {}
        for row in each:
            groups.setdefault((row["proxies"], -row["samples"]), []).append(row)
        chosen.append(max(groups.items(), key=lambda item: (len(item[1]), item[0]))[1])
    return chosen


def name_of(row: Row) -> str:
    """The title of a panel."""
    name = textwrap.fill(row["loss"].replace("_", " "), 26).replace(" ", "_").replace("\n", "_\n")
    return name + (f"\n{row['proxies']:,} proxies" if row["proxies"] else "")


def styles(rows: list[Row]) -> list[tuple[int, str]]:
    """The kind of line for each width."""
    return list(zip(sorted({row["dim"] for row in rows}), ("-", "--", ":", "-."), strict=False))


def draw(axes: Any, rows: list[Row], key: str, batches: list[int]) -> None:
    """One panel: a curve for each form and width; a cross on top where a form has no number."""
    for dim, style in styles(rows):
        ordered = sorted((row for row in rows if row["dim"] == dim), key=lambda row: row["n"])
        for who in FORMS:
            points = [(row["n"], max(row[key][who], LEAST[key])) for row in ordered if who in row[key]]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=COLOURS[who], marker=".", ms=4, lw=1.2)
            lost = [row["n"] for row in ordered if who in row["failed"]]
            axes.plot(lost, [0.93] * len(lost), "x", color=COLOURS[who], ms=5, transform=axes.get_xaxis_transform())
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(batches, [str(n) for n in batches], rotation=90)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=7, labelbottom=True)
    axes.set_title(name_of(rows[0]), fontsize=8)
    axes.grid(alpha=0.3)


def plot(rows: list[Row], output: Path) -> list[Path]:
    """Write the plots of time and memory against the batch size beside the table, if there is matplotlib; their paths."""
    if not rows or importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chosen, paths = panels(rows), []
    forms = [who for who in FORMS if any(who in row["forms"] for row in rows)]
    handles = [Line2D([], [], color=COLOURS[who], label=who) for who in forms]
    handles += [Line2D([], [], color="k", ls=style, label=f"d = {dim}") for dim, style in styles(rows)]
    handles.append(Line2D([], [], color="k", ls="", marker="x", label="failed (out of memory, time)"))
    across = min(6, len(chosen))
    down = math.ceil(len(chosen) / across)
    for key, label, name in (("to_floor", "time, times the floor", "time"), ("peak_mb", "peak memory, MB", "memory")):
        if not any(row[key] for row in rows):
            continue
        figure = Figure(figsize=(1 + 2.2 * max(across, 4), 1 + 2.1 * down), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for axes, group in zip(grid, chosen, strict=False):
            draw(axes, group, key, sorted({row["n"] for row in rows}))
        for axes in grid[len(chosen) :]:
            axes.remove()
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False)
        figure.supxlabel("batch size B", fontsize=9)
        figure.supylabel(label, fontsize=9)
        paths.append(output.with_name(f"{output.stem}_{name}.png"))
        figure.savefig(paths[-1], dpi=100)
    return paths
