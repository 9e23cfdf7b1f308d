"""Labels that are names: of items, of the members of a set, of places in a hierarchy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..registry import suggest
from . import LabelError


def as_names(labels: Any) -> np.ndarray[Any, Any] | None:
    """Text labels [n] or [n m] as an array [n m]; None where labels are no text."""
    if isinstance(labels, Tensor):
        return None
    try:
        texts = np.asarray(labels)
    except ValueError:  # rows of different lengths
        return None
    if texts.dtype.kind == "O" and texts.size and all(isinstance(text, str) for text in texts.flat):
        texts = texts.astype(np.str_)
    if texts.dtype.kind != "U" or texts.ndim not in (1, 2):
        return None
    return texts if texts.ndim == 2 else texts[:, None]


def item_names(labels: Any, target: str) -> list[str]:
    """The names of items, text [n] or [n 1]. Raises ValueError where labels are something else."""
    texts = as_names(labels)
    if texts is None or texts.shape[1] != 1:
        raise ValueError(
            f"target {target!r} knows its items by name and needs text [n] or [n 1]; from a table, give the column of names "
            "as a list (data.label '[file]'), as a text column alone is read as classes"
        )
    return [text.strip() for text in texts[:, 0].tolist()]


def read_names(names: Sequence[str] | str | Path) -> dict[str, int]:
    """The number of each name: its place in a sequence, or its line in a text file of one name a line.

    Raises:
        ValueError: an empty or repeated name.
    """
    where = "names"
    if isinstance(names, str | Path):
        where, names = str(names), Path(names).read_text(encoding="utf-8").splitlines()
    number: dict[str, int] = {}
    for place, name in enumerate(text.strip() for text in names):
        if not name or name in number:
            raise ValueError(f"{where}: expected names that differ, but number {place} is {name!r}")
        number[name] = place
    return number


def number_of(name: str, number: dict[str, int], row: int, target: str) -> int:
    """A name's number. Raises LabelError, which names the item and near names, where it has none."""
    if name not in number:
        near = suggest(name, number) if len(number) < 1000 else ""
        raise LabelError(row, f"target {target!r}: {name!r} of item {row} is none of its {len(number)} names{near}")
    return number[name]


def stand_in(name: str) -> int:
    """A number from 2^62 on that stands for a name, the same in every process; two names share one in 1 of 4e18 cases."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2 | 1 << 62
