"""Queries and their nearest neighbours: a section of the report, and one picture of them for the model card."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data import Items, Splits
from ..targets import Target
from .charts import COLOURS
from .labels import Paint, painter
from .pairs import Sample, spread
from .parts import number, section, short_name

SHOWN = 8
ON_CARD = ("best", "better quarter", "median", "worse quarter", "worst")
SIDE, FRAME, LINE = 96, 4, 16
"""Sizes of the picture in pixels: an image's longer side, its frame, a line of text."""
CAPTION_LINES = 3


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

    @property
    def searched(self) -> Items:
        """Where neighbours are from."""
        return self.splits.query if self.splits.gallery is None else self.splits.gallery

    def colour(self, y: float) -> str:
        """How right a neighbour at this label distance is, for CSS and Pillow."""
        if self.classes:
            return COLOURS["same" if y == 0 else "different"]
        oracle, random = self.levels
        share = min(max((y - oracle) / (random - oracle), 0), 1) if random > oracle else 0.5
        return f"hsl({160 - 155 * share:.0f}, 62%, 45%)"


def make_view(sample: Sample, splits: Splits, target: Target) -> View:
    """What the gallery of this sample shows."""
    levels = [_mean(sample.distances[name][:, :SHOWN]) for name in ("oracle", "random")]
    return View(splits, target.gives == "same", levels, painter(target, splits.query))


def gallery_section(sample: Sample, view: View) -> str:
    """Queries between best and worst, each with its nearest neighbours after and before training."""
    chosen = spread(sample, SHOWN)
    cards = "".join(_card(sample, row, word, view) for row, word in chosen.items())
    order = "the share of wrong ones" if view.classes else "the mean label distance"
    if view.classes:
        dots = (("same", "✓ same"), ("different", "✗ different"))
        key = " ".join(f'<i class="dot" style="--c:var(--{colour})"></i>{word}' for colour, word in dots)
        note = "."
    else:
        oracle, random = view.levels
        key = f'oracle {number(oracle, 3)} <i class="scale"></i> random {number(random, 3)}'
        note = "; numbers are label distances, coloured from the oracle's mean to the random one's."
    return section(
        "Nearest neighbours",
        f'<p class="key">{key}</p>{cards or "<p>No query has anything to find.</p>"}',
        f"{len(chosen)} of {len(sample.rows):,} queries from best to worst by {order} among the first "
        f"{SHOWN} neighbours after training, nearest first. The smaller row shows what was found before{note}",
    )


