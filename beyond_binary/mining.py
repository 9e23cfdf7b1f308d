"""Miners: masks that say which of the valid pairs a loss should see.

A miner reads similarities x (larger = nearer; distances come negated), label distances y and the valid pairs, and
returns a mask that is a subset of `valid`. It sees all keys of a row at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import Registry

MINERS = Registry("miner")


@MINERS.register("multi_similarity")
def multi_similarity(x: Tensor, y: Tensor, valid: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Keep pairs that the other side overlaps within `epsilon` (Wang et al., CVPR 2019, equations 8 and 9).

    A negative stays if it is nearer than the farthest positive plus `epsilon`, a positive if it is farther than the
    nearest negative minus `epsilon`. A row without a positive or without a negative keeps nothing.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    farthest = x.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    nearest = x.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    return (positive & (x < nearest + epsilon)) | (negative & (x > farthest - epsilon))


@MINERS.register("batch_hard")
def batch_hard(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Keep the farthest positive and the nearest negative of each row (Hermans et al., 2017, equation 5).

    The first of equals is kept. A row without a positive or without a negative keeps nothing.
    """
    positive, negative = valid & (y == 0), valid & (y != 0)
    far = x.masked_fill(~positive, torch.inf).argmin(1, keepdim=True)
    near = x.masked_fill(~negative, -torch.inf).argmax(1, keepdim=True)
    keep = torch.zeros_like(valid).scatter(1, far, True).scatter(1, near, True)
    return keep & valid & positive.any(1, keepdim=True) & negative.any(1, keepdim=True)
