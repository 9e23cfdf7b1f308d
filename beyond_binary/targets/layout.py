"""Layout target: how differently two segmentation maps cut up the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import TARGETS, Gives


@TARGETS.register("layout")
@dataclass(frozen=True)
class Layout:
    """One minus the mean intersection-over-union of label maps (room layouts; Kim et al., CVPR 2019, section 5.3).

    The mean runs over the regions present in either map. Labels: integer maps [n h w] with values in
    `0 .. regions - 1`. The distance lies in [0, 1].

    Args:
        regions: number of regions, for example 5 (floor, ceiling, left, centre and right wall).
    """

    regions: int = 5
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if not 1 <= self.regions <= 256:
            raise ValueError(f"layout: regions must be 1 to 256, got {self.regions}")

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Maps as uint8 [n h w]."""
        maps = torch.as_tensor(labels)
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
        overlap = torch.zeros(len(code_q), len(code_k), device=code_q.device)
        present = torch.zeros_like(overlap)
        for region in range(self.regions):
            a = (code_q == region).flatten(1).float()
            b = (code_k == region).flatten(1).float()
            both = a @ b.T
            either = a.sum(1)[:, None] + b.sum(1)[None, :] - both
            overlap += both / either.clamp_min(1)
            present += either > 0
        return 1 - overlap / present
