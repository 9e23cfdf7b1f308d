"""What several row losses share: positives and negatives, masked means, and log-sum-exps that survive empty rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split(y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [q k] of the valid pairs that are the same, and of those that are different."""
    same = ~y if y.dtype == torch.bool else y == 0
    return valid & same, valid & ~same


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over each row's entries in `mask` [q]; entries outside get no gradient, whatever they are."""
    return torch.where(mask, x, 0).sum(1)


def masked_logsumexp(x: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over each row's entries in `mask` [q]; 0, without gradient, for an empty row."""
    some = mask.any(1)
    safe = torch.where(mask, x, torch.where(some, -torch.inf, 0)[:, None])
    return torch.where(some, safe.logsumexp(1), 0)


def log1p_sumexp(x: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum over the row's entries in `mask` of exp(x)), [q]; 0 for an empty row."""
    return torch.where(mask.any(1), F.softplus(masked_logsumexp(x, mask)), 0)
