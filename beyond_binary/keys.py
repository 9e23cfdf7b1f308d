"""What is compared with that is not the batch: learned proxies, a learned boundary, a memory of earlier batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .points import Points


def labels_as_they_are(module: Any, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """`nn.Module._apply` for a module with labels in `code`: they move to other devices, but keep their type."""
    code = getattr(module, "code", None)
    nn.Module._apply(module, change, recurse)
    if code is not None and code.dtype != module.code.dtype:
        module.code = code.to(module.code.device)
    return module


class Proxies(nn.Module):
    """Learned embeddings with labels, seen by losses as points like any other: one per class, or wherever `code` says.

    Args:
        num_classes: number of classes (labels are `0 .. num_classes - 1`), or of proxies with labels of their own.
        dim: width of the embeddings.
        init: `random` (standard normal, so of length sqrt(dim); only the direction counts for cosine losses) or
            `class_mean`, which also starts random until `start_at_means` is called with embeddings of the training set.
        centers: embeddings of each class; those of one class are neighbours in `weight` [num_classes * centers, dim].
        code: labels of the proxies as the target encodes them [num_classes ...], None: class numbers.
    """

    code: Tensor | None
    unstarted = False

    def __init__(
        self,
        num_classes: int,
        dim: int,
        init: Literal["random", "class_mean"] = "random",
        centers: int = 1,
        code: Tensor | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2 or dim < 1:
            raise ValueError(f"proxies need at least 2 classes and 1 dimension, got {num_classes} and {dim}")
        if init not in ("random", "class_mean"):
            raise ValueError(f"proxy_init must be 'random' or 'class_mean', got {init!r}")
        if centers < 1:
            raise ValueError(f"a class needs at least 1 center, got {centers}")
        self.init, self.num_classes, self.centers = init, num_classes, centers
        self.unstarted = init == "class_mean"
        self.weight = nn.Parameter(torch.randn(num_classes * centers, dim))
        self.register_buffer("code", code)

    _apply = labels_as_they_are

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self.unstarted = self.unstarted and prefix + "weight" not in state
        super()._load_from_state_dict(state, prefix, *args)

    def points(self) -> Points:
        """All proxies: z [c d] with gradient, code = class number or the label, ids below zero."""
        number = torch.arange(len(self.weight), device=self.weight.device)
        return Points(self.weight, number // self.centers if self.code is None else self.code, -1 - number)

    @torch.no_grad()
    def start_at_means(self, z: Tensor, classes: Tensor, length: float | None = None) -> None:
        """Set each proxy to the mean of its class's L2-normalised embeddings (classes without any stay random).

        Several centres of a class start there with a random step of length 0.1 each, or they would stay together.

        Args:
            z: embeddings [n d].
            classes: class of each [n].
            length: what the means are scaled to, for losses that read directions alone. Optimizers such as Adam move a
                proxy by the learning rate whatever its length, so a short one turns faster. None: as they are.
        """
        z = nn.functional.normalize(z.to(self.weight), dim=1)
        classes = classes.to(self.weight.device)
        check_classes(classes, self.num_classes, "proxies")
        total = torch.zeros_like(self.weight[: self.num_classes]).index_add_(0, classes, z)
        count = torch.bincount(classes, minlength=self.num_classes)[:, None].repeat_interleave(self.centers, 0)
        start = (total.repeat_interleave(self.centers, 0) / count.clamp_min(1)).to(self.weight)
        if self.centers > 1:
            start += 0.1 * nn.functional.normalize(self.weight, dim=1)
        if length is not None:
            start = length * nn.functional.normalize(start, dim=1)
        self.weight.copy_(torch.where(count > 0, start, self.weight))
        self.unstarted = False

    def check_started(self, loss: str) -> None:
        """Warn once, in training, if proxies that are to start at class means are random still."""
        if self.unstarted and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.unstarted = False
            warnings.warn(
                f"the proxies of {loss} are random still; call objective.start_at_means(z, labels) with embeddings of the "
                "training set before the first step, or, for random ones or your own, create the objective with "
                "proxy_init='random'",
                stacklevel=5,
            )

    def check(self, points: Points) -> None:
        """Raise a ValueError if a label has no proxy or the widths differ."""
        if points.z.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"the proxies have {self.weight.shape[1]} dimensions but the embeddings {points.z.shape[1]}; "
                "create the objective with dim= of the embedder"
            )
        if self.code is None:
            check_classes(points.code, self.num_classes, "proxies")
        elif points.code.shape[1:] != self.code.shape[1:]:
            raise ValueError(
                f"the proxies have labels {list(self.code.shape[1:])} but the items {list(points.code.shape[1:])}"
            )


class Boundary(nn.Module):
    """The distance between same and different of the margin loss: fixed, learned, or learned for each class.

    Args:
        beta: its initial value, in the unit of the distance.
        learn_beta: whether it is learned.
        beta_per_class: one for each class instead of one for all.
        num_classes: number of classes, for `beta_per_class`.
    """

    def __init__(
        self,
        *,
        beta: float = 1.2,
        learn_beta: bool = True,
        beta_per_class: bool = False,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if beta_per_class and num_classes is None:
            raise ValueError("beta_per_class needs num_classes=")
        self.per_class = beta_per_class
        start = torch.full((num_classes,) if beta_per_class else (), float(beta))  # type: ignore[arg-type]
        self.beta = nn.Parameter(start, requires_grad=learn_beta)

    def forward(self, points: Points) -> Tensor:
        """The boundary of each point [n]; with one for each class, the code must be a class number."""
        if not self.per_class:
            return self.beta.expand(len(points))
        if not torch.compiler.is_compiling():
            check_classes(points.code, len(self.beta), "boundaries")
        return self.beta[points.code]


class Memory(nn.Module):
    """The last `size` embeddings and labels of earlier batches, as keys without gradient (cross-batch memory).

    Wang et al.: Cross-Batch Memory for Embedding Learning, CVPR 2020. It counts once it is full, then older entries make
    room for newer ones. Sooner, embeddings change fast, and few old ones are nearly all of other classes than the batch:
    a loss then falls by moving the whole batch away from where it was, and everything ends in one point.

    Nothing is stored before the first `push`, which decides on width and kind of labels.

    Args:
        size: how many embeddings are kept.
    """

    seen: Tensor
    z: Tensor
    code: Tensor
    id: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"memory must hold at least 1 embedding, got {size}")
        self.size = size
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    _apply = labels_as_they_are

    def points(self) -> Points | None:
        """What is remembered, oldest first; None before it is full."""
        kept = self._kept()
        return kept if kept is not None and len(kept) == self.size else None

    def _kept(self) -> Points | None:
        return Points(self.z, self.code, self.id) if hasattr(self, "z") else None

    @torch.no_grad()
    def push(self, points: Points) -> None:
        """Remember the newest points, but for embeddings that are not finite: these would spoil all later batches."""
        kept, new = self._kept(), points.detach()
        new = new[new.z.isfinite().all(1).nonzero()[-self.size :, 0]]
        new = new if kept is None else Points.cat(kept[max(len(kept) + len(new) - self.size, 0) :], new)
        self._hold(new.z, new.code, new.id)
        self.seen += len(points)

    def _hold(self, z: Tensor, code: Tensor, id: Tensor) -> None:
        for name, value in (("z", z), ("code", code), ("id", id)):
            self.register_buffer(name, value)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "z" in state:  # the width is known only now
            like = (state[prefix + name] for name in ("z", "code", "id"))
            self._hold(*(torch.empty_like(tensor, device=self.seen.device) for tensor in like))
        elif hasattr(self, "z"):  # the state of a memory that was empty still
            del self.z, self.code, self.id
        super()._load_from_state_dict(state, prefix, *args)


def check_classes(classes: Tensor, count: int, what: str) -> None:
    """Raise a ValueError unless these are class numbers [n] below `count`."""
    if classes.ndim != 1 or classes.is_floating_point():
        raise ValueError(f"{what} need integer classes [n], got {classes.dtype} {list(classes.shape)}")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ValueError(
            f"labels {int(classes.min())}..{int(classes.max())} do not fit {count} {what}; "
            f"expected 0..{count - 1}: number the training classes from 0 or raise num_classes"
        )
