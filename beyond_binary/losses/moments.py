"""Losses of decidability: means of genuine and impostor scores apart, in units of their spread."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .. import distributed
from ..blocks import gradients
from ..tiles import Tile
from ..walks import Gradient, Pairs, Tiles, walked
from . import register_loss
from .scores import Moments, class_moments, pooled, proxy_moments, read_scores, score_moments

Form = Literal["neg_log", "inverse", "neg"]


@register_loss(
    "pd_loss",
    reads="same",
    x="similarity",
    geometry="cosine",
    keys="proxy",
    form="pairs",
    any_proxies=True,
    proxy_init="class_mean",
    weighted_by="bandwidth",
    paper="Silva et al.: PD-Loss: Proxy-Decidability for Efficient Metric Learning, 2025",
)
def pd_loss(
    pairs: Pairs,
    *,
    form: Form = "neg_log",
    d_floor: float = 0.1,
    variance_floor: float = 1e-6,
    hardness: float | None = None,
    bandwidth: float | None = None,
) -> Tensor:
    """Proxy-decidability loss: `-log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2` on cosine scores.

    Genuine scores are those of each item with its own class's proxy, impostor scores those with all other proxies;
    variances are population variances. This is the published form (repository of the paper), minus the logarithm of
    decidability d' up to a constant. A temperature on the scores would cancel, so there is none.

    The sum of all scores is a product of two mean vectors, their centred squares one of two covariances, and the
    impostor part is what remains after the genuine part. Proxies are normalised in chunks, forward and backward. Few
    items and proxies, less than half the width, are compared one by one.

    All impostors count alike there, which serves verification (one threshold for all pairs), while retrieval asks for
    the nearest impostors alone. Our extension for it: with a `hardness` an impostor counts `exp(hardness * score)` times,
    in units of the item's mean, as in Robinson et al., Contrastive Learning with Hard Negative Samples, ICLR 2021, so
    that mean and variance are those of the impostors near to each item. These counts are taken as given, like a miner's
    choice: through them, the gradient would draw far impostors nearer. As hardness falls to 0 it is the published form.

    Our extension to labels that are not classes: proxies with labels of their own (`proxy_codes`), such as the k-means
    centres that `label_centres` finds, or one for each label of a set with target `within('multi_label', radius=0.999)`.
    With a `bandwidth`, for targets with distances, a pair at label distance y is genuine by the share
    `exp(-(y / bandwidth)^2 / 2)` and an impostor by the rest, and means and variances are weighted by these shares.
    Shares of 1 and 0 give the form for classes. With a hardness too, the shares of an item's impostors are moved to near
    ones: one that is hardly an impostor may count as several.

    Paper settings: not known beyond the form; proxies start at class means in the repository (the default here), random
    in the paper.
    Cost: O((n + c) d^2) time; memory O(n d + d^2) beside the proxies and their gradient. O(n c d) time and memory of a
    tile with a hardness and for labels that are not classes.

    Args:
        pairs: items against proxies.
        form: what is made of `d = (mu_gen - mu_imp) / sqrt(var_gen + var_imp)`: `-log d` (published), `1 / d` or `-d`.
        d_floor: below this d `-log d` and `1 / d` go on as their tangents, so that a gap of 0 or less still has a
            gradient.
        variance_floor: added to the summed variances; 0 lets the loss fall without bound as both spreads vanish (NaN
            where all scores are equal).
        hardness: how much more near impostors count, in units of 1 / score; 20 suits cosine; None: all alike.
        bandwidth: label distance within which a pair is mostly genuine, in the target's unit; None: pairs are either.

    Returns:
        The loss, a scalar; 0 if no pair is genuine or none an impostor.
    """
    finish = functools.partial(decidability, form=form, d_floor=d_floor, variance_floor=variance_floor)
    return _from_moments(pairs, proxy_moments, finish, bandwidth, hardness)


def decidability(
    genuine: Moments, impostor: Moments, *, form: Form, d_floor: float, variance_floor: float, kinds: int = 1
) -> Tensor:
    """The loss, float64, from moments whose variances are added and divided by `kinds`; 0 where one kind is missing."""
    missing = (genuine[0] == 0) | (impostor[0] == 0)
    variance = torch.where(missing, 1, (genuine[2] + impostor[2]) / kinds)
    return torch.where(missing, 0, of_gap(form, genuine[1] - impostor[1], variance, d_floor, variance_floor))


def of_gap(form: Form, gap: Tensor, variance: Tensor, d_floor: float, variance_floor: float) -> Tensor:
    """`-log d`, `1 / d` or `-d` for `d = gap / sqrt(variance + variance_floor)`.

    Below `d_floor` the first two go on as their tangents in d. It bounds d, not the gap: with a bound on the gap, scores
    that all draw together would lose a bounded amount there and gain without end by `log(variance)`, and every embedding
    would collapse to one point.
    """
    d = gap / (variance + variance_floor).sqrt()
    if form == "neg":
        return -d
    below, above = (d_floor - d).clamp_min(0) / d_floor, d.clamp_min(d_floor)
    return below - above.log() if form == "neg_log" else 1 / above + below / d_floor


@register_loss(
    "d_loss",
    reads="same",
    x="similarity",
    geometry="cosine",
    form="pairs",
    weighted_by="bandwidth",
    paper="Silva et al.: A Decidability-Based Loss Function, IJCNN 2022",
)
def d_loss(
    pairs: Pairs,
    *,
    form: Form = "neg_log",
    d_floor: float = 0.1,
    variance_floor: float = 1e-4,
    warn_below: int = 30,
    hardness: float | None = None,
    bandwidth: float | None = None,
) -> Tensor:
    """Decidability loss: genuine and impostor scores of the block apart, in units of their spread.

    `d' = (mu_gen - mu_imp) / sqrt((var_gen + var_imp) / 2 + variance_floor)` over all pairs of the same and of
    different classes, population variances. The loss is `-log d'`, `1 / d'` or `-d'`: all fall as d' grows. Which of
    them the paper takes is not known here (no code of the authors was found). d' is signed; the authors of the measure
    take the absolute gap, which would train a wrong sign to become more wrong.

    With few genuine pairs d' is a noisy estimate (5 pairs: about 10 % of it, and biased), so draw several items of
    each class: `sampling.py` has samplers of classes times items.

    With target `classes` and no hardness the pairs are not listed: sums over all pairs come from mean vectors and covariances
    (of a block smaller than its points from the products), genuine pairs from each class, and pairs of equal ids are
    taken off. Other targets and miners walk the block.

    Our extensions, as in pd_loss: with a `hardness` the impostors near to an item count more, and with a `bandwidth`, for
    targets with distances, pairs are genuine by a share.

    Paper settings: not known.
    Cost: for n items and m keys of classes O((n + m) d^2) time and O((n + m) d + d^2) memory, where 2 n m is at
    most (n + m) d only O(n m d) time; with a hardness, and for other targets and miners, O(n m d) time, memory
    of a tile.

    Args:
        pairs: the block of pairs.
        form: what is made of d'.
        d_floor: below this d' `-log d'` and `1 / d'` go on as their tangents.
        variance_floor: added to the mean of the variances; 0 lets the loss fall without bound as both spreads vanish (NaN
            where all scores are equal).
        warn_below: warn, once in a process, if one of the first 20 batches with gradients has fewer genuine pairs than
            this. 0: never.
        hardness: how much more near impostors count, in units of 1 / score; None: all alike.
        bandwidth: label distance within which a pair is mostly genuine, in the target's unit; None: pairs are either.

    Returns:
        The loss, a scalar; 0 if there is no genuine or no impostor pair.
    """
    look = bool(warn_below) and torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def finish(genuine: Moments, impostor: Moments) -> Tensor:
        nonlocal look
        if look:
            few_genuine(genuine[0] / (2 if pairs.k is pairs.q else 1), warn_below)
        look = False  # higher derivatives come here again
        floors = {"d_floor": d_floor, "variance_floor": variance_floor}
        return decidability(genuine, impostor, form=form, kinds=2, **floors)

    return _from_moments(pairs, class_moments, finish, bandwidth, hardness)


LOOKS = 20  # batches of a process whose genuine pairs are counted: each look waits for the accelerator
_looks = [LOOKS]


def few_genuine(count: Tensor, enough: int) -> None:
    """Warn of a batch with few genuine pairs, once in all processes, on one of the first batches."""
    if not _looks[0] or distributed.rank():
        return
    _looks[0] -= 1
    if int(count) < enough:
        _looks[0] = 0
        warnings.warn(
            f"d_loss estimates variances from {int(count)} genuine pairs, fewer than {enough}; draw batches of classes "
            "times items (sampler 'classes'), so that each class comes several times",
            stacklevel=2,
        )


def _from_moments(
    pairs: Pairs,
    fast: Callable[[Pairs], tuple[Moments, Moments]],
    finish: Callable[[Moments, Moments], Tensor],
    bandwidth: float | None,
    hardness: float | None,
) -> Tensor:
    """What `finish` makes of the moments of genuine and impostor scores, which `fast` finds without the scores."""

    def slow(pairs: Pairs) -> Tensor:
        return finish(*score_moments(pairs, bandwidth, hardness)).to(pairs.q.z.dtype)

    if hardness is None:
        return slow(pairs) if read_scores(pairs) else finish(*fast(pairs)).to(pairs.q.z.dtype)
    if pairs.plain or pairs.block.miner is not None or bandwidth is not None:
        return slow(pairs)
    return walked(pairs, functools.partial(_near_walk, hardness=hardness, finish=finish), slow)


def _near_walk(
    tiles: Tiles, *, hardness: float, finish: Callable[[Moments, Moments], Tensor]
) -> tuple[Tensor, Gradient]:
    """As from `score_moments` with a hardness; each row's impostors about their own mean first."""

    def weighed(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Genuine scores, how much each impostor counts [rows k], and their number [rows]; x: 0 but for impostors."""
        genuine = tile.take(tile.same)
        for places in (tile.same, tile.off):
            tile.put(places, -torch.inf)
        number = tile.valid() - tile.sums(tile.same)
        weight = torch.mul(tile.x, hardness, out=tile.memory("weight"))
        tile.softmax_(weight)
        for places in (tile.same, tile.off):
            tile.put(places, 0.0)
        return genuine, weight.mul_(number[:, None]), number

    kinds: tuple[list[Tensor], list[Tensor]] = [], []
    for _, tile in tiles:
        genuine, weight, number = weighed(tile)
        alike = torch.ones_like(genuine, dtype=torch.double)
        some, mean, variance = pooled(alike, genuine.double(), 0 * alike)
        kinds[0].append(torch.stack([some, mean, some * variance])[:, None])
        mean = torch.linalg.vecdot(weight, tile.x) / number.clamp_min(1)
        away = tile.x.sub_(mean[:, None])
        kinds[1].append(torch.stack([number, mean, torch.linalg.vecdot(weight.mul_(away), away)]).double())
    found = [pooled(*torch.cat(parts, 1)) for parts in kinds]
    with torch.enable_grad():
        leaves = [value.requires_grad_() for _, *both in found for value in both]
        loss = finish(found[0], found[1])
        slopes = gradients(loss, leaves)

    def gradient(part: slice, tile: Tile) -> None:
        genuine, weight, _ = weighed(tile)
        for x, (number, mean, _), of_mean, of_variance in zip(
            (genuine, tile.x), found, slopes[::2], slopes[1::2], strict=True
        ):
            slope = torch.stack([2 * of_variance, of_mean]) / number.clamp_min(1)
            x.sub_(mean.detach().to(x.dtype)).mul_(slope[0].to(x.dtype)).add_(slope[1].to(x.dtype))
        tile.x.mul_(weight)
        tile.put(tile.same, genuine)

    return loss.detach(), gradient
