"""Labelled embeddings: the one thing that is batched, gathered, queued and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        parts: what `cat` joined them from, or nothing.
    """

    z: Tensor
    code: Tensor
    id: Tensor
    parts: tuple[Points, ...] = ()

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

    def each(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` of each embedding, part by part: a part without a graph needs none for this, nor a gradient of it."""
        return torch.cat([part.each(change) for part in self.parts]) if self.parts else change(self.z)

    @staticmethod
    def cat(*parts: Points) -> Points:
        """All points of `parts`, in order."""
        z, code, id = (torch.cat(values) for values in zip(*((p.z, p.code, p.id) for p in parts), strict=True))
        return Points(z, code, id, parts)


def nan_if_nan(loss: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """The loss, or NaN if there is a NaN in an embedding (which a maximum shows, quicker than a look at each)."""
    tops = [z.detach().amax() for z in ([q] if k is q else [q, k]) if z.numel()]
    return torch.where(torch.stack(tops).isnan().any(), torch.nan, loss) if tops else loss


def full_precision(x: Any) -> Any:
    """Points or embeddings in at least single precision."""
    if isinstance(x, Points):
        return Points(full_precision(x.z), x.code, x.id)
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"expected floating-point embeddings [n d] as a tensor, got {what}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their precisions, at least single (a proxy may be wider or narrower than the batch)."""
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(wide), b.to(wide)


def checked_ids(ids: Any, z: Tensor) -> Tensor:
    """Identities [n] int64 on the device of the embeddings, none below zero."""
    ids = torch.as_tensor(ids, device=z.device)
    if ids.is_floating_point():
        raise ValueError(f"expected integer ids [n], got {ids.dtype}")
    if not torch.compiler.is_compiling() and ids.numel() and int(ids.min()) < 0:
        raise ValueError(f"expected ids of 0 and more, got {int(ids.min())}; negative ids belong to proxies")
    return ids.long()
