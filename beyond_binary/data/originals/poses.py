"""Sets of poses in the files of their authors: MPII Human Pose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
MPII_PARTS = f"a folder with {MPII} and images/*.jpg of MPII Human Pose (human-pose.mpi-inf.mpg.de)"


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
