"""Exact losses over processes: gathering with gradient, sums over processes, and a switch to turn both off.

Convention (that of DistributedDataParallel, which averages gradients over processes): every process holds the global
loss value, and what it adds to the gradients is scaled so that their average is the single-process gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .points import Points

T = TypeVar("T")
_disabled = 0


@contextmanager
def disabled() -> Iterator[None]:
    """Within this context every process computes on its own batch alone."""
    global _disabled
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1


def world_size() -> int:
    """Number of processes that share a loss: 1 without a process group or inside `disabled()`."""
    return dist.get_world_size() if not _disabled and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def sizes(n: int, device: torch.device) -> list[int]:
    """How many items each process holds."""
    if world_size() == 1:
        return [n]
    count = torch.zeros(world_size(), dtype=torch.int64, device=device)
    count[rank()] = n
    dist.all_reduce(count)
    return [int(c) for c in count]


def _all_gather(x: Tensor, counts: list[int]) -> Tensor:
    """Rows of all processes, in the order of their ranks; the parts may differ in length."""
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        ctx.rows = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        return _all_gather(x.contiguous(), counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.rows], None


def gather(points: Points, counts: list[int]) -> Points:
    """The points of all processes, in the order of their ranks; embeddings with gradient.

    The backward pass sums what all processes want of an embedding and hands each its own rows.
    """
    if world_size() == 1:
        return points
    z: Tensor = _Gather.apply(points.z, counts)
    return Points(z, _all_gather(points.code.contiguous(), counts), _all_gather(points.id, counts))


def share(n: int) -> slice:
    """The rows of `n` replicated rows that this process should walk, so that all are walked once."""
    per = -(-n // world_size())
    return slice(min(rank() * per, n), min((rank() + 1) * per, n))


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all processes; the others wait."""
    made: list[Any] = [make() if rank() == 0 else None]
    if world_size() > 1:
        dist.broadcast_object_list(made)
    found: T = made[0]
    return found


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give every process the first process's buffers (running statistics drift apart between forward passes)."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def all_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, without gradient."""
    return x if world_size() == 1 else _all_gather(x.detach().contiguous(), sizes(len(x), x.device))
