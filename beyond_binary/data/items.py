"""The two shapes of every data set: labelled images, and their division into train, query and gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Items:
    """n labelled images.

    images: `images[i]` is a PIL image in RGB, decoded when asked for.
    labels: [n ...] what the target encodes (int classes, float vectors, joints [n j 2|3], maps [n h w]).
    names:  n readable names ("0001.jpg", "row 12"), used in errors and galleries.
    ids:    [n] int64, unique within the data set (not only within the split).

    Raises ValueError where the four differ in length or `ids` are not unique integers.
    """

    images: Sequence
    labels: np.ndarray
    names: Sequence[str]
    ids: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("images", "labels", "names", "ids")}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise ValueError(f"Items needs one label, one name and one id for each image, got {found}")
        if self.ids.dtype != np.int64 or self.ids.ndim != 1:
            found = f"{self.ids.dtype} {list(self.ids.shape)}"
            raise ValueError(f"Items needs ids of shape [n] and type int64, got {found}; use np.arange(n)")
        if len(np.unique(self.ids)) < len(self.ids):
            values, counts = np.unique(self.ids, return_counts=True)
            double = f"{values[counts > 1][0]} is there {counts[counts > 1][0]} times"
            raise ValueError(f"Items needs unique ids, but {double}; an id names one image")

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    def select(self, indices: Sequence[int] | np.ndarray) -> Items:
        """The items at `indices` (integers, or a mask [n] of bools), in that order; images stay undecoded."""
        index = np.asarray(indices)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        names = [self.names[i] for i in index.tolist()]
        return Items(Picked(self.images, index), self.labels[index], names, self.ids[index])


@dataclass(frozen=True)
class Picked(Sequence):
    """The elements of `images` at `positions` [m], each fetched only when asked for."""

    images: Sequence
    positions: np.ndarray

    def __len__(self) -> int:
        """The number of positions."""
        return len(self.positions)

    def __getitem__(self, i: Any) -> Any:
        """The image at `positions[i]`; a slice gives a `Picked`."""
        at = self.positions[i]
        return Picked(self.images, at) if isinstance(i, slice) else self.images[int(at)]


@dataclass(frozen=True)
class Splits:
    """A data set ready for training and evaluation.

    gallery None: the queries are searched among themselves, each without itself.
    target: the spec of the target that fits the labels ("classes", "pose(root=(2, 3))"), if the set knows it.
    class_names: a name per class, where the labels are classes 0, 1, 2, ...
    origin: what exactly was read of a set on the Hub: set, config, splits, revision and commit.

    Raises ValueError where the labels of two splits differ in shape per item, or a split is empty.
    """

    train: Items
    query: Items
    gallery: Items | None = None
    target: str | None = None
    class_names: list[str] | None = None
    origin: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "query": self.query, "gallery": self.gallery}
        for name, items in parts.items():
            if items is None:
                continue
            if len(items) == 0:
                raise ValueError(f"Splits needs at least one image per split, but '{name}' has none")
            if items.labels.shape[1:] != self.train.labels.shape[1:]:
                shapes = [list(part.labels.shape[1:]) for part in (self.train, items)]
                raise ValueError(
                    f"Splits needs labels of one shape per item, got {shapes[0]} in 'train' and {shapes[1]} in '{name}'"
                )
