"""All label distances of a run, computed once and kept in a file that the target `precomputed` reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from .fingerprint import fingerprint
from .parallel import in_parallel
from .targets import Gives, LabelError, Target, innermost
from .targets.tables import Precomputed

SIDE = 256
"""Items in a tile's row."""


def label_distances(
    target: Target,
    code: Tensor,
    folder: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    side: int = SIDE,
) -> Path:
    """Write the distances of all items from each other to a float32 file [n n], once, and say where it is.

    The file's name is a hash of what the distances depend on (the codes, the target with its options and tables), so
    that the same call again finds it and another one never takes it by mistake. Tiles that are finished are recorded:
    after an interruption the same call goes on from there, and a file that is not finished has another name. Read it
    by `precomputed('...')` on labels that are the items' numbers.

    Args:
        target: any target whose distance is the same both ways.
        code: [n ...] what the target encodes per item.
        folder: where the file goes.
        workers: processes; None: one a core.
        progress: show a progress bar.
        side: items in a row of a tile; memory is O(side^2) beside what the target needs.

    Returns:
        the file, `distances-<hash>.npy`.

    Raises:
        ValueError: a distance that is negative, infinite, not the same both ways or not 0 from an item to itself.
    """
    if getattr(target, "relative", False):
        raise ValueError(
            f"label_distances needs a distance of two items alone; {target} looks at which others are there"
        )
    if isinstance(innermost(target), nn.Module):
        raise ValueError(f"label_distances needs distances that stay; those of {target} change with the embeddings")
    code = code.cpu()
    path = Path(folder).absolute() / f"distances-{fingerprint(target, code)}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _journal(path.with_suffix(f".{side}.done")) as journal:
        if path.exists():
            return path
        part = path.with_suffix(f".{side}.part")
        if not part.exists():
            journal.truncate(0)
            _create(part, len(code))
        done = _recorded(journal)
        tiles = [(i, j) for i in range(0, len(code), side) for j in range(i, len(code), side)]
        left = [tile for tile in tiles if tile not in done]
        shared = (target, code, part, side)
        for tile in in_parallel(
            _write,
            shared,
            left,
            workers=workers,
            title="label distances",
            progress=progress,
            done=len(tiles) - len(left),
        ):
            journal.write(f"{tile[0]} {tile[1]}\n")
            journal.flush()
            os.fsync(journal.fileno())
        os.replace(part, path)
        for other in path.parent.glob(f"{path.stem}.*.part"):  # of an interrupted call with another side
            other.unlink()
            other.with_suffix(".done").unlink(missing_ok=True)
    return path


class KnownDistances:
    """A target that looks the distances between certain items up in the file of `label_distances`.

    It reads the labels that the target reads and stands in its place wherever these items alone are compared.

    Args:
        target: the target whose distances they are.
        labels: [n ...] of the items.
        folder, **options: where the file is or goes, and the options of `label_distances`.

    Raises:
        ValueError: a target of classes, labels that it cannot read, or distances that a file cannot hold.
    """

    def __init__(self, target: Target, labels: Any, folder: str | Path, **options: Any) -> None:
        if target.gives == "same":
            raise ValueError(f"{target} says only which labels are the same; that needs no file of distances")
        code = target.encode(labels).cpu()
        self.target, self._table = target, Precomputed(label_distances(target, code, folder, **options), check=False)
        self._place = {row.tobytes(): place for place, row in enumerate(code.numpy())}

    def __repr__(self) -> str:
        return f"KnownDistances({self.target})"

    @property
    def gives(self) -> Gives:
        """As the target whose distances they are."""
        return self.target.gives

    @property
    def regions(self) -> int | None:
        """Regions of a layout, whose distances are 1 - mIoU (what `mean_iou_at_k` asks for); None for other targets."""
        return getattr(self.target, "regions", None)

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Places [n] int64 in the file. Raises LabelError for a label that none of the items has."""
        places = [self._place.get(row.tobytes(), -1) for row in self.target.encode(labels).cpu().numpy()]
        if -1 in places:
            row = places.index(-1)
            raise LabelError(
                row,
                f"the label of item {row} of {len(places)} is none of the {len(self._place)} whose distances were computed; "
                "compute them of all labels, and let augmentation not move labels",
            )
        return torch.tensor(places, dtype=torch.int64)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Distances [q k] float32 from the file."""
        return self._table.distance(code_q, code_k, valid)


def _write(shared: tuple[Target, Tensor, Path, int], tile: tuple[int, int]) -> tuple[int, int]:
    """Compute one tile and write it and its mirror image."""
    (target, code, part, side), (i, j) = shared, tile
    with torch.no_grad():
        y = target.distance(code[i : i + side], code[j : j + side]).numpy().astype(np.float32)
        back = y.T[:1] if i == j else target.distance(code[j : j + 1], code[i : i + side]).numpy().astype(np.float32)
    bad = (y < 0) | np.isinf(y)
    slack = 1e-5 * np.max(y, initial=0, where=np.isfinite(y))
    with np.errstate(invalid="ignore"):  # the first column stands for all
        bad[:, 0] |= (np.abs(y[:, 0] - back[0]) > slack) | (np.isnan(y[:, 0]) != np.isnan(back[0]))
    if i == j:
        with np.errstate(invalid="ignore"):
            bad |= (np.abs(y - y.T) > slack) | (np.isnan(y) != np.isnan(y.T))
        bad |= np.eye(len(y), dtype=bool) & (y > slack)
        y = np.triu(y, 1)
        y += y.T
    if bad.any():
        a, b = (int(p[0]) for p in np.nonzero(bad))
        raise ValueError(
            f"label_distances needs finite distances of at least 0, the same both ways and 0 from an item to itself, but "
            f"those of items {i + a} and {j + b} are not"
        )
    file = np.load(part, mmap_mode="r+")
    file[i : i + side, j : j + side] = y
    file[j : j + side, i : i + side] = y.T
    file.flush()
    return tile


def _create(part: Path, n: int) -> None:
    """A file of n x n float32, under its name only when it is there in full."""
    if shutil.disk_usage(part.parent).free < 4 * n * n:
        raise OSError(f"{part.parent} has no room for the {4 * n * n / 1e9:.1f} GB of distances between {n} items")
    new = part.with_suffix(".new")
    np.lib.format.open_memmap(new, "w+", np.float32, (n, n)).flush()
    os.replace(new, part)


@contextmanager
def _journal(path: Path) -> Iterator[TextIO]:
    """A file of the tiles that are finished, a line each, for one process at a time; it is removed in the end.

    After an error or an interruption it stays.
    """
    with path.open("a+") as file:
        _lock(file)
        yield file
    path.unlink(missing_ok=True)


def _recorded(journal: TextIO) -> set[tuple[int, int]]:
    """The tiles in a journal; what follows is written after them."""
    journal.seek(0)
    whole = journal.read().rpartition("\n")[0]  # a line that was cut off does not count
    journal.write("\n")
    return {(int(i), int(j)) for i, j in (line.split() for line in whole.splitlines() if line.count(" ") == 1)}


def _lock(file: Any) -> None:
    """Wait until no other process has the file; where the system has no such locks, go on."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)
