"""Targets on labels that are sets or places in a hierarchy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import TARGETS, Gives
from .vectors import as_tensor


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

    Labels: multi-hot rows [n l] of 0 and 1 (or False and True). Two empty sets are the same. The distance lies in
    [0, 1].
    """

    gives: ClassVar[Gives] = "magnitude"

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Multi-hot rows as uint8 [n l]."""
        code = as_integers(labels, "multi_label", "[n l] of 0 and 1 (a column per label)", 2)
        if not torch.compiler.is_compiling() and ((code != 0) & (code != 1)).any():
            raise ValueError(f"target 'multi_label' needs 0 and 1 alone, got {int(code.min())}..{int(code.max())}")
        return code.to(torch.uint8)

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
    species); a negative number ends a shorter path. Two items meet at the last level down to which they agree.

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
        code = as_integers(labels, "tree", "[n levels]", 2)
        if self.lengths is not None and code.shape[1] != len(self.lengths):
            raise ValueError(f"target 'tree' has {len(self.lengths)} lengths but the labels {code.shape[1]} levels")
        return torch.where((code < 0).cumsum(1) > 0, -1, code)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Path lengths [q k], float64."""
        lengths = self.lengths or [1.0] * code_q.shape[1]
        y = code_q.new_zeros(len(code_q), len(code_k), dtype=torch.float64)
        together = torch.ones_like(y, dtype=torch.bool)
        for a, b, edge in zip(code_q.unbind(1), code_k.unbind(1), lengths, strict=True):
            together &= a[:, None] == b[None, :]
            y += ~together * edge * ((a >= 0).double()[:, None] + (b >= 0).double()[None, :])
        return y
