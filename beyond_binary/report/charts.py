"""Charts of a report: pure functions from numbers to inline SVG in the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "ink": "#1d2331", "muted": "#667086", "line": "#dfe3ea",
    "before": "#d9822c", "after": "#2a78d7", "random": "#8d96a4", "oracle": "#12a593",
    "same": "#1a9f6d", "different": "#dd4e4b",
}  # fmt: skip
"""Colours as Matplotlib draws them; in the SVG each becomes the CSS variable of its name, `var(--ink)`."""

DASHES = {"random": (0, (2, 2)), "oracle": (0, (5, 2))}

STYLE: dict[str, Any] = {
    "font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False,
    "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"], "axes.edgecolor": COLOURS["line"],
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "grid.color": COLOURS["line"],
    "xtick.major.size": 0, "ytick.major.size": 0, "grid.linewidth": 0.6, "svg.fonttype": "path",
    "axes.unicode_minus": True, "axes.formatter.useoffset": False,
}  # fmt: skip


def require_matplotlib() -> None:
    """Raises ImportError, with the way out, where Matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'the report draws with matplotlib, which is not installed; pip install "beyond_binary[plots]", '
            "or train with --report false"
        ) from error


def loss_chart(steps: Sequence[float], loss: Sequence[float]) -> str:
    """Loss per step, raw and smoothed."""
    every = max(1, len(steps) // 1500)
    raw, smooth = (
        np.asarray(loss, dtype=float),
        smoothed(np.asarray(loss, dtype=float), max(1, len(loss) // 20)),
    )

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        axes.plot(steps[::every], raw[::every], color=COLOURS["after"], alpha=0.35, linewidth=0.8, label="each step")
        axes.plot(steps[::every], smooth[::every], color=COLOURS["after"], label="smoothed")
        axes.set_title("loss", loc="left")
        axes.set_xlabel("step")
        axes.legend(loc="upper right", ncols=2)

    return _svg("loss", (4.4, 2.7), draw)


def rate_chart(steps: Sequence[float], rate: Sequence[float]) -> str:
    """Learning rate per step."""
    every = max(1, len(steps) // 1500)

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        axes.plot(steps[::every], rate[::every], color=COLOURS["before"])
        axes.set_title("learning rate", loc="left")
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))

    return _svg("learning-rate", (4.4, 2.7), draw)


def metric_chart(name: str, epochs: Sequence[float], values: Sequence[float], levels: Mapping[str, float]) -> str:
    """A metric over epochs, with the levels of the random and the oracle ranking dashed."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        for level, value in levels.items():
            if np.isfinite(value):
                axes.axhline(value, color=COLOURS[level], linestyle=DASHES[level], linewidth=1.2)
        axes.plot(epochs, values, color=COLOURS["after"], marker="o", markersize=3)
        axes.set_title(name, loc="left")
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        axes.margins(y=0.12)

    return _svg(name, (3.3, 2.2), draw)


def pair_chart(name: str, title: str, x: np.ndarray, y: np.ndarray, label: str) -> str:
    """Histograms of embedding distance or similarity of genuine (y = 0) and impostor (y > 0) pairs."""

    return _svg(name, (4.4, 2.7), lambda figure: _pairs(figure.subplots(), title, x, y, label))


def pair_picture(x: np.ndarray, same: np.ndarray, label: str) -> bytes:
    """Histograms of what genuine and impostor pairs score [n], as a PNG on white."""
    title = f"{same.sum():,} genuine pairs, {(~same).sum():,} impostors"
    return _png((5.5, 3.2), 150, lambda figure: _pairs(figure.subplots(), title, x, 1.0 - same, label))


def _pairs(axes: Any, title: str, x: np.ndarray, y: np.ndarray, label: str) -> None:
    bins = np.linspace(*_limits(x[~np.isnan(y)]), 61)
    for kind, part in (("different", x[y > 0]), ("same", x[y == 0])):
        if len(part):
            weights = np.full(len(part), 1 / len(part))
            word = {"same": "genuine", "different": "impostor"}[kind]
            for style in ({"histtype": "stepfilled", "alpha": 0.25}, {"histtype": "step", "label": word}):
                axes.hist(part, bins=bins, weights=weights, color=COLOURS[kind], **style)
    axes.set_title(title, loc="left")
    axes.set(xlabel=label, ylabel="share of pairs")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def density_chart(name: str, title: str, x: np.ndarray, y: np.ndarray, label: str, colour: str) -> str:
    """2-D histogram of embedding distance (or similarity) over label distance, with its median per bin."""

    return _svg(name, (4.4, 3.0), lambda figure: _density(figure.subplots(), title, x, y, label, colour))


def _density(axes: Any, title: str, x: np.ndarray, y: np.ndarray, label: str, colour: str) -> None:
    known = ~np.isnan(y)
    across, up = _limits(y[known], low=0.0), _limits(x[known])
    counts, edges, _ = np.histogram2d(y[known], x[known], bins=(48, 40), range=(across, up))
    pixels = np.zeros((*counts.T.shape, 4))
    pixels[..., :3] = [int(COLOURS[colour][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    pixels[..., 3] = np.sqrt(counts.T / max(counts.max(), 1))
    axes.imshow(pixels, origin="lower", extent=(*across, *up), aspect="auto", interpolation="none")
    axes.plot(*_medians(y[known], x[known], edges), color=COLOURS["ink"], linewidth=1.1, label="median")
    axes.set_title(title, loc="left")
    axes.set(xlabel="label distance", ylabel=label, xlim=across, ylim=up)
    axes.legend(loc="lower right")


def neighbour_chart(distances: Mapping[str, np.ndarray]) -> str:
    """Histograms of the label distances of the nearest neighbours, one outline per ranking."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        known = {name: values[~np.isnan(values)] for name, values in distances.items()}
        bins = np.linspace(*_limits(np.concatenate(list(known.values())), low=0.0), 31)
        for name, values in known.items():
            if len(values):
                style = {"color": COLOURS[name], "linestyle": DASHES.get(name, "-")}
                weights = np.full(len(values), 1 / len(values))
                axes.hist(values, bins=bins, weights=weights, histtype="step", linewidth=1.5, **style)
                axes.axvline(values.mean(), ymax=0.04, color=COLOURS[name], linewidth=2.5)
        axes.set_title("their histogram", loc="left")
        axes.set(xlabel="label distance (marks: means)", ylabel="share of neighbours")

    return _svg("neighbours", (4.4, 2.7), draw)


def rank_chart(distances: Mapping[str, np.ndarray]) -> str:
    """Mean label distance of the first, second, ... neighbour, one line per ranking."""

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        for name, values in distances.items():
            known = ~np.isnan(values)
            count = known.sum(0)
            mean = np.where(known, values, 0).sum(0)[count > 0] / count[count > 0]
            style = {"color": COLOURS[name], "linestyle": DASHES.get(name, "-")}
            axes.plot(np.arange(1, len(mean) + 1), mean, marker="o", markersize=2.5, **style)
        axes.set_title("mean by place", loc="left")
        axes.set(xlabel="place in the ranking", ylabel="label distance")
        axes.xaxis.get_major_locator().set_params(integer=True)

    return _svg("places", (4.4, 2.7), draw)


def map_chart(name: str, title: str, place: np.ndarray, colours: np.ndarray) -> str:
    """Embeddings as points of a plane [n 2] in given colours [n 3]."""

    return _svg(name, (4.4, 3.6), lambda figure: _map(figure.subplots(), title, place, colours))


def _map(axes: Any, title: str, place: np.ndarray, colours: np.ndarray) -> None:
    axes.scatter(place[:, 0], place[:, 1], c=colours, s=9, alpha=0.8, linewidths=0)
    axes.set_title(title, loc="left")
    axes.set_aspect("equal", adjustable="datalim")
    axes.tick_params(labelbottom=False, labelleft=False)


def distance_picture(
    x: Mapping[str, np.ndarray], y: np.ndarray, label: str, place: Mapping[str, np.ndarray], colours: np.ndarray
) -> bytes:
    """Distances of pairs over label distances and maps of the embeddings, before and after, as a PNG on white.

    Args:
        x: distances or similarities of pairs [s c] by "before" and "after".
        y: their label distances [s c].
        label: what x is.
        place: points of a plane [n 2] by "before" and "after".
        colours: of these points [n 3].
    """

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots(2, 2)
        for column, name in enumerate(("before", "after")):
            _density(axes[0, column], f"{name} training", x[name], y, label, name)
            _map(axes[1, column], f"map {name} training, coloured by label", place[name], colours)

    return _png((8, 6.4), 110, draw)


def training_picture(
    steps: Sequence[float],
    loss: Sequence[float],
    name: str,
    epochs: Sequence[float],
    values: Sequence[float],
    levels: Mapping[str, float],
) -> bytes:
    """Loss per step beside a metric per epoch, with the levels of other rankings dashed, as a PNG on white."""
    words = {"random": "random", "oracle": "best possible"}
    every, raw = max(1, len(steps) // 1500), np.asarray(loss, dtype=float)
    smooth = smoothed(raw, max(1, len(raw) // 20))

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        left.plot(steps[::every], raw[::every], color=COLOURS["after"], alpha=0.35, linewidth=0.8, label="each step")
        left.plot(steps[::every], smooth[::every], color=COLOURS["after"], label="smoothed")
        left.set(xlabel="step", title="loss")
        left.legend(loc="best")
        right.plot(epochs, values, color=COLOURS["after"], marker="o", markersize=3, label="held-out queries")
        for level, value in levels.items():
            if np.isfinite(value):
                right.axhline(value, color=COLOURS[level], linestyle=DASHES[level], linewidth=1.2, label=words[level])
        right.set(xlabel="epoch", title=name)
        right.xaxis.get_major_locator().set_params(integer=True, nbins=6)
        right.legend(loc="best")

    return _png((8, 2.8), 150, draw)


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving mean over `window` values; near the ends over those that exist, NaN left out."""
    known = np.isfinite(values)
    ones = np.ones(window)
    keep = slice((window - 1) // 2, (window - 1) // 2 + len(values))
    total, count = (np.convolve(v, ones)[keep] for v in (np.where(known, values, 0.0), known.astype(float)))
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0.5)


def _limits(values: np.ndarray, low: float | None = None) -> tuple[float, float]:
    """Range that holds all but the outermost thousandth of the values, never empty."""
    if not len(values):
        return 0.0, 1.0
    start, stop = np.quantile(values, (0.001, 0.999)) if low is None else (low, np.quantile(values, 0.999))
    return (float(start), float(stop)) if stop > start else (float(start) - 0.5, float(start) + 0.5)


def _medians(y: np.ndarray, x: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of x in each bin of y that holds at least 20 pairs."""
    place = np.digitize(y, edges)
    bins = [i for i in range(1, len(edges)) if np.count_nonzero(place == i) >= 20]
    return (edges[:-1] + edges[1:])[[i - 1 for i in bins]] / 2, np.array([np.median(x[place == i]) for i in bins])


def _png(inches: tuple[float, float], dpi: int, draw: Any) -> bytes:
    """Draw on a fresh figure and return it as a PNG on white."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(name: str, inches: tuple[float, float], draw: Any) -> str:
    """Draw on a fresh figure and return bare SVG: no size, no metadata, own ids, themed colours."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text)
    prefix = re.sub(r"[^a-z0-9]+", "-", name.lower())
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    for colour, code in COLOURS.items():
        text = text.replace(code, f"var(--{colour})")
    return text
