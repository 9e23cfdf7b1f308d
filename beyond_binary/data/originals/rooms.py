"""Sets of rooms in the files of their authors: LSUN room layout."""

from __future__ import annotations

import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import DataConfig
from ..readers import Rows, StoredImages
from ..rooms import SURFACES
from .common import ORIGINALS, as_table, check_images_exist, load_matlab, must_exist, number, split_columns

LSUN_PARTS = (
    "a folder with training.mat, validation.mat, images/*.jpg and layout_seg/*.mat (or .png) of the LSUN room layout "
    "challenge (lsun.cs.princeton.edu/2016, which is down: its copies in the web archive)"
)
LSUN_FILES = {"train": "training", "test": "validation"}
FLOOR, CEILING, LEFT, CENTRE, RIGHT = range(len(SURFACES))
LAYOUT_TYPES = (
    (FLOOR, CEILING, LEFT, CENTRE, RIGHT),
    (FLOOR, LEFT, CENTRE, RIGHT),
    (CEILING, LEFT, CENTRE, RIGHT),
    (CEILING, LEFT, RIGHT),
    (FLOOR, LEFT, RIGHT),
    (FLOOR, CEILING, LEFT, RIGHT),
    (FLOOR, CEILING, CENTRE),
    (LEFT, CENTRE, RIGHT),
    (CEILING, CENTRE),
    (FLOOR, CENTRE),
    (LEFT, RIGHT),
)
"""The surfaces that show in each of the challenge's layout types 0..10, walls from left to right."""


@ORIGINALS.register()
def lsun_rooms(
    path: Path,
    config: DataConfig,
    *,
    layout_type: int | None = None,
    queries: int | None = None,
    side: int = 32,
) -> Rows:
    """Rooms of the LSUN room layout challenge; labels are maps [n side side] of `rooms.SURFACES`.

    training.mat trains and validation.mat tests (testing.mat has no layouts). The challenge numbers the regions of a map
    in the order in which they were found, so they are named by their mean place here: the floor is lowest, the ceiling
    highest, walls follow from left to right; the layout type says which of them there are. Rooms of no known type are left
    out. A map with too many or too few regions for its type is an error, or left out with data.bad_images=skip. Maps are
    reduced to a square, each cell with the region at its centre: let the embedder squash the images likewise.

    Args:
        layout_type: only rooms of this layout type, 0 to 10.
        queries: the first so many test rooms are queries, the others the gallery (with data.role=role).
        side: rows and columns of the maps.
    """
    every = range(len(LAYOUT_TYPES)) if layout_type is None else [layout_type]
    if side < 1 or not set(every) <= set(range(len(LAYOUT_TYPES))):
        raise ValueError(
            f"data.options: expected side of at least 1 and layout_type from 0 to {len(LAYOUT_TYPES) - 1}, got "
            f"side={side}, layout_type={layout_type}"
        )
    must_exist(path, LSUN_PARTS)
    rooms = [(split, room) for split, name in LSUN_FILES.items() for room in lsun_list(path / f"{name}.mat", name)]
    kinds = [number(room, "type") for _, room in rooms]
    if not set(kinds) & set(every):
        counts = ", ".join(f"{kind:.0f} ({count})" for kind, count in sorted(Counter(kinds).items()))
        raise ValueError(
            f"no room in {str(path)!r} has a layout type of data.options.layout_type={layout_type}; types there (rooms): "
            f"{counts}"
        )
    chosen = [
        Room(split, str(room.image).removesuffix(".jpg"), str(getattr(room, "scene", "")), int(kind))
        for (split, room), kind in zip(rooms, kinds, strict=True)
        if kind in every
    ]
    chosen, maps = with_maps(path, chosen, side, config)
    files = [path / "images" / f"{room.name}.jpg" for room in chosen]
    check_images_exist(files, config, LSUN_PARTS)
    names, split = [room.name for room in chosen], split_columns([room.split for room in chosen], queries)
    facts: dict[str, list[Any]] = {
        "file": names,
        "scene": [room.scene for room in chosen],
        "type": [room.kind for room in chosen],
    }
    images = StoredImages([str(f) for f in files], None, config.size)
    return Rows(images, names, as_table({**facts, **split}), labels=maps, target="layout")


class Room(NamedTuple):
    """What training.mat and validation.mat say about a room."""

    split: str
    name: str
    scene: str
    kind: int


