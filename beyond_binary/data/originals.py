"""Readers of well-known data sets in the files that their authors publish: `NAME:PATH` as `data.source`."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..preprocess import to_rgb
from ..registry import Registry
from .config import DataConfig
from .readers import Rows, StoredImages, shrink
from .rooms import SURFACES

ORIGINALS = Registry("data set in its original files")


def is_original(source: str) -> bool:
    """Whether a source is `NAME:PATH` of a set that a reader here knows."""
    return source.partition(":")[0] in ORIGINALS.names() and ":" in source


def read_original(config: DataConfig) -> Rows:
    """Rows of the set that `config.source` names, with their labels, and the columns split and role.

    split is train, val or test; role is train (also for val), query or gallery. All test rows are queries, or, with
    the option `queries`, the first so many; the other test rows are then the gallery.

    Raises:
        FileNotFoundError: a file that the set consists of is missing; images too, unless `bad_images` is "skip".
        ValueError: an option or a file that does not fit.
    """
    name, _, path = config.source.partition(":")
    ORIGINALS.check_options(name, config.options, fixed=("path", "config"))
    ORIGINALS.check_values(name, config.options)
    if config.options.get("queries") is not None and config.role is None:
        raise ValueError(
            "data.options.queries divides the test rows by the column 'role'; set data.role to role as well"
        )
    rows: Rows = ORIGINALS[name].build(Path(path).expanduser(), config, **config.options)
    return rows


def split_columns(split: Sequence[str], queries: int | None) -> dict[str, list[str]]:
    """The columns split and role; ValueError if there are not more test rows than `queries`."""
    test = np.flatnonzero(np.array(split) == "test")
    if queries is not None and not 1 <= queries < len(test):
        raise ValueError(f"data.options.queries={queries}: expected 1 <= queries < {len(test)} (test rows)")
    role = np.full(len(split), "train", dtype="U7")
    role[test] = "query"
    if queries is not None:
        role[test[queries:]] = "gallery"
    return {"split": list(split), "role": role.tolist()}


# ---------------------------------------------------------------- files


def must_exist(path: Path, what: str) -> Path:
    """The path if it is there; else a FileNotFoundError that says what the set consists of."""
    if not path.exists():
        raise FileNotFoundError(f"no {str(path)!r}; expected {what}")
    return path


def check_images_exist(files: Sequence[Path], config: DataConfig, what: str) -> None:
    """A FileNotFoundError that names the first missing files, unless bad images are to be left out."""
    if config.bad_images == "skip":
        return
    inside = {folder: {p.name for p in folder.iterdir()} for folder in {f.parent for f in files} if folder.is_dir()}
    if missing := [str(f) for f in files if f.name not in inside.get(f.parent, ())]:
        first = ", ".join(map(repr, missing[:3]))
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} images are missing, the first: {first}; expected {what} "
            f"(leave missing images out with data.bad_images=skip)"
        )


def load_matlab(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file up to version 7.2, structs as objects; ValueError for any other file."""
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise ValueError(
            f"{str(path)!r} is a MATLAB 7.3 (HDF5) file, which SciPy does not read; save it in MATLAB with "
            f"save(..., '-v7'), or take the authors' own file"
        ) from None
    except Exception as error:  # SciPy meets a broken file with whatever goes wrong first
        raise ValueError(f"cannot read {str(path)!r} as a MATLAB file: {error}") from error
    return {name: value for name, value in found.items() if not name.startswith("__")}


def elements(struct: Any, field: str) -> list[Any]:
    """The elements of a struct array in a field; squeezing left one as itself and none as an empty array."""
    return list(np.atleast_1d(np.asarray(getattr(struct, field, ()), dtype=object)).ravel())


def number(struct: Any, field: str) -> float:
    """The number in a field, also when written as text; NaN if it is missing or empty."""
    found = elements(struct, field)
    return float(found[0]) if len(found) == 1 else float("nan")


# ---------------------------------------------------------------- MPII Human Pose

MPII = "mpii_human_pose_v1_u12_1.mat"
MPII_PARTS = f"a folder with {MPII} and images/*.jpg of MPII Human Pose (human-pose.mpi-inf.mpg.de)"


