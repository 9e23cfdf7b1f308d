"""Names for results that are kept in files: hashes of all that they depend on."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def fingerprint(*things: Any) -> str:
    """A hash of values, arrays (a mapped file: its place, size and time) and objects with their options and tables.

    Raises:
        ValueError: something whose content cannot be told.
    """
    digest = hashlib.sha256()
    for part in _content(list(things)):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _content(value: Any) -> Iterator[bytes]:
    """A value as bytes that are the same in every process."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.memmap) and value.filename is not None:
        status = os.stat(value.filename)
        value = str(value.filename), value.offset, value.shape, status.st_size, status.st_mtime_ns
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif value is None or isinstance(value, bool | int | float | str | bytes | np.generic | torch.dtype | torch.device):
        yield repr(value).encode()
    elif isinstance(value, Mapping):
        yield b"{"
        for key, item in value.items():
            yield from _content(key)
            yield from _content(item)
        yield b"}"
    elif isinstance(value, Sequence | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        yield b"["
        for item in items:
            yield from _content(item)
        yield b"]"
    elif callable(value) and "<" not in getattr(value, "__qualname__", "<"):  # not a function without a name
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif inspect.isfunction(value) or not (hasattr(value, "__dict__") or hasattr(type(value), "__slots__")):
        raise ValueError(f"cannot tell from its content whether {value!r} is the same as another time")
    else:
        yield from _content(type(value))
        yield from _content(value.__getstate__())
