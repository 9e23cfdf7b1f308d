"""Losses that read the value of a continuous label distance."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import Rows, register_loss
from .common import any_in_row, as_number


@register_loss(
    "log_ratio",
    reads="magnitude",
    x="distance",
    geometry="euclidean",
    paper="Kim et al.: Deep Metric Learning Beyond Binary Supervision, CVPR 2019",
)
def log_ratio(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    embedding_power: float = 1.0,
    label_power: float = 1.0,
    ties: Literal["exclude", "include"] = "exclude",
    zero_labels: Literal["drop", "floor"] = "drop",
    label_floor: float = 1e-6,
    eps: float = 1e-6,
) -> Rows:
    """Log-ratio loss over dense triplets (equations 2 and 7 of the paper).

    The mean over pairs (i, j) of a row with y_i < y_j of `(log(d_i / d_j) - log(y_i / y_j))^2`. With
    u = log d - log y, the squares over all pairs of n keys sum to n times the centred sum of squares of u, so the mean
    over all pairs is twice the unbiased variance of u: O(k) a row. Pairs of equal label distance, which the paper's
    strict inequality leaves out, are the same sum within each group of ties, and are subtracted.

    The paper squares both distances, which multiplies the loss by 4 (set both powers to 2); its code squares neither,
    includes ties, and adds 1e-6 inside the logarithms. Embeddings are not normalised there: the loss is invariant to
    scale, rotation and translation of the embeddings.

    Paper settings: both powers 2, 128 dimensions not normalised, batches of an anchor, its 5 nearest by label and random
    others (sampler `dense_triplet`).
    Cost: O(k) time and memory a row; O(k log k) time where label distances tie.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        embedding_power: exponent of the embedding distance.
        label_power: exponent of the label distance; another ratio of the powers trains another relation.
        ties: `exclude` pairs of keys with equal label distance (paper) or `include` them (authors' code).
        zero_labels: `drop` keys at label distance 0, whose ratio is undefined, or `floor` them at `label_floor`.
        label_floor: smallest label distance under `floor`, in the label's unit.
        eps: added to the embedding distance inside the logarithm.

    Returns:
        value and count [q]; a row without two keys of different label distance is undefined.
    """
    if ties not in ("exclude", "include") or zero_labels not in ("drop", "floor"):
        raise ValueError(f"log_ratio: unknown ties={ties!r} or zero_labels={zero_labels!r}")
    if zero_labels == "floor":
        y = y.clamp_min(label_floor)
    use = valid & (y > 0)
    real = as_number(use, x)
    n = real.sum(1)
    offset = (1 - real).add_(eps)  # keeps the logarithm of what is not used finite
    u = embedding_power * (x + offset).log() - label_power * torch.where(use, y, 1).log()
    centre = torch.linalg.vecdot(u.detach(), real) / n.clamp_min(1)  # any centre gives the same sum, up to rounding
    centred = (u - centre[:, None]) * real
    squares = n * torch.linalg.vecdot(centred, centred) - centred.sum(1).square()
    pairs = n * (n - 1) / 2
    if ties == "exclude":
        rows = _rows_with_ties(y)
        tied_squares, tied_pairs = _within_ties(centred[rows], y[rows], use[rows])
        squares, pairs = squares.index_add(0, rows, -tied_squares), pairs.index_add(0, rows, -tied_pairs)
    defined = pairs > 0
    return torch.where(defined, squares / pairs.clamp_min(1), 0), defined


def _rows_with_ties(y: Tensor) -> Tensor:
    """Numbers of the rows in which two y are equal: few or none when labels are continuous."""
    if torch.compiler.is_compiling():
        return torch.arange(len(y), device=y.device)
    if y.device.type == "cpu":  # several times faster than torch, which also sorts indices
        ordered = torch.from_numpy(np.sort(y.numpy(), axis=1))
    else:
        ordered = y.sort(1).values
    return any_in_row(ordered[:, 1:] == ordered[:, :-1]).nonzero()[:, 0]


def _argsort(y: Tensor) -> Tensor:
    """Order of each row; on the CPU by numpy, which is several times faster."""
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return y.argsort(1)
    return torch.from_numpy(np.argsort(y.numpy(), axis=1))


def _within_ties(u: Tensor, y: Tensor, use: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (u_i - u_j)^2 over the row's pairs of equal y, and the number of those pairs, both [q]."""
    order = _argsort(torch.where(use, y, torch.inf))
    ordered = y.gather(1, order)
    group = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    u, use = u.gather(1, order), use.gather(1, order).to(u)
    size = torch.zeros_like(u).scatter_add(1, group, use)
    mean = torch.zeros_like(u).scatter_add(1, group, u) / size.clamp_min(1)
    spread = use * (u - mean.gather(1, group)).square()
    return (size.gather(1, group) * spread).sum(1), (size * (size - 1) / 2).sum(1)