@dataclass(frozen=True)
class CroppedImages(Sequence):
    """Squares of image files: `boxes` [n 4] are left, top, right, bottom in stored pixels; black outside the image."""

    files: list[str]
    boxes: NDArray[np.int64]
    size: int | None = None

    def __len__(self) -> int:
        """The number of squares."""
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        """One square, at most `size` pixels wide."""
        left, top, right, bottom = self.boxes[index].tolist()
        with Image.open(self.files[index]) as image:
            return shrink(to_rgb(image).crop((left, top, right, bottom)), self.size)


@ORIGINALS.register()
def mpii(
    path: Path,
    config: DataConfig,
    *,
    train: float = 0.555,
    queries: int | None = None,
    missing: int = 0,
    occluded: bool = True,
    margin: float = 1.25,
) -> Rows:
    """People of MPII Human Pose (Andriluka et al., CVPR 2014), cropped; labels joints [n 16 3].

    A joint is (x, y) in shares of the crop and whether it counts (0 or 1; the place is 0 where it is not annotated).
    Read are people of the images with `img_train` that have a place, a scale and joints: the others have no pose in the
    file. The lists of the log-ratio paper are not public any more. Instead all people of one video are on one side: whole
    videos (images, where the video is not known) in an order drawn with `data.seed` train, as long as they are at most
    the share `train` of the people; the rest is for testing.

    Args:
        train: share of the people for training; the paper's is 12,366 of 22,285.
        queries: the first so many test people are queries, the others the gallery (with data.role=role).
        missing: most joints of a person that may lack an annotation; 0: all 16 are needed.
        occluded: joints that are annotated but hidden (is_visible 0) count.
        margin: side of the crop around `objpos`, in units of the person's height (200 pixels times `scale`).
    """
    if not 0 < train < 1 or not 0 <= missing < 16 or not margin > 0:
        raise ValueError(
            f"data.options: expected 0 < train < 1, 0 <= missing < 16 and margin > 0, got train={train}, "
            f"missing={missing}, margin={margin}"
        )
    people = read_mpii(path, missing, occluded)
    names, split = [p.image for p in people], whole_groups([p.group for p in people], train, config.seed)
    files = [path / "images" / name for name in names]
    check_images_exist(files, config, MPII_PARTS)

    height, centre = np.array([p.height for p in people]), np.stack([p.centre for p in people])
    side = np.maximum(np.rint(margin * height), 1)[:, None]
    corner = np.rint(centre - side / 2)
    boxes = np.concatenate([corner, corner + side], axis=1).astype(np.int64)
    joints, known = np.stack([p.joints for p in people]), np.stack([p.known for p in people])
    joints[..., :2] = np.where(known[..., None], (joints[..., :2] - corner[:, None]) / side[:, None], 0)

    columns: dict[str, list[Any]] = {
        "file": names,
        "person": [p.number for p in people],
        "group": [p.group for p in people],
    }
    columns |= split_columns(["train" if first else "test" for first in split], queries)
    images = CroppedImages([str(f) for f in files], boxes, config.size)
    return Rows(
        images, [f"{p.image} person {p.number}" for p in people], as_table(columns), labels=joints, target="pose"
    )


class Person(NamedTuple):
    """A person of an image: place in it, joints [16 3] in pixels with what counts, which of them are known [16]."""

    image: str
    number: int
    group: str
    centre: NDArray[np.float64]
    height: float
    joints: NDArray[np.float64]
    known: NDArray[np.bool_]


