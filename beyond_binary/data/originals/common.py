"""What the readers of published sets share: their registry, checks of files, MATLAB files, crops and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...preprocess import to_rgb
from ...registry import Registry
from ..config import DataConfig
from ..readers import shrink

ORIGINALS = Registry("data set in its original files")


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


def as_table(columns: dict[str, list[Any]]) -> Any:
    """Columns as a pyarrow table."""
    import pyarrow as pa

    return pa.table(columns)


def folder_with(path: Path, file: str, inner: str, what: str) -> Path:
    """The folder that holds `file`: `path`, or the folder `inner` that the archive unpacks to; else FileNotFoundError."""
    found = next((folder for folder in (path, path / inner) if (folder / file).exists()), None)
    return must_exist(path / file, what).parent if found is None else found


def read_words(file: Path, count: int, what: str, *, header: int = 0, sign: str | None = None) -> list[list[str]]:
    """The lines of a text file after the first `header`, each of `count` words, with `sign` or blanks between them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line of more or fewer words, or a file that is not UTF-8.
    """
    try:
        lines = must_exist(file, what).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is no text ({error}); expected {what}") from None
    rows = []
    for number, line in enumerate(lines[header:], header + 1):
        words = line.strip().split(sign)
        if line.strip() and len(words) != count:
            raise ValueError(f"{str(file)!r}, line {number}: expected {count} words, got {line!r}; expected {what}")
        rows += [words] if line.strip() else []
    if not rows:
        raise ValueError(f"{str(file)!r} has no lines; expected {what}")
    return rows


def whole_numbers(words: Sequence[Any], file: Path, what: str) -> NDArray[np.int64]:
    """Words or numbers as integers [n]; a ValueError that names the file where one is none."""
    try:
        return np.array([int(word) for word in words], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r}: expected whole numbers ({error}); expected {what}") from None