def with_maps(path: Path, rooms: list[Room], side: int, config: DataConfig) -> tuple[list[Room], NDArray[np.uint8]]:
    """The rooms whose maps can be used, and these [n side side]; ValueError for others, unless they are left out."""
    with ThreadPoolExecutor() as pool:
        maps = list(pool.map(lambda room: lsun_map(path, room.name, room.kind, side), rooms))
    good = [(room, m) for room, m in zip(rooms, maps, strict=True) if not isinstance(m, Exception)]
    if wrong := [m for m in maps if isinstance(m, Exception)]:
        found = f"{len(wrong)} of {len(maps)} layouts cannot be used, the first: {wrong[0]}"
        if config.bad_images != "skip" or not good:
            raise ValueError(
                f"{found}; expected {LSUN_PARTS} (leave such rooms out with data.bad_images=skip)"
            ) from wrong[0]
        warnings.warn(f"{found}; these rooms are left out", stacklevel=2)
    return [room for room, _ in good], np.stack([m for _, m in good])


def lsun_list(file: Path, name: str) -> list[Any]:
    """The rooms of training.mat or validation.mat."""
    found = load_matlab(must_exist(file, LSUN_PARTS))
    rooms = list(np.atleast_1d(np.asarray(found.get(name, ()), dtype=object)).ravel())
    if not rooms or not all(hasattr(room, "image") and hasattr(room, "type") for room in rooms):
        raise ValueError(f"{str(file)!r} has no struct array {name!r} with image and type; expected {LSUN_PARTS}")
    return rooms


def lsun_map(path: Path, name: str, kind: int, side: int) -> NDArray[np.uint8] | Exception:
    """The map [side side] of a room, or what is wrong with it."""
    folders = ("layout_seg", "layout_seg_images")
    files = [path / folder / f"{name}{ending}" for folder in folders for ending in (".mat", ".png")]
    file = next((f for f in files if f.exists()), None)
    if file is None:
        return FileNotFoundError(f"no {str(files[0])!r} (or .png)")
    try:
        return named_surfaces(read_map(file), kind, side)
    except (ValueError, OSError) as error:
        return ValueError(f"{str(file)!r}: {error}")


def read_map(file: Path) -> NDArray[Any]:
    """The label map [h w] of a .png or of the only matrix (or the one called layout) of a .mat file."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return np.asarray(image if image.mode in ("L", "P", "I;16", "I") else image.convert("L"))
    found = load_matlab(file)
    matrix = found.get("layout", next(iter(found.values())) if len(found) == 1 else None)
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise ValueError(f"no label map called layout, but {', '.join(found) or 'nothing'}")
    return matrix


def named_surfaces(regions: NDArray[Any], kind: int, side: int) -> NDArray[np.uint8]:
    """A map [h w] of numbered regions as a map [side side] of surfaces, named by their place in the picture."""
    h, w = regions.shape
    if not 0 <= regions.min() <= regions.max() <= 65535 or (regions % 1).any():
        raise ValueError("regions that are no numbers from 0 to 65535")
    whole = regions.astype(np.uint16)
    counts = np.bincount(whole.ravel())
    values, surfaces = np.flatnonzero(counts), list(LAYOUT_TYPES[kind])
    if len(values) != len(surfaces):
        raise ValueError(f"{len(values)} regions, but layout type {kind} has {len(surfaces)}")
    number_of = np.zeros(len(counts), dtype=np.uint8)
    number_of[values] = np.arange(len(values))
    region = number_of[whole]
    masks = [region == r for r in range(len(values))]
    y, x = ([float(np.arange(n) @ m.sum(axis) / m.sum()) for m in masks] for axis, n in ((1, h), (0, w)))
    names, left = np.empty(len(values), dtype=np.uint8), set(range(len(values)))
    for surface, extreme in ((FLOOR, max), (CEILING, min)):
        if surface in surfaces:
            found = extreme(left, key=lambda r: y[r])
            names[found] = surface
            left.remove(found)
    walls = [surface for surface in surfaces if surface not in (FLOOR, CEILING)]
    for found, surface in zip(sorted(left, key=lambda r: x[r]), walls, strict=True):
        names[found] = surface
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(int) for length in (h, w))
    return names[region[rows[:, None], columns]]