def read_mpii(path: Path, missing: int, occluded: bool) -> list[Person]:
    """The usable people of the training images, in the order of the file."""
    must_exist(path, MPII_PARTS)
    file = next((f for f in (path / MPII, *sorted(path.glob(f"*/{MPII}"))) if f.exists()), path / MPII)
    found = load_matlab(must_exist(file, MPII_PARTS)).get("RELEASE")
    if not hasattr(found, "annolist"):
        raise ValueError(f"{str(file)!r} has no struct RELEASE with annolist and img_train; expected {MPII_PARTS}")
    try:
        images = zip(elements(found, "annolist"), elements(found, "img_train"), strict=True)
        people = [person for image, train in images if train for person in people_of(image, occluded)]
    except (AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is not of the form of MPII Human Pose: {error}") from error
    people = [p for p in people if (~p.known).sum() <= missing and p.joints[:, 2].any()]
    if not people:
        raise ValueError(f"{str(file)!r} has no person with a place, a scale and {16 - missing} joints or more")
    return people


def people_of(image: Any, occluded: bool) -> Iterator[Person]:
    """The people of an element of annolist that have a place and a scale."""
    name, video = str(image.image.name), number(image, "vididx")
    group = name if np.isnan(video) else f"video {video:.0f}"
    for index, person in enumerate(elements(image, "annorect"), 1):
        place = [number(spot, axis) for spot in elements(person, "objpos")[:1] for axis in "xy"]
        height = 200 * number(person, "scale")
        if len(place) < 2 or not np.isfinite([*place, height]).all() or height <= 0:
            continue
        joints, known = np.zeros((16, 3)), np.zeros(16, dtype=bool)
        for point in [p for part in elements(person, "annopoints")[:1] for p in elements(part, "point")]:
            j, x, y = (number(point, field) for field in ("id", "x", "y"))
            if j not in range(16):
                raise ValueError(f"{name} has a joint with the id {j:g}, expected 0 to 15")
            joints[int(j)] = x, y, occluded or number(point, "is_visible") != 0
            known[int(j)] = np.isfinite(x + y)
        joints[~known] = 0
        yield Person(name, index, group, np.array(place), height, joints, known)


def whole_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """A mask [n] of whole groups, in an order drawn with the seed, as many as fit into the share (one at least)."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(size))
    count = max(int((np.cumsum(size[order]) <= share * len(groups)).sum()), 1)
    return np.isin(group, order[:count])


# ---------------------------------------------------------------- LSUN room layout

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


# ---------------------------------------------------------------- Karpathy's splits of captioned images

KARPATHY_PARTS = (
    "dataset_coco.json (or _flickr8k, _flickr30k) of Karpathy's splits (cs.stanford.edu/people/karpathy/deepimagesent), "
    "beside the images: train2014/ and val2014/ of MS-COCO (cocodataset.org), or name their folder in data.options.images"
)


@ORIGINALS.register()
def karpathy(
    path: Path,
    config: DataConfig,
    *,
    images: str | None = None,
    captions: int = 5,
    restval: bool = True,
    queries: int | None = None,
) -> Rows:
    """Images with captions in the splits of Karpathy and Fei-Fei (CVPR 2015); labels texts [n captions].

    Args:
        images: folder of the images; unset: that of the JSON file.
        captions: the first so many captions of an image; where there are fewer, the rest is "".
        restval: images of the split restval train (113,287 training images in MS-COCO); else they are left out.
        queries: the first so many test images are queries, the others the gallery (with data.role=role).
    """
    if captions < 1:
        raise ValueError(f"data.options.captions={captions}: expected at least 1")
    must_exist(path, KARPATHY_PARTS)
    root = must_exist(Path(images).expanduser() if images else path.parent, KARPATHY_PARTS)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        read = [
            (e["split"], Path(e.get("filepath", ""), e["filename"]), [s["raw"] for s in e["sentences"]])
            for e in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise ValueError(
            f"{str(path)!r} is not of the form of Karpathy's splits ({type(error).__name__}: {error}); expected images "
            f"with split, filename and sentences with raw, as in {KARPATHY_PARTS}"
        ) from error
    read = [entry for entry in read if entry[0] in ("train", "val", "test") or (entry[0] == "restval" and restval)]
    if not read:
        raise ValueError(f"{str(path)!r} has no images in the splits train, restval, val and test")
    files = [root / file for _, file, _ in read]
    check_images_exist(files, config, KARPATHY_PARTS)
    split = ["train" if name == "restval" else name for name, _, _ in read]
    texts = [[" ".join(text.split()) for text in raw[:captions]] for _, _, raw in read]
    columns = {"file": [str(file) for _, file, _ in read], **split_columns(split, queries)}
    labels = np.array([[*lines, *[""] * (captions - len(lines))] for lines in texts], dtype=np.str_)
    return Rows(
        StoredImages([str(f) for f in files], None, config.size), columns["file"], as_table(columns), labels=labels
    )


def as_table(columns: dict[str, list[Any]]) -> Any:
    """Columns as a pyarrow table."""
    import pyarrow as pa

    return pa.table(columns)
