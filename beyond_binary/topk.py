"""The largest scores of long rows."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Scores whose largest is looked at first."""


def largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and positions [q k] of the `k` largest of each row of `x` [q n], as `torch.topk` gives them.

    On the CPU `torch.topk` copies whole rows. Here the blocks with the `k` highest maxima are found first: the `k` largest
    are in these, up to ties. NaN counts as largest, as it does there. Of equal scores at the end any may be left out.
    """
    q, n = x.shape
    blocks = n // BLOCK
    if x.device.type != "cpu" or blocks < 4 * k:
        found = x.topk(k)
        return found.values, found.indices
    whole = blocks * BLOCK
    best = x[:, :whole].unflatten(1, (blocks, BLOCK)).amax(2).topk(k).indices
    number = torch.arange(n)
    some = (best[:, :, None] * BLOCK + number[:BLOCK]).flatten(1)
    some = torch.cat([some, number[whole:].expand(q, -1)], dim=1)
    values, places = x.gather(1, some).topk(k)
    return values, some.gather(1, places)
