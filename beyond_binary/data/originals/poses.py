"""Sets of poses in the files of their authors: MPII Human Pose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config import DataConfig
from ..readers import Rows
from .common import (
    ORIGINALS,
    CroppedImages,
    as_table,
    check_images_exist,
    elements,
    load_matlab,
    must_exist,
    number,
    split_columns,
)

MPII = "mpii_human_pose_v1_u12_1.mat"
SAMPLES = "samples.json"
MPII_PARTS = (
    f"a folder with {MPII} and images/*.jpg of MPII Human Pose (human-pose.mpi-inf.mpg.de), or with {SAMPLES} and the images "
    "that it names, as FiftyOne exports it"
)
JOINTS = (
    "r_ankle", "r_knee", "r_hip", "l_hip", "l_knee", "l_ankle", "pelvis", "thorax", "upper_neck", "head_top", "r_wrist",
    "r_elbow", "r_shoulder", "l_shoulder", "l_elbow", "l_wrist",
)  # fmt: skip


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

    Where the folder holds a samples.json, the export of FiftyOne is read (Voxel51/MPII_Human_Pose_Dataset on the Hub). It
    does not tell whose place and scale are whose: the middle and the longer side of the box of a person's joints stand for
    them, so its crops, and with them the labels, are not those of the authors' file.

    Args:
        train: share of the people for training; the paper's is 12,366 of 22,285.
        queries: the first so many test people are queries, the others the gallery (with data.role=role).
        missing: most joints of a person that may lack an annotation; 0: all 16 are needed.
        occluded: joints that are annotated but hidden (is_visible 0) count.
        margin: side of the crop around `objpos`, in units of the person's height (200 pixels times `scale`).

    Raises:
        FileNotFoundError: a file of the set is missing.
        ValueError: an option out of its range, a file of another form, or no person with enough joints.
    """
    if not 0 < train < 1 or not 0 <= missing < 16 or not margin > 0:
        raise ValueError(
            f"data.options: expected 0 < train < 1, 0 <= missing < 16 and margin > 0, got train={train}, "
            f"missing={missing}, margin={margin}"
        )
    exported = (path / SAMPLES).exists()
    folder, found = (
        (path, exported_people(path, occluded, config))
        if exported
        else (path / "images", authors_people(path, occluded))
    )
    people = [p for p in found if (~p.known).sum() <= missing and p.joints[:, 2].any()]
    if not people:
        raise ValueError(f"{str(path)!r} has no person with a place, a scale and {16 - missing} joints or more")
    names, split = [p.image for p in people], whole_groups([p.group for p in people], train, config.seed)
    files = [folder / name for name in names]
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


def authors_people(path: Path, occluded: bool) -> list[Person]:
    """The people of the training images with a place and a scale, in the order of the authors' file."""
    must_exist(path, MPII_PARTS)
    file = next((f for f in (path / MPII, *sorted(path.glob(f"*/{MPII}"))) if f.exists()), path / MPII)
    found = load_matlab(must_exist(file, MPII_PARTS)).get("RELEASE")
    if not hasattr(found, "annolist"):
        raise ValueError(f"{str(file)!r} has no struct RELEASE with annolist and img_train; expected {MPII_PARTS}")
    try:
        images = zip(elements(found, "annolist"), elements(found, "img_train"), strict=True)
        return [person for image, train in images if train for person in people_of(image, occluded)]
    except (AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is not of the form of MPII Human Pose: {error}") from error


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


def exported_people(path: Path, occluded: bool, config: DataConfig) -> list[Person]:
    """The people of the training images with joints, in the order of FiftyOne's export.

    Where an image has no people, the script that made the export left those of the image before: they are not taken twice.
    """
    people: list[Person] = []
    before = None
    try:
        for sample in json.loads((path / SAMPLES).read_text(encoding="utf-8"))["samples"]:
            poses = (sample.get("annopoints") or {}).get("keypoints", [])
            drawn = [pose["points"] for pose in poses]
            if poses and drawn != before and "train" in sample["tags"]:
                people += sample_people(sample, poses, sample_size(sample, path, config), occluded)
            before = drawn or before
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(path / SAMPLES)!r} is not FiftyOne's export of MPII Human Pose: {type(error).__name__}: {error}"
        ) from error
    return people


def sample_people(
    sample: dict[str, Any], poses: list[dict[str, Any]], size: tuple[float, float], occluded: bool
) -> Iterator[Person]:
    """The people of a sample of FiftyOne, whose points are shares of the image's width and height, `size`."""
    name, video = sample["filepath"], sample.get("video_id")
    group = f"video {video}" if isinstance(video, int | str) else name
    for index, pose in enumerate(poses, 1):
        joints, known = np.zeros((16, 3)), np.zeros(16, dtype=bool)
        for joint, point, visible in zip(pose["joints_id"], pose["points"], pose["visible"], strict=True):
            j, place = JOINTS.index(joint), [c if isinstance(c, int | float) else np.nan for c in point]
            joints[j] = *(np.array(place) * size), occluded or visible != 0
            known[j] = np.isfinite(joints[j]).all()
        joints[~known] = 0
        if known.any() and (sides := np.ptp(joints[known, :2], axis=0)).max() > 0:
            centre = joints[known, :2].min(axis=0) + sides / 2
            yield Person(name, index, group, centre, sides.max(), joints, known)


def sample_size(sample: dict[str, Any], root: Path, config: DataConfig) -> tuple[float, float]:
    """Width and height of a sample's image in pixels, from its metadata or else from the file; NaN if that is to be skipped."""
    if stored := sample.get("metadata"):
        return stored["width"], stored["height"]
    file = root / sample["filepath"]
    try:
        with Image.open(file) as image:
            return image.size
    except OSError as error:
        if config.bad_images == "skip":
            return math.nan, math.nan
        raise type(error)(
            f"{str(file)!r} has no size in {SAMPLES} and cannot be read: {error}; {MPII_PARTS}"
        ) from error


def whole_groups(groups: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """A mask [n] of whole groups, in an order drawn with the seed, as many as fit into the share (one at least)."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(size))
    count = max(int((np.cumsum(size[order]) <= share * len(groups)).sum()), 1)
    return np.isin(group, order[:count])
