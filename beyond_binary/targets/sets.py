"""Targets on labels that are sets or places in a hierarchy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import TARGETS, Gives, LabelError
from .names import as_names, number_of, read_names, stand_in
from .vectors import as_tensor

LEVELS = 16
"""Levels of a hierarchy whose places are given by name."""


def as_integers(labels: Any, target: str, shape: str, ndim: int) -> Tensor:
    """Integer labels of a rank as int64; raises a ValueError that names the target otherwise."""
    try:
        code = as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"target {target!r} needs integers {shape}, all rows of one length") from None
    if code.is_floating_point() or code.is_complex() or code.ndim != ndim:
        raise ValueError(f"target {target!r} needs integers {shape}, got {code.dtype} {list(code.shape)}")
    return code.long()


@TARGETS.register("multi_label")
@dataclass(frozen=True)
class MultiLabel:
    """Jaccard distance between label sets: one minus the labels in both over the labels in either.

    Labels: multi-hot rows [n l] of 0 and 1 (or False and True); or with `names` the labels of each set by name, text [n m]
    (or [n]) with one or several separated by ";" in a cell. Two empty sets are the same. The distance lies in [0, 1].

    Args:
        names: all label names, or a text file with one name a line. None: labels are multi-hot rows.
    """

    names: Sequence[str] | str | None = None
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        number = None if self.names is None else read_names(self.names)
        object.__setattr__(self, "_number", number)  # the dataclass is frozen

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Multi-hot rows as uint8 [n l]."""
        number: dict[str, int] | None = self._number  # type: ignore[attr-defined]
        if number is not None:
            return self._by_name(labels, number)
        code = as_integers(labels, "multi_label", "[n l] of 0 and 1 (a column per label)", 2)
        if not torch.compiler.is_compiling() and ((code != 0) & (code != 1)).any():
            raise ValueError(f"target 'multi_label' needs 0 and 1 alone, got {int(code.min())}..{int(code.max())}")
        return code.to(torch.uint8)

    def _by_name(self, labels: Any, number: dict[str, int]) -> Tensor:
        texts = as_names(labels)
        if texts is None:
            raise ValueError(
                "target 'multi_label' with names needs text [n m]; from a table, give the column as a list "
                "(data.label '[tags]'), as a text column alone is read as classes"
            )
        code = torch.zeros(len(texts), len(number), dtype=torch.uint8)
        for row, cells in enumerate(texts.tolist()):
            for name in filter(None, (name.strip() for cell in cells for name in cell.split(";"))):
                code[row, number_of(name, number, row, "multi_label")] = 1
        return code

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Jaccard distances [q k], float64."""
        both = code_q.float() @ code_k.float().T
        either = code_q.sum(1)[:, None] + code_k.sum(1)[None, :] - both
        return torch.where(either > 0, 1 - both.double() / either.clamp_min(1), 0)


@TARGETS.register("tree")
@dataclass(frozen=True)
class Tree:
    """Path length between two places of a hierarchy: up from one to where both meet, down to the other.

    Labels: integers [n levels], the node of each level from the top down (for example order, family, genus,
    species); a negative number ends a shorter path. Or text [n] of whole paths such as "animal/cat/siamese", or [n m] of
    parts of them, of at most 16 levels. Two items meet at the last level down to which they agree.

    Args:
        lengths: length of the edge into each level; None: 1 each.
    """

    lengths: Sequence[float] | None = None
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if self.lengths is not None and not all(length >= 0 and math.isfinite(length) for length in self.lengths):
            raise ValueError(f"tree: lengths must be finite and at least 0, got {tuple(self.lengths)}")

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Paths [n levels] int64, -1 from where they end."""
        if (texts := as_names(labels)) is not None:
            return self._by_name(texts)
        code = as_integers(labels, "tree", "[n levels]", 2)
        if self.lengths is not None and code.shape[1] != len(self.lengths):
            raise ValueError(f"target 'tree' has {len(self.lengths)} lengths but the labels {code.shape[1]} levels")
        return torch.where((code < 0).cumsum(1) > 0, -1, code)

    def _by_name(self, texts: Any) -> Tensor:
        levels = LEVELS if self.lengths is None else len(self.lengths)
        code = torch.full((len(texts), levels), -1, dtype=torch.int64)
        for row, cells in enumerate(texts.tolist()):
            path = [name.strip() for cell in cells for name in cell.split("/") if name.strip()]
            if len(path) > levels:
                raise LabelError(row, f"target 'tree': item {row} has {len(path)} levels, more than {levels}: {path}")
            code[row, : len(path)] = torch.tensor([stand_in(name) for name in path], dtype=torch.int64)
        return code

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Path lengths [q k], float64."""
        lengths = self.lengths or [1.0] * code_q.shape[1]
        y = code_q.new_zeros(len(code_q), len(code_k), dtype=torch.float64)
        together = torch.ones_like(y, dtype=torch.bool)
        for a, b, edge in zip(code_q.unbind(1), code_k.unbind(1), lengths, strict=True):
            together &= a[:, None] == b[None, :]
            y += ~together * edge * ((a >= 0).double()[:, None] + (b >= 0).double()[None, :])
        return y
