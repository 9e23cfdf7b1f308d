"""Losses from means and variances of genuine and impostor scores, computed without listing the pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import register_loss


@register_loss(
    "pd_loss",
    reads="same",
    x="similarity",
    geometry="cosine",
    keys="proxy",
    form="moments",
    paper="Silva et al.: PD-Loss: Proxy-Decidability for Efficient Metric Learning, 2025",
)
def pd_loss(
    z: Tensor,
    code: Tensor,
    proxies: Tensor,
    *,
    gap_floor: float = 0.05,
    variance_floor: float = 1e-6,
) -> Tensor:
    """Proxy-decidability loss: `-log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2` on cosine scores.

    Genuine scores are those of each item with its own class's proxy, impostor scores those with all other proxies;
    variances are population variances. This is the published form (repository of the paper), minus the logarithm of
    decidability d' up to a constant. A temperature on the scores would cancel, so there is none.

    Paper settings: random proxies, 512 dimensions, ResNet-50, batches of 32.
    Cost: O((n + c) d^2): the sum of all scores is a product of two mean vectors, their centred squares one of two
    covariances, and the impostor part is what remains after the genuine part; no [n c] matrix exists.

    Args:
        z: embeddings [n d].
        code: class of each item [n].
        proxies: one embedding per class [c d].
        gap_floor: below this gap of the means the logarithm goes on as its tangent, so that a gap of 0 or less still
            has a gradient.
        variance_floor: added to the summed variances; 0 lets the loss fall without bound as both spreads vanish.

    Returns:
        The loss, a scalar; 0 for an empty batch.
    """
    if len(z) == 0:
        return z.sum() + proxies.sum() * 0
    items, keys = F.normalize(z, dim=1), F.normalize(proxies, dim=1)
    genuine = (items * keys[code]).sum(1).double()
    n, c = len(items), len(keys)
    mean_item, mean_key = items.mean(0), keys.mean(0)
    items, keys = items - mean_item, keys - mean_key
    mean = (mean_item * mean_key).sum().double()
    spread = (
        (items @ mean_key).square().mean().double()
        + (keys @ mean_item).square().mean().double()
        + ((items.T @ items / n) * (keys.T @ keys / c)).sum().double()
    )
    impostors = n * (c - 1)
    genuine_mean = genuine.mean()
    impostor_mean = (n * c * mean - genuine.sum()) / impostors
    around = n * c * (spread + (mean - impostor_mean).square()) - (genuine - impostor_mean).square().sum()
    return decidability(
        genuine_mean - impostor_mean,
        (genuine - genuine_mean).square().mean() + (around / impostors).clamp_min(0),
        gap_floor,
        variance_floor,
    ).to(z.dtype)


def decidability(gap: Tensor, variance: Tensor, gap_floor: float, variance_floor: float) -> Tensor:
    """`-log(gap) + log(variance + variance_floor) / 2`, the first part continued by its tangent below `gap_floor`."""
    above = gap.clamp_min(gap_floor).log()
    return (gap_floor - gap).clamp_min(0) / gap_floor - above + (variance + variance_floor).log() / 2


def pd_loss_plain(x: Tensor, y: Tensor, *, gap_floor: float = 0.05, variance_floor: float = 1e-6) -> Tensor:
    """`pd_loss` from the scores x [n c] and label distances y [n c] themselves: the reference for the fast form."""
    genuine, impostor = x[y == 0], x[y != 0]
    spread = genuine.var(correction=0) + impostor.var(correction=0)
    return decidability(genuine.mean() - impostor.mean(), spread, gap_floor, variance_floor)
