"""Draws scenes of two to four coloured shapes, each with five English captions that are true of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DRAWN = 3  # canvas pixels per pixel of the picture, in each direction

COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (40, 92, 214),
    "yellow": (250, 212, 40),
    "orange": (247, 127, 0),
    "purple": (128, 60, 180),
    "pink": (248, 130, 186),
    "brown": (124, 78, 44),
    "black": (26, 26, 30),
    "white": (248, 248, 248),
}
PLACES = {
    "grass": ("blue sky", (150, 206, 246), (98, 158, 70)),
    "sand": ("pale sky", (206, 232, 246), (226, 200, 140)),
    "snow": ("grey sky", (166, 178, 196), (226, 234, 242)),
    "a wooden table": ("beige wall", (224, 208, 186), (164, 114, 70)),
    "a grey floor": ("teal wall", (88, 150, 150), (120, 120, 126)),
    "a dark road": ("night sky", (34, 38, 84), (74, 72, 78)),
}
"""Ground: (what is behind it, its colour, the ground's colour)."""


def corners(count: int, inner: float = 1.0, turn: float = 0.0) -> NDArray[np.float64]:
    """The corners [count, 2] of a regular polygon in the unit circle, one on top; a star if inner < 1."""
    angle = np.arange(count) * 2 * np.pi / count + turn
    radius = np.where(np.arange(count) % 2 == 1, inner, 1.0)[:, None]
    return radius * np.stack([np.sin(angle), -np.cos(angle)], 1)


def heart() -> NDArray[np.float64]:
    """A heart's outline [40, 2] within the unit circle."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2], 1) / 17


ARM = np.array([(-1, -3), (1, -3), (1, -1)]) / 3  # one of the four arms of a cross
TURN = np.array([(0, 1), (-1, 0)])  # a quarter turn
SHAPES = {
    "circle": corners(48),
    "square": corners(4, turn=np.pi / 4),
    "triangle": corners(3),
    "star": corners(10, 0.45),
    "heart": heart(),
    "hexagon": corners(6),
    "diamond": corners(4) * (0.65, 1.0),
    "cross": np.concatenate([ARM, ARM @ TURN, -ARM, -ARM @ TURN]),
}
"""Outlines [corners, 2] within the unit circle; each contains its middle (0, 0)."""

WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "red": ("red", "scarlet"),
    "star": ("star", "five-pointed star"),
    "cross": ("cross", "plus sign"),
    "diamond": ("diamond", "rhombus"),
    "purple": ("purple", "violet"),
    "yellow": ("yellow", "golden"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
}
"""Other words that captions may use; what is not here has one word."""

NUMBERS = {2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Thing:
    """One object: the names of its shape, colour and size; middle and radius as fractions of the picture."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Two to four things, no two of one shape and colour, on a ground."""

    things: tuple[Thing, ...]
    ground: str


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene whose things lie apart from each other and inside the picture."""
    count = int(rng.integers(2, 5))
    kinds = rng.choice(len(SHAPES) * len(COLOURS), count, replace=False)
    while True:  # sizes and places together, so that there is always a next try that can succeed
        large = rng.random(count) < 0.5
        radius = np.where(large, rng.uniform(0.14, 0.17, count), rng.uniform(0.075, 0.095, count))
        at = radius[:, None] + 0.02 + (0.96 - 2 * radius[:, None]) * rng.random((count, 2))
        apart = np.hypot(*(at[:, None] - at).transpose(2, 0, 1)) - radius[:, None] - radius
        if (apart[~np.eye(count, dtype=bool)] > 0.02).all():
            break
    shapes, colours = (
        [list(names)[k] for k in index]
        for names, index in ((SHAPES, kinds % len(SHAPES)), (COLOURS, kinds // len(SHAPES)))
    )
    sizes, places = np.where(large, "large", "small").tolist(), np.column_stack([at, radius]).tolist()
    things = [
        Thing(shape, colour, size, *place)
        for shape, colour, size, place in zip(shapes, colours, sizes, places, strict=True)
    ]
    return Scene(tuple(things), str(rng.choice(list(PLACES))))


def word(name: str, rng: np.random.Generator) -> str:
    """One of the words for the name of a shape, colour or size."""
    return str(rng.choice(WORDS.get(name, (name,))))


def noun(thing: Thing, rng: np.random.Generator, size: bool = False) -> str:
    """ "red circle", or "large red circle", in one of its wordings."""
    words = [thing.size, thing.colour, thing.shape][0 if size else 1 :]
    return " ".join(word(name, rng) for name in words)


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def enumerate_words(phrases: Sequence[str]) -> str:
    """ "one, two and three"."""
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def where(thing: Thing) -> str:
    """The thing's place in a grid of three by three."""
    row = ("top", "middle", "bottom")[min(int(3 * thing.y), 2)]
    column = ("left", "centre", "right")[min(int(3 * thing.x), 2)]
    if column == "centre":
        return {"top": "at the top", "middle": "in the centre", "bottom": "at the bottom"}[row]
    return f"on the {column} side" if row == "middle" else f"in the {row} {column} corner"


def relation(a: Thing, b: Thing) -> str:
    """Where a is from b, along the direction in which they are further apart."""
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "to the left of" if a.x < b.x else "to the right of"
    return "above" if a.y < b.y else "below"


def shuffled(scene: Scene, rng: np.random.Generator) -> list[Thing]:
    """The scene's things in a random order."""
    return [scene.things[i] for i in rng.permutation(len(scene.things))]


def tell_all(scene: Scene, rng: np.random.Generator) -> str:
    """Everything there is, with sizes."""
    phrases = enumerate_words([article(noun(t, rng, size=True)) for t in shuffled(scene, rng)])
    return f"{rng.choice(('There is', 'The picture shows', 'We see', 'An image of'))} {phrases}."


def tell_relation(scene: Scene, rng: np.random.Generator) -> str:
    """Two things and where one is from the other."""
    a, b, *_ = shuffled(scene, rng)
    verb = rng.choice(("is", "lies", "sits"))
    return f"The {noun(a, rng)} {verb} {relation(a, b)} the {noun(b, rng)}."


def tell_place(scene: Scene, rng: np.random.Generator) -> str:
    """One thing, its size and where in the picture it is."""
    thing = shuffled(scene, rng)[0]
    phrase, verb = article(noun(thing, rng, size=True)), rng.choice(("is", "can be seen", "appears"))
    return f"{phrase.capitalize()} {verb} {where(thing)}."


def tell_count(scene: Scene, rng: np.random.Generator) -> str:
    """How many things there are, the ground, and one of the things."""
    things = rng.choice(("shapes", "objects", "things"))
    number, one = NUMBERS[len(scene.things)].capitalize(), noun(shuffled(scene, rng)[0], rng)
    return f"{number} {things} in a scene with {scene.ground}, one of them is {article(one)}."


def tell_ground(scene: Scene, rng: np.random.Generator) -> str:
    """The ground, what is behind it, and the things by colour and shape."""
    behind, before = article(PLACES[scene.ground][0]), rng.choice(("before", "in front of"))
    phrases = enumerate_words([article(noun(t, rng)) for t in shuffled(scene, rng)])
    return f"{phrases.capitalize()} {before} {behind} and {scene.ground}."


TELLERS: tuple[Callable[[Scene, np.random.Generator], str], ...] = (
    tell_all,
    tell_relation,
    tell_place,
    tell_count,
    tell_ground,
)


def paint_scene(scene: Scene, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """The picture [size, size, 3]; brightness, horizon and the turn of each shape vary with `rng`."""
    full = DRAWN * size
    _, back, ground = PLACES[scene.ground]
    horizon = int(full * rng.uniform(0.35, 0.65))
    rows = np.arange(full)[:, None]
    below = (rows - horizon) / (full - horizon)
    slope = np.where(rows < horizon, 0.85 + 0.15 * rows / horizon, 0.88 + 0.2 * below)
    column = np.where(rows < horizon, back, ground) * slope * rng.uniform(0.92, 1.06)
    canvas = Image.fromarray(np.repeat(column.clip(0, 255).astype(np.uint8)[:, None], full, 1))
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        turn = rng.uniform(-0.15, 0.15)
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        outline = full * (thing.radius * SHAPES[thing.shape] @ spin + (thing.x, thing.y))
        colour = COLOURS[thing.colour]
        corner = [tuple(p) for p in outline.tolist()]
        draw.polygon(corner, colour)
        edge = tuple(int(0.6 * c) for c in colour) if thing.colour != "black" else (90, 90, 96)
        draw.line([*corner, *corner[:2]], edge, max(1, full // 96), joint="curve")
    return np.asarray(canvas.reduce(DRAWN))


def draw_scene(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """One picture [size, size, 3] and its five captions [5], each from another point of view."""
    scene = random_scene(rng)
    captions = np.array([tell(scene, rng) for tell in TELLERS])
    return paint_scene(scene, rng, size), captions


@functools.cache
def scene_words(scenes: int = 1000, dim: int = 24) -> tuple[list[str], NDArray[np.float32]]:
    """Words of the captions and vectors [words dim] that are near for words used alike.

    They come from how often two words share a caption, in captions of scenes that no data set holds: the leading
    singular vectors of the positive pointwise mutual information.
    """
    texts = []
    for number in range(scenes):
        rng = np.random.default_rng([number, 1 << 20])
        scene = random_scene(rng)
        texts += [sorted(set(re.findall(r"[a-z]+(?:-[a-z]+)*", tell(scene, rng).lower()))) for tell in TELLERS]
    words = sorted({word for text in texts for word in text})
    place = {word: i for i, word in enumerate(words)}
    there = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        there[row, [place[word] for word in text]] = 1
    both, alone = there.T @ there / len(texts), there.mean(0)
    np.fill_diagonal(both, 0)
    with np.errstate(divide="ignore"):
        information = np.maximum(np.log(both / np.outer(alone, alone)), 0)
    across, size, _ = np.linalg.svd(information)
    vectors = across[:, :dim] * np.sqrt(size[:dim])
    return words, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
