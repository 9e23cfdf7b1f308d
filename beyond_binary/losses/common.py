"""What several row losses share: positives and negatives, masked means, and log-sum-exps that survive empty rows.

Masks are turned into numbers and looked up by way of their bytes: torch is several times slower on bool.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..tiles import Tile
from ..tiles import split as split
from ..walks import Finish, Pairs


def any_in_row(mask: Tensor) -> Tensor:
    """Whether each row of a mask [q k] has an entry [q]."""
    return mask.view(torch.uint8).amax(1) > 0 if mask.shape[1] else mask.any(1)


def as_number(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as 0 and 1 in the type of `like`."""
    return mask.view(torch.uint8).to(like.dtype)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over each row's entries in `mask` [q]; entries outside get no gradient, whatever they are."""
    return torch.where(mask, x, 0).sum(1)


def masked_logsumexp(x: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over each row's entries in `mask` [q]; 0, without gradient, for an empty row."""
    return masked_softmax(x, mask)[0]


def masked_softmax(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`masked_logsumexp` [q] and its derivative, the softmax [q k] (of no meaning in an empty row)."""
    some = any_in_row(mask)
    safe = torch.where(mask, x, torch.where(some, -torch.inf, 0)[:, None])
    softmax = safe.softmax(1)
    total: Tensor = _LogSumExp.apply(safe, softmax) if x.shape[1] else safe.sum(1)
    return torch.where(some, total, 0), softmax


class _LogSumExp(torch.autograd.Function):
    """Log-sum-exp of rows from their softmax, which is its derivative: -inf and underflow are slow in `exp`, not there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, softmax: Tensor) -> Tensor:
        ctx.save_for_backward(softmax)
        return x.amax(1) - softmax.amax(1).log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (softmax,) = ctx.saved_tensors  # with its graph, so that higher derivatives are right
        return grad[:, None] * softmax, None


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own is x itself from 20 on, wrong by 2e-9 there."""
    return torch.logaddexp(x, torch.zeros_like(x))


def log1p_sumexp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum over the row's entries in `mask` of exp(x)), [q]; 0 for an empty row."""
    return torch.where(any_in_row(mask), softplus(masked_logsumexp(x, mask)), 0)


def nothing(x: Tensor) -> float:
    """In place of the logarithm of 0: sums of two, and what softplus makes of them, are finite still."""
    return torch.finfo(x.dtype).min / 4


def against_negatives(pairs: Pairs, factor: float, then: Callable[..., Tensor], extra: Sequence[Tensor] = ()) -> Tensor:
    """`then(push, same, *extra)`, see `Pairs.apart`, from the rows' log-sum-exps of `factor * x` over their negatives.

    These are `nothing` without a negative. The factor is positive for similarities and negative for distances.
    """
    plain, quick = (
        functools.partial(of_negatives, factor=factor),
        functools.partial(of_negatives_in_place, factor=factor),
    )
    return pairs.apart(plain, quick, then, extra=extra)


def of_negatives(x: Tensor, negative: Tensor, *, factor: float) -> Tensor:
    """Plain form of `against_negatives`."""
    return torch.where(any_in_row(negative), masked_logsumexp(factor * x, negative), nothing(x))


def of_negatives_in_place(tile: Tile, *, factor: float) -> tuple[Tensor, Finish]:
    """In-place form of `against_negatives`."""
    top, total = tile.powers_(tile.x.mul_(factor))

    def finish(grad: Tensor) -> tuple[()]:
        tile.x.mul_(grad[:, None] * factor / total)
        return ()

    return (total.log() + top)[:, 0], finish
