"""Pose target: how far two skeletons are apart once translation (and, if asked, scale) is taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from . import TARGETS, Gives, innermost
from .vectors import as_tensor, exact_cdist


@TARGETS.register("pose")
@dataclass(frozen=True)
class Pose:
    """Mean (or sum) over joints of the Euclidean distance between corresponding joints.

    Labels: joints [n j dims], or [n j dims+1] whose last column says which joints are visible (non-zero); or flat, as
    tables have them, [n j*dims], or with `visibility` [n j*(dims+1)]. A joint with a NaN coordinate counts as invisible.
    Only joints visible in both skeletons are compared; a pair without one is unknown (NaN). The distance has the joints'
    unit.

    Args:
        root: joints whose midpoint becomes the origin, for example the two hips; None: the centroid of the visible
            joints. A skeleton whose root is invisible is unknown to all others.
        scale: also divide by the root-mean-square distance of the visible joints from the origin.
        reduce: `mean` or `sum` over the joints compared.
        dims: coordinates per joint, 2 or 3; needed to read flat labels and to recognise the visibility column.
        mirror: for each joint the one that takes its place in a mirror image (left and right exchanged); a pose is then
            as far from another as the nearer of it and its mirror image, first coordinate negated. None: not so.
        visibility: flat labels hold each joint's coordinates and then its visibility (x, y, v, x, y, v, ...); those of an
            unseen joint (v = 0) may be any numbers.
    """

    root: Sequence[int] | None = None
    scale: bool = False
    reduce: Literal["mean", "sum"] = "mean"
    dims: int = 2
    mirror: Sequence[int] | None = None
    visibility: bool = False
    gives: ClassVar[Gives] = "magnitude"

    def __post_init__(self) -> None:
        if self.reduce not in ("mean", "sum"):
            raise ValueError(f"pose: reduce must be 'mean' or 'sum', got {self.reduce!r}")
        if self.dims not in (2, 3):
            raise ValueError(f"pose: dims must be 2 or 3, got {self.dims}")
        if self.mirror is not None:
            partner = dict(enumerate(self.mirror))
            if any(partner.get(other) != joint for joint, other in partner.items()):
                raise ValueError(
                    f"pose: mirror must name each joint's partner, and be that one's partner, got {list(self.mirror)}"
                )
            if self.root is not None and {partner.get(r) for r in self.root} != set(self.root):
                raise ValueError(f"pose: the mirror image of root {tuple(self.root)} must be the root itself")

    @property
    def per_joint(self) -> int:
        """How many numbers of a flat label make a joint."""
        return self.dims + self.visibility

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Centred joints with visibility 0/1 in the last column, [n j dims+1]."""
        joints = as_tensor(labels)
        if joints.dtype == torch.bool or joints.ndim not in (2, 3):
            raise ValueError(
                f"target 'pose' needs joints [n j {self.dims}] or [n j*{self.per_joint}], got {joints.dtype} "
                f"{list(joints.shape)}"
            )
        joints = joints if joints.is_floating_point() else joints.double()
        if joints.ndim == 2:
            if joints.shape[1] % self.per_joint:
                raise ValueError(
                    f"target 'pose' with dims={self.dims} and visibility={self.visibility} reads {self.per_joint} numbers a "
                    f"joint and cannot read {joints.shape[1]} numbers per item as joints"
                )
            joints = joints.unflatten(1, (-1, self.per_joint))
        if joints.shape[2] not in (self.dims, self.dims + 1):
            raise ValueError(
                f"target 'pose' with dims={self.dims} needs {self.dims} numbers a joint (or one more for visibility), "
                f"got {joints.shape[2]}"
            )
        if self.root is not None and not all(0 <= r < joints.shape[1] for r in self.root):
            raise ValueError(f"pose: root {tuple(self.root)} names joints beyond the {joints.shape[1]} given")
        if self.mirror is not None and len(self.mirror) != joints.shape[1]:
            raise ValueError(f"pose: mirror names {len(self.mirror)} joints, but there are {joints.shape[1]}")
        if not torch.compiler.is_compiling() and (infinite := joints.isinf().flatten(1).any(1)).any():
            raise ValueError(
                f"target 'pose': item {int(infinite.nonzero()[0])} has an infinite joint; NaN is invisible"
            )
        seen = ~joints.isnan().any(2)
        if joints.shape[2] > self.dims:
            seen &= joints[..., -1] != 0
        place = torch.where(seen[..., None], joints[..., : self.dims], 0)
        return self._centre(place, seen)

    def _centre(self, place: Tensor, seen: Tensor) -> Tensor:
        weight = seen.to(place)
        anchor = weight if self.root is None else torch.zeros_like(weight)
        if self.root is not None:
            anchor[:, list(self.root)] = weight[:, list(self.root)]
        count = anchor.sum(1)
        origin = (place * anchor[..., None]).sum(1) / count.clamp_min(1)[:, None]
        weight = weight * (count > 0)[:, None]
        place = (place - origin[:, None]) * weight[..., None]
        if self.scale:
            size = (place.square().sum((1, 2)) / weight.sum(1).clamp_min(1)).sqrt()
            place = place / torch.where(size > 0, size, 1)[:, None, None]
        return torch.cat([place, weight[..., None]], 2)

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Joint distances [q k], NaN where no joint is visible in both."""
        y = self._distance(code_q, code_k)
        if self.mirror is None:
            return y
        flip = code_k.new_tensor([-1.0] + [1.0] * self.dims)
        return torch.fmin(y, self._distance(code_q, code_k[:, list(self.mirror)] * flip))

    @property
    def mean(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The mean of codes; None with `mirror`, where a pose and its mirror image are one."""
        return self._mean if self.mirror is None else None

    def _mean(self, weight: Tensor, code: Tensor) -> Tensor:
        """Weighted means [q j dims+1] of codes [k j dims+1], each joint's over those that see it; weights [q k]."""
        total = torch.einsum("qk,kjm->qjm", weight.to(code), code)  # places of unseen joints are 0
        return torch.cat([total[..., :-1] / total[..., -1:].clamp_min(1e-12), (total[..., -1:] > 0).to(code)], 2)

    def _distance(self, code_q: Tensor, code_k: Tensor) -> Tensor:
        total = code_q.new_zeros(len(code_q), len(code_k))
        seen_q, seen_k = code_q[..., -1], code_k[..., -1]
        everything = not torch.compiler.is_compiling() and bool(seen_q.all()) and bool(seen_k.all())
        for a, b, in_q, in_k in zip(
            code_q[..., :-1].unbind(1), code_k[..., :-1].unbind(1), seen_q.unbind(1), seen_k.unbind(1), strict=True
        ):
            gap = exact_cdist(a.contiguous(), b.contiguous())
            total += gap if everything else gap * (in_q[:, None] * in_k[None, :])
        shared = seen_q @ seen_k.T
        total = torch.where(shared > 0, total, torch.nan)
        return total / shared if self.reduce == "mean" else total


def numbers_per_point(target: Any) -> int:
    """How many numbers of a flat label make a point that moves with the image: as `pose` reads them, else x and y.

    Raises ValueError for a sum, whose columns are not all points.
    """
    target = innermost(target)
    if hasattr(target, "targets"):
        raise ValueError("augment.move_labels and augment.mirror want labels that are points alone, not those of a sum")
    return target.per_joint if isinstance(target, Pose) else 2
