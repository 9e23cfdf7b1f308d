"""Keys that are not the batch: learned proxies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .points import Points


class Proxies(nn.Module):
    """One learned embedding per class, seen by losses as labelled points like any other.

    Args:
        num_classes: number of classes; labels are `0 .. num_classes - 1`.
        dim: width of the embeddings.
        init: `random` (standard normal; only the direction counts for cosine losses) or `class_mean`, which also
            starts random until `start_at_means` is called with embeddings of the training set.
    """

    def __init__(self, num_classes: int, dim: int, init: Literal["random", "class_mean"] = "random") -> None:
        super().__init__()
        if num_classes < 2 or dim < 1:
            raise ValueError(f"proxies need at least 2 classes and 1 dimension, got {num_classes} and {dim}")
        if init not in ("random", "class_mean"):
            raise ValueError(f"proxy_init must be 'random' or 'class_mean', got {init!r}")
        self.init = init
        self.weight = nn.Parameter(torch.randn(num_classes, dim))

    def points(self) -> Points:
        """All proxies: z [c d] with gradient, code = class number, ids below zero."""
        number = torch.arange(len(self.weight), device=self.weight.device)
        return Points(self.weight, number, -1 - number)

    @torch.no_grad()
    def start_at_means(self, z: Tensor, classes: Tensor) -> None:
        """Set each proxy to the mean of its class's L2-normalised embeddings (classes without any stay random).

        Args:
            z: embeddings [n d].
            classes: class of each [n].
        """
        z = nn.functional.normalize(z.to(self.weight), dim=1)
        classes = classes.to(self.weight.device)
        self._check_labels(classes)
        total = torch.zeros_like(self.weight).index_add_(0, classes, z)
        count = torch.bincount(classes, minlength=len(self.weight))[:, None]
        self.weight.copy_(torch.where(count > 0, total / count.clamp_min(1), self.weight))

    def check(self, points: Points) -> None:
        """Raise a ValueError if a label has no proxy or the widths differ."""
        if points.z.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"the proxies have {self.weight.shape[1]} dimensions but the embeddings {points.z.shape[1]}; "
                "create the objective with dim= of the embedder"
            )
        self._check_labels(points.code)

    def _check_labels(self, classes: Tensor) -> None:
        if classes.ndim != 1 or classes.is_floating_point():
            raise ValueError(f"proxies need integer classes [n], got {classes.dtype} {list(classes.shape)}")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < len(self.weight):
            raise ValueError(
                f"labels {int(classes.min())}..{int(classes.max())} do not fit {len(self.weight)} proxies; "
                f"expected 0..{len(self.weight) - 1}: number the training classes from 0 or raise num_classes"
            )
