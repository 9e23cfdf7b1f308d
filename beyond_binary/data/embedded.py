"""The data sets that come with the library: no network, the same pictures for the same seed, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..registry import Registry
from .figures import draw_figure
from .items import Items, Splits
from .rooms import draw_room
from .scenes import draw_scene

Draw = Callable[[np.random.Generator, int], tuple[NDArray[np.uint8], NDArray[Any]]]

SETS = Registry("embedded set")


@dataclass(frozen=True)
class Pictures(Sequence):
    """Pictures kept as one array, `pixels` [n, h, w, 3] uint8; element i is a PIL image in RGB."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.pixels)

    def __getitem__(self, i: Any) -> Any:
        """Picture i; a slice gives `Pictures`."""
        return Pictures(self.pixels[i]) if isinstance(i, slice) else Image.fromarray(self.pixels[i])


def list_embedded() -> list[str]:
    """The names that `embedded` knows."""
    return SETS.names()


def embedded(
    name: str,
    *,
    seed: int = 0,
    train: int | None = None,
    test: int | None = None,
    size: int = 64,
    class_disjoint: bool = False,
) -> Splits:
    """One of the embedded data sets; its queries are searched among themselves (no gallery).

    | name    | pictures                            | labels                                  | train / test |
    |---------|-------------------------------------|-----------------------------------------|--------------|
    | digits  | scikit-learn's 1,797 scanned digits | classes [n] int64, 0 to 9               | 1198 / 599   |
    | figures | drawn people in continuous poses    | joints [n, 14, 2] float64, (x, y), 0..1 | 1500 / 500   |
    | rooms   | drawn rooms with furniture          | layout [n, 32, 32] uint8, 0 to 4        | 800 / 200    |
    | scenes  | two to four drawn shapes            | five English captions [n, 5] of str     | 800 / 200    |

    The joints are in the order of `beyond_binary.data.figures.JOINTS` (Leeds Sports Pose), the values of the
    layout are indices of `beyond_binary.data.rooms.SURFACES`.

    Args:
        seed: decides everything: the same seed gives the same splits, and with the same versions of NumPy and
            Pillow the same pixels. A drawn set with more items begins with the same items.
        train, test: how many items; None for the defaults above.
        size: height and width of the pictures in pixels.
        class_disjoint: digits only: classes 0 to 4 for training, 5 to 9 for the queries (default: all).

    Raises:
        ValueError: an unknown name (near names are suggested), a count or size below 1, more digits than
            there are, a negative seed, or `class_disjoint` for a set without classes.
    """
    make = SETS[name].build
    for what, count in (("train", train), ("test", test), ("size", size)):
        if count is not None and count < 1:
            raise ValueError(f"embedded set {name!r} needs {what} of at least 1, got {count}")
    if class_disjoint and name != "digits":
        raise ValueError(f"class_disjoint=True needs classes, and {name!r} has none; it works with 'digits'")
    options = {"class_disjoint": True} if class_disjoint else {}
    return make(seed, train, test, size, **options)


@SETS.register()
def digits(seed: int, train: int | None, test: int | None, size: int, class_disjoint: bool = False) -> Splits:
    """Real handwritten digits; every class is split in the same proportion, or the classes are."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    order = balanced_order(labels, np.random.default_rng(seed))
    chosen = labels[order] < 5 if class_disjoint else np.arange(len(order)) >= len(order) // 3
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    learn = part(grey, labels, order[chosen], train, size, "train")
    query = part(grey, labels, order[~chosen], test, size, "test")
    return Splits(learn, query, target="classes", class_names=[str(digit) for digit in range(10)])


def part(
    grey: NDArray[np.uint8], labels: NDArray[np.int64], index: NDArray[np.intp], count: int | None, size: int, what: str
) -> Items:
    """The first `count` (None: all) digits of `index`, enlarged to `size` pixels."""
    if count is not None and count > len(index):
        raise ValueError(f"embedded set 'digits' has {len(index)} {what} items, got {what}={count}")
    index = index[:count]
    small = (Image.fromarray(grey[i]) for i in index)
    large = [np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)) for picture in small]
    pixels = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    names = [f"digit {i:04d}" for i in index]
    return Items(Pictures(pixels), labels[index], names, index.astype(np.int64))


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.intp]:
    """A random order [n] in which every stretch holds the classes in about their overall proportions."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[rng.permutation(members)] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(place, kind="stable")


def drawn(draw: Draw, noun: str, seed: int, counts: tuple[int, int], size: int, target: str | None) -> Splits:
    """Train and query items from a function that draws one picture and its label from a random generator."""
    parts = []
    for split, (count, first) in enumerate(zip(counts, (0, counts[0]), strict=True)):
        generators = (np.random.default_rng([seed, split, i]) for i in range(count))
        pictures, labels = zip(*(draw(rng, size) for rng in generators), strict=True)
        names = [f"{noun} {('train', 'test')[split]} {i:04d}" for i in range(count)]
        parts.append(
            Items(
                Pictures(np.stack(pictures)), np.stack(labels), names, np.arange(first, first + count, dtype=np.int64)
            )
        )
    return Splits(parts[0], parts[1], target=target)


@SETS.register()
def figures(seed: int, train: int | None, test: int | None, size: int) -> Splits:
    """Drawn people with their joints; the target is their pose around the hip midpoint."""
    return drawn(draw_figure, "figure", seed, (train or 1500, test or 500), size, "pose(root=(2, 3))")


@SETS.register()
def rooms(seed: int, train: int | None, test: int | None, size: int) -> Splits:
    """Drawn rooms with the map of floor, ceiling and walls behind the furniture."""
    return drawn(draw_room, "room", seed, (train or 800, test or 200), size, "layout")


@SETS.register()
def scenes(seed: int, train: int | None, test: int | None, size: int) -> Splits:
    """Drawn shapes with five captions each; the target is the distance of the captions."""
    target = "captions(vectors='embedded:scenes')"
    return drawn(draw_scene, "scene", seed, (train or 800, test or 200), size, target)
