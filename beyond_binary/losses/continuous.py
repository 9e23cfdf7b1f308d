"""Losses that read the value of a continuous label distance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import Rows, register_loss
from .common import masked_sum


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
    n = use.sum(1)
    u = embedding_power * (torch.where(use, x, 1) + eps).log() - label_power * torch.where(use, y, 1).log()
    mean = masked_sum(u, use) / n.clamp_min(1)
    centred = torch.where(use, u - mean[:, None], 0)
    squares, pairs = n * centred.square().sum(1), n * (n - 1) / 2
    if ties == "exclude":
        tied_squares, tied_pairs = _within_ties(centred, y, use)
        squares, pairs = squares - tied_squares, pairs - tied_pairs
    defined = pairs > 0
    return torch.where(defined, squares / pairs.clamp_min(1), 0), defined


def _within_ties(u: Tensor, y: Tensor, use: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of (u_i - u_j)^2 over the row's pairs of equal y, and the number of those pairs, both [q]."""
    ordered, order = torch.where(use, y, torch.inf).sort(1)
    group = torch.nn.functional.pad((ordered[:, 1:] != ordered[:, :-1]).cumsum(1), (1, 0))
    u, use = u.gather(1, order), use.gather(1, order).to(u)
    size = torch.zeros_like(u).scatter_add(1, group, use)
    mean = torch.zeros_like(u).scatter_add(1, group, u) / size.clamp_min(1)
    spread = use * (u - mean.gather(1, group)).square()
    return (size.gather(1, group) * spread).sum(1), (size * (size - 1) / 2).sum(1)
