"""Labelled embeddings: the one thing that is batched, gathered, queued and compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Points:
    """`n` embeddings with what their labels were encoded to and who they are.

    Attributes:
        z: embeddings, floating [n d].
        code: encoded labels, one row per item [n ...] (see `Target.encode`).
        id: identity of each item, int64 [n]. Two points with the same id are the same thing: their pair never
            counts. Negative ids belong to proxies.
    """

    z: Tensor
    code: Tensor
    id: Tensor

    def __post_init__(self) -> None:
        if self.z.ndim != 2 or not self.z.is_floating_point():
            raise ValueError(f"expected floating-point embeddings [n d], got {self.z.dtype} {list(self.z.shape)}")
        if len(self.code) != len(self.z) or self.id.shape != self.z.shape[:1]:
            raise ValueError(
                f"expected one label and one id per embedding, got {len(self.z)} embeddings, "
                f"labels {list(self.code.shape)} and ids {list(self.id.shape)}"
            )

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice | Tensor) -> Points:
        return Points(self.z[rows], self.code[rows], self.id[rows])

    def detach(self) -> Points:
        """The same points without a graph."""
        return Points(self.z.detach(), self.code, self.id)

    @staticmethod
    def cat(*parts: Points) -> Points:
        """All points of `parts`, in order."""
        return Points(
            torch.cat([p.z for p in parts]), torch.cat([p.code for p in parts]), torch.cat([p.id for p in parts])
        )