def gallery_picture(sample: Sample, view: View) -> Image.Image | None:
    """Five queries from best to worst, each with its nearest neighbours after training; None without a query.

    Frames and numbers tell how right a neighbour is, as in the report; captions, the first of each picture, are below.
    """
    chosen = [(row, word) for row, word in spread(sample, SHOWN).items() if word in ON_CARD]
    if not chosen:
        return None
    texts = CAPTION_LINES if view.splits.query.labels.dtype.kind == "U" else 0
    step, high = SIDE + 2 * FRAME + 6, SIDE + 2 * FRAME + (2 + texts) * LINE + 6
    sheet = Image.new("RGB", ((SHOWN + 1) * step + 2 * LINE, len(chosen) * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)

    def put(items: Items, place: int, left: int, top: int, colour: str, text: str) -> None:
        """An image in its frame, with a line of text below, and the lines of its caption."""
        pen.rectangle((left, top, left + SIDE + 2 * FRAME - 1, top + SIDE + 2 * FRAME - 1), fill=colour)
        image = ImageOps.contain(_small(items, place, SIDE, view.paint), (SIDE, SIDE))
        free = SIDE - image.width, SIDE - image.height
        pen.rectangle(
            (left + FRAME, top + FRAME, left + FRAME + SIDE - 1, top + FRAME + SIDE - 1), fill=COLOURS["line"]
        )
        sheet.paste(image, (left + FRAME + free[0] // 2, top + FRAME + free[1] // 2))
        words = [text] if text else []
        if texts:
            words += wrapped(_words(items, place, view.splits)[0], SIDE + 2 * FRAME, texts, font.getlength)
        for line, word in enumerate(words):
            while font.getlength(word) > SIDE + 2 * FRAME:
                word = word[:-1]
            pen.text((left, top + SIDE + 2 * FRAME + 1 + line * LINE), word, fill=COLOURS["muted"], font=font)

    for i, (row, word) in enumerate(chosen):
        place, top = int(sample.rows[row]), i * high + LINE
        pen.text((0, top - LINE), word, fill=COLOURS["ink"], font=font)
        asked = "" if texts else _words(view.splits.query, place, view.splits)[0]
        put(view.splits.query, place, 0, top, "white", asked)
        for j, (neighbour, y) in enumerate(_found(sample, row, "after")):
            words = _words(view.searched, neighbour, view.splits)
            put(
                view.searched, neighbour, (j + 1) * step + 2 * LINE, top,
                view.colour(y), words[0] if view.classes else number(y, 3),
            )  # fmt: skip
    return sheet


def wrapped(text: str, width: float, most: int, length: Callable[[str], float]) -> list[str]:
    """At most so many lines of whole words that are no longer than `width`; "…" ends a text that is cut off."""
    words, lines = text.split(), [""]
    while words:
        longer = f"{lines[-1]} {words[0]}".strip()
        if lines[-1] and length(longer) > width:
            if len(lines) == most:
                break
            longer = words[0]
            lines.append("")
        lines[-1] = longer
        words.pop(0)
    if words:
        while lines[-1] and length(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return lines


def _found(sample: Sample, row: int, ranking: str) -> list[tuple[int, float]]:
    """Places and label distances of a query's first neighbours, as far as there are any."""
    pairs = zip(
        sample.neighbours[ranking][row, :SHOWN].tolist(), sample.distances[ranking][row, :SHOWN].tolist(), strict=True
    )
    return [(place, y) for place, y in pairs if not math.isnan(y)]


def _card(sample: Sample, row: int, word: str, view: View) -> str:
    query, place = view.splits.query, int(sample.rows[row])
    rows = []
    for ranking in ("after", "before"):
        found = _found(sample, row, ranking)
        hits = "".join(_hit(view.searched, neighbour, y, view) for neighbour, y in found)
        mean = _mean(sample.distances[ranking][row, :SHOWN])
        score = f"{sum(y == 0 for _, y in found)} of {len(found)} right" if view.classes else f"mean {number(mean, 3)}"
        rows.append(f'<div class="row {ranking}"><p>{ranking}: {score}</p><div class="hits">{hits}</div></div>')
    caption = _caption(query, place, view.splits)
    return (
        f'<article class="query"><figure class="ask"><p>{word}</p>{_img(query, place, 160, view.paint)}'
        f'<figcaption title="{escape(_name(query, place))}">{caption}</figcaption></figure>'
        f'<div class="answers">{"".join(rows)}</div></article>'
    )


def _hit(items: Items, place: int, y: float, view: View) -> str:
    """One neighbour, framed in the colour of how right it is."""
    mark = ("✓" if y == 0 else "✗") if view.classes else number(y, 3)
    return (
        f'<figure style="--c:{view.colour(y)}" title="{escape(_title(items, place))}">{_img(items, place, 112, view.paint)}'
        f"<figcaption><b>{mark}</b>{_caption(items, place, view.splits)}</figcaption></figure>"
    )


def _name(items: Items, place: int) -> str:
    """What the item is called."""
    return short_name(items.names[place])


def _title(items: Items, place: int) -> str:
    """The item's name, and all its captions."""
    texts = np.ravel(items.labels[place]) if items.labels.dtype.kind == "U" else ()
    return "\n".join([_name(items, place), *(str(text) for text in texts if text)])


def _caption(items: Items, place: int, splits: Splits) -> str:
    """The label, if it has few words, and the end of the item's name."""
    return "".join(f"<span>{escape(word)}</span>" for word in _words(items, place, splits))


def _words(items: Items, place: int, splits: Splits) -> list[str]:
    label, name = items.labels[place], _name(items, place)
    words = [name if len(name) <= 20 else "…" + name[-19:]]
    if items.labels.dtype.kind == "U":
        words = [str(text) for text in np.ravel(label)[:1]]
    elif items.labels.ndim == 1 and items.labels.dtype.kind == "f":
        words.insert(0, f"{float(label):g}")
    elif items.labels.ndim == 1:
        known = splits.class_names is not None and 0 <= label < len(splits.class_names)
        words.insert(0, str(splits.class_names[label]) if known and splits.class_names else f"class {label}")
    return words


def _small(items: Items, place: int, side: int, paint: Paint | None) -> Image.Image:
    """A picture with its label as small as it is shown."""
    image: Image.Image = items.images[place].convert("RGB")
    if paint is not None:
        scale = side / max(image.size)
        image = image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS)
        image = paint(image, items.labels[place], scale)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _img(items: Items, place: int, side: int, paint: Paint | None) -> str:
    """A picture inline: PNG, or JPEG where that is smaller."""
    image, files = _small(items, place, side, paint), {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files[kind] = buffer.getvalue()
    kind = min(files, key=lambda k: len(files[k]))
    data = base64.b64encode(files[kind]).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/{kind};base64,{data}" alt="{escape(_name(items, place))}" {size}>'


def _mean(y: torch.Tensor) -> float:
    return float(y.nanmean()) if not bool(y.isnan().all()) else math.nan
