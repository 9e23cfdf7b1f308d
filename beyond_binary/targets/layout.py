"""Layout target: how differently two segmentation maps cut up the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import TARGETS, Gives
from .vectors import as_tensor


@TARGETS.register("layout")
@dataclass(frozen=True)
class Layout:
    """One minus the mean intersection-over-union of label maps (room layouts; Kim et al., CVPR 2019, section 5.3).

    The mean runs over the regions present in either map. Labels: integer maps [n h w] with values in
    `0 .. regions - 1`. The distance lies in [0, 1].

    Args:
        regions: number of regions, for example 5 (floor, ceiling, left, centre and right wall).
        exchangeable: regions whose names may be exchanged between two maps (at most 5), for example the walls: which
            wall is the left one is a matter of naming where a corner is in the middle. The distance is then the smallest
            over all ways to name them.
    """

    regions: int = 5
    exchangeable: Sequence[int] = ()
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if not 1 <= self.regions <= 256:
            raise ValueError(f"layout: regions must be 1 to 256, got {self.regions}")
        names = list(self.exchangeable)
        if len(names) > 5 or len(set(names)) < len(names) or not all(0 <= name < self.regions for name in names):
            raise ValueError(
                f"layout: exchangeable must name at most 5 different regions of 0..{self.regions - 1}, got {names}"
            )

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Maps as uint8 [n h w]."""
        maps = as_tensor(labels)
        if maps.is_floating_point() or maps.ndim != 3:
            raise ValueError(f"target 'layout' needs integer maps [n h w], got {maps.dtype} {list(maps.shape)}")
        checked = maps.numel() and not torch.compiler.is_compiling()
        if checked and not 0 <= int(maps.min()) <= int(maps.max()) < self.regions:
            raise ValueError(
                f"target 'layout' with regions={self.regions} needs values in 0..{self.regions - 1}, "
                f"got {int(maps.min())}..{int(maps.max())}"
            )
        return maps.to(torch.uint8)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """1 - mIoU, [q k]."""
        parts_q, parts_k = ([(code == r).flatten(1).float() for r in range(self.regions)] for code in (code_q, code_k))
        sizes_q, sizes_k = ([part.sum(1) for part in parts] for parts in (parts_q, parts_k))

        scores = {}
        for a, b in {
            *zip(range(self.regions), range(self.regions), strict=True),
            *product(self.exchangeable, repeat=2),
        }:
            both = parts_q[a] @ parts_k[b].T
            either = sizes_q[a][:, None] + sizes_k[b][None, :] - both
            scores[a, b] = both / either.clamp_min(1), (either > 0).float()
        best = torch.zeros(len(code_q), len(code_k), device=code_q.device)
        for names in permutations(self.exchangeable):
            other = {**{r: r for r in range(self.regions)}, **dict(zip(self.exchangeable, names, strict=True))}
            overlap, present = (sum(found) for found in zip(*(scores[pair] for pair in other.items()), strict=True))
            best = torch.maximum(best, overlap / present)
        return 1 - best
