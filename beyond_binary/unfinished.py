"""Searches for neighbours that are not finished, kept in a file so that an interruption loses little."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

EVERY = 60.0
"""Seconds between two savings; an error or an interrupt from the keyboard saves at once."""


class Unfinished:
    """The neighbours that are found so far, and which parts of the search are done.

    Attributes:
        indices: [n k] int64, -1 where nothing is found yet.
        distances: [n k] float64, NaN there.
        done: [parts] bool.

    Args:
        n: items that are searched for.
        k: neighbours of each.
        parts: of the search, the same in each attempt.
        file: where all this is kept, and read again; None: nowhere. A file of other shapes is not taken.
    """

    def __init__(self, n: int, k: int, parts: int, file: Path | None = None) -> None:
        self.indices, self.distances = torch.full((n, k), -1), torch.full((n, k), torch.nan, dtype=torch.float64)
        self.done, self.file, self._saved = torch.zeros(parts, dtype=torch.bool), file, time.monotonic()
        kept = {} if file is None else read_tensors(file)
        if {name: t.shape for name, t in kept.items()} == {name: t.shape for name, t in self._tensors().items()}:
            self.indices, self.distances, self.done = kept["indices"], kept["distances"], kept["done"]

    def _tensors(self) -> dict[str, Tensor]:
        return {"indices": self.indices, "distances": self.distances, "done": self.done}

    def left(self) -> list[int]:
        """The parts that are to be done."""
        return torch.nonzero(~self.done)[:, 0].tolist()

    def finish(self, part: int) -> None:
        """A part is done, and what it found is in the tables."""
        self.done[part] = True
        if time.monotonic() - self._saved >= EVERY:
            self._save()

    def _save(self) -> None:
        if self.file is not None:
            write_tensors(self.file, self._tensors())
        self._saved = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What is done by then is saved if the search in this context breaks off."""
        try:
            yield
        except BaseException:
            self._save()
            raise


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; none if there is no file that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        return {}


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file: under a name of its own until it is whole, so that others see all of it or nothing."""
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{file.stem[:16]}.", suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        os.replace(part, file)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
