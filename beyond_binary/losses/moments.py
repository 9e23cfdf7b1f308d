"""Losses from means and variances of genuine and impostor scores, computed without listing the pairs."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import distributed
from ..geometry import create_geometry
from ..targets.vectors import Classes
from ..walks import Pairs
from . import register_loss
from .common import as_number, masked_sum, split
from .groups import common_classes, equal_ids

CHUNK = 1 << 18  # numbers of the keys that are normalised at once: they stay in the cache
PRODUCTS = (create_geometry("cosine"), create_geometry("dot"))
Form = Literal["neg_log", "inverse", "neg"]
Moments = tuple[Tensor, Tensor, Tensor]
"""Number, mean and variance (population) of some scores, float64."""


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
    bandwidth: float | None = None,
) -> Tensor:
    """Proxy-decidability loss: `-log(mu_gen - mu_imp) + log(var_gen + var_imp) / 2` on cosine scores.

    Genuine scores are those of each item with its own class's proxy, impostor scores those with all other proxies;
    variances are population variances. This is the published form (repository of the paper), minus the logarithm of
    decidability d' up to a constant. A temperature on the scores would cancel, so there is none.

    The sum of all scores is a product of two mean vectors, their centred squares one of two covariances, and the
    impostor part is what remains after the genuine part. Proxies are normalised in chunks, forward and backward.

    Our extension to labels that are not classes: proxies with labels of their own (`proxy_codes`), such as the k-means
    centres that `label_centres` finds, or one for each label of a set with target `within('multi_label', radius=0.999)`.
    With a `bandwidth`, for targets with distances, a pair at label distance y is genuine by the share
    `exp(-(y / bandwidth)^2 / 2)` and an impostor by the rest, and means and variances are weighted by these shares.
    Shares of 1 and 0 give the form for classes.

    Paper settings: not known beyond the form; proxies start at class means in the repository (the default here), random
    in the paper.
    Cost: O((n + c) d^2) time; memory O(n d + d^2) beside the proxies and their gradient. O(n c d) time and memory of a
    tile for labels that are not classes.

    Args:
        pairs: items against proxies.
        form: what is made of `d = (mu_gen - mu_imp) / sqrt(var_gen + var_imp)`: `-log d` (published), `1 / d` or `-d`.
        d_floor: below this d `-log d` and `1 / d` go on as their tangents, so that a gap of 0 or less still has a
            gradient.
        variance_floor: added to the summed variances; 0 lets the loss fall without bound as both spreads vanish (NaN
            where all scores are equal).
        bandwidth: label distance within which a pair is mostly genuine, in the target's unit; None: pairs are either.

    Returns:
        The loss, a scalar; 0 if no pair is genuine or none an impostor.
    """
    genuine, impostor = score_moments(pairs, bandwidth) if _read_scores(pairs) else _proxy_moments(pairs)
    some = (genuine[0] > 0) & (impostor[0] > 0)
    variance = torch.where(some, genuine[2] + impostor[2], 1)
    loss = decidability(form, genuine[1] - impostor[1], variance, d_floor, variance_floor)
    return torch.where(some, loss, 0).to(pairs.q.z.dtype)


def decidability(form: Form, gap: Tensor, variance: Tensor, d_floor: float, variance_floor: float) -> Tensor:
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
    bandwidth: float | None = None,
) -> Tensor:
    """Decidability loss: genuine and impostor scores of the block apart, in units of their spread.

    `d' = (mu_gen - mu_imp) / sqrt((var_gen + var_imp) / 2 + variance_floor)` over all pairs of the same and of
    different classes, population variances. The loss is `-log d'`, `1 / d'` or `-d'`: all fall as d' grows. Which of
    them the paper takes is not known here (no code of the authors was found). d' is signed; the authors of the measure
    take the absolute gap, which would train a wrong sign to become more wrong.

    With few genuine pairs d' is a noisy estimate (5 pairs: about 10 % of it, and biased), so draw several items of
    each class: `sampling.py` has samplers of classes times items.

    With target `classes` the pairs are never listed: sums over all pairs come from mean vectors and covariances,
    genuine pairs from each class, and pairs of equal ids are taken off. Other targets and miners walk the block.

    Our extension to targets with distances: with a `bandwidth` pairs are genuine by a share, as in pd_loss.

    Paper settings: not known.
    Cost: O(n d^2) time and O(n d + d^2) memory for classes; O(n^2 d) time, memory of a tile, otherwise.

    Args:
        pairs: the block of pairs.
        form: what is made of d'.
        d_floor: below this d' `-log d'` and `1 / d'` go on as their tangents.
        variance_floor: added to the mean of the variances; 0 lets the loss fall without bound as both spreads vanish (NaN
            where all scores are equal).
        warn_below: warn, once in a process, if one of the first 20 batches with gradients has fewer genuine pairs than
            this. 0: never.
        bandwidth: label distance within which a pair is mostly genuine, in the target's unit; None: pairs are either.

    Returns:
        The loss, a scalar; 0 if there is no genuine or no impostor pair.
    """
    genuine, impostor = score_moments(pairs, bandwidth) if _read_scores(pairs) else _class_moments(pairs)
    if warn_below and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        few_genuine(genuine[0], warn_below)
    some = (genuine[0] > 0) & (impostor[0] > 0)
    gap = genuine[1] - impostor[1]
    variance = torch.where(some, (genuine[2] + impostor[2]) / 2, 1)
    loss = decidability(form, gap, variance, d_floor, variance_floor)
    return torch.where(some, loss, 0).to(pairs.q.z.dtype)


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


def _read_scores(pairs: Pairs) -> bool:
    """Whether the scores must be formed: the plain form is wanted, or they are no inner products by classes."""
    if pairs.plain or pairs.block.miner is not None or not isinstance(pairs.block.target, Classes):
        return True
    return pairs.block.geometry not in PRODUCTS


def score_moments(pairs: Pairs, bandwidth: float | None = None) -> tuple[Moments, Moments]:
    """Moments of genuine and of impostor scores by forming them, in two passes: the reference for the fast forms."""

    def sums(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        return torch.stack([t.sum(1) for share in shares(x, y, valid, bandwidth) for t in (share, _times(share, x))], 1)

    def squares(x: Tensor, y: Tensor, valid: Tensor, means: Tensor) -> Tensor:
        both = zip(means, shares(x, y, valid, bandwidth), strict=True)
        return torch.stack([_times(share, (x - mean).square()).sum(1) for mean, share in both], 1)

    total = pairs.reduce(sums).double().sum(0)
    number = total[::2]
    number_or_1 = torch.where(number > 0, number, 1)
    means = total[1::2] / number_or_1
    spread = pairs.reduce(squares, shared=(means.to(pairs.q.z.dtype),)).double().sum(0) / number_or_1
    return (number[0], means[0], spread[0]), (number[1], means[1], spread[1])


def shares(x: Tensor, y: Tensor, valid: Tensor, bandwidth: float | None) -> tuple[Tensor, Tensor]:
    """By how much each pair [q k] is genuine and an impostor, from 0 to 1, in the type of x."""
    if bandwidth is None:
        genuine, impostor = split(y, valid)
        return as_number(genuine, x), as_number(impostor, x)
    near = torch.where(valid, y / bandwidth, torch.inf).square()
    return (-near / 2).exp().to(x), torch.where(valid, -torch.expm1(-near / 2), 0).to(x)


def _times(share: Tensor, x: Tensor) -> Tensor:
    """The product, 0 without a share, whatever x is."""
    return torch.where(share > 0, share * x, 0)


def _proxy_moments(pairs: Pairs) -> tuple[Moments, Moments]:
    """Moments of the scores of items with their own and with all other proxies."""
    normalize = pairs.block.geometry == create_geometry("cosine")
    z = pairs.block.geometry.prepare(pairs.q.z)
    mean_key, cov_key, own = _KeyMoments.apply(pairs.k.z, pairs.q.code, normalize)
    n, c = len(z), len(pairs.k)
    genuine = (z * own).sum(1).double()
    mean, variance = _all_scores(*_centred(z)[1:], mean_key, cov_key)
    impostors = n * (c - 1)
    genuine_mean = genuine.mean()
    impostor_mean = (n * c * mean - genuine.sum()) / impostors
    around = n * c * (variance + (mean - impostor_mean).square()) - (genuine - impostor_mean).square().sum()
    spread = (genuine - genuine_mean).square().mean(), (around / impostors).clamp_min(0)
    return (genuine.new_tensor(n), genuine_mean, spread[0]), (genuine.new_tensor(impostors), impostor_mean, spread[1])


def _centred(z: Tensor) -> Moments:
    """Points about their mean [n d], the mean [d] and the covariance [d d], the last two in float64."""
    mean = z.mean(0)
    away = z - mean
    return away, mean.double(), (away.T @ away).double() / len(z)


def _all_scores(mean_q: Tensor, cov_q: Tensor, mean_k: Tensor, cov_k: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all inner products between two sets of points, from the sets' means and covariances."""
    variance = mean_k @ cov_q @ mean_k + mean_q @ cov_k @ mean_q + (cov_q * cov_k).sum()
    return mean_q @ mean_k, variance


class _KeyMoments(torch.autograd.Function):
    """Mean [d], covariance [d d] (float64) of all keys and the keys [n d] of some rows; normalised in chunks."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, rows: Tensor, normalize: bool) -> Moments:
        rank, d = max(1, CHUNK // z.shape[1]), z.shape[1]
        second = torch.zeros(d, d, dtype=torch.float64, device=z.device)
        means, sizes = [], []
        for part in z.split(rank):
            keys = F.normalize(part, dim=1) if normalize else part
            centre = keys.mean(0)
            keys = keys - centre
            second += keys.T @ keys
            means.append(centre.double() + keys.mean(0))
            sizes.append(len(part))
        size = torch.tensor(sizes, dtype=torch.float64, device=z.device)[:, None] / len(z)
        of_parts = torch.stack(means)
        mean = (size * of_parts).sum(0)
        away = of_parts - mean
        cov = second / len(z) + (size * away).T @ away
        own = F.normalize(z[rows], dim=1) if normalize else z[rows]
        ctx.save_for_backward(z, rows, mean)
        ctx.normalize, ctx.rank = normalize, rank
        return mean, cov, own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        z, rows, mean = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiate_keys(z, rows, ctx.normalize, grads), None, None
        grad_mean, grad_cov, grad_own = grads
        turn = ((grad_cov + grad_cov.T) / len(z)).to(z.dtype)
        push, mean = (grad_mean / len(z)).to(z.dtype), mean.to(z.dtype)
        grad = torch.empty_like(z)
        for part, out in zip(z.split(ctx.rank), grad.split(ctx.rank), strict=True):
            _pull_keys(part, mean, turn, push, ctx.normalize, out)
        _add_rows(grad, z, rows, grad_own, ctx.normalize)
        return grad, None, None


def _pull_keys(z: Tensor, mean: Tensor, turn: Tensor, push: Tensor, normalize: bool, out: Tensor) -> None:
    """Gradient of some keys from those of mean and covariance, written to `out`."""
    if not normalize:
        torch.addmm(push, z - mean, turn, out=out)
        return
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    tiny = length < EPS
    keys = z / length.clamp_min(EPS)
    torch.addmm(push, keys - mean, turn, out=out)
    along = torch.linalg.vecdot(keys, out)[:, None].masked_fill_(tiny, 0)
    out.sub_(keys.mul_(along)).div_(length.clamp_min_(EPS))


EPS = 1e-12  # of torch.nn.functional.normalize


def _add_rows(grad: Tensor, z: Tensor, rows: Tensor, grad_own: Tensor, normalize: bool) -> None:
    """Add the gradient of the keys of some rows."""
    if normalize:
        with torch.enable_grad():
            leaf = z[rows].requires_grad_()
            (grad_own,) = torch.autograd.grad(F.normalize(leaf, dim=1), leaf, grad_own)
    grad.index_add_(0, rows, grad_own)


def _differentiate_keys(z: Tensor, rows: Tensor, normalize: bool, grads: Sequence[Tensor]) -> Tensor:
    """The gradient with a graph of its own, for higher derivatives."""
    z = z.view_as(z)
    keys = F.normalize(z, dim=1) if normalize else z
    (grad,) = torch.autograd.grad((*_centred(keys)[1:], keys[rows]), z, grads, create_graph=True)
    return grad


def _class_moments(pairs: Pairs) -> tuple[Moments, Moments]:
    """Moments of the scores of the same and of different classes, pairs of equal ids left out."""
    q, k = pairs.prepared()
    away_q, mean_q, cov_q = _centred(q)
    away_k, mean_k, cov_k = (away_q, mean_q, cov_q) if k is q else _centred(k)
    centre, variance = _all_scores(mean_q, cov_q, mean_k, cov_k)
    shift_q = away_q @ mean_k.to(q.dtype)
    shift_k = shift_q if k is q else away_k @ mean_q.to(q.dtype)
    number, mean, spread = _genuine(pairs, away_q, away_k, shift_q, shift_k)
    row, column = equal_ids(pairs.q.id, pairs.k.id)
    # scores less the mean of all scores, each from centred points: nearly equal scores keep their digits
    at_q, at_k = away_q, away_k
    if k is not q or len(row) != len(q):  # else each item is the same as itself alone
        at_q, at_k, shift_q, shift_k = away_q[row], away_k[column], shift_q[row], shift_k[column]
    same_thing = (torch.linalg.vecdot(at_q, at_k) + shift_q + shift_k).double()
    genuine = number.sum()
    genuine_mean = (number * mean).sum() / genuine.clamp_min(1)
    genuine_variance = (spread + number * (mean - genuine_mean).square()).sum() / genuine.clamp_min(1)
    everything = len(q) * len(k)
    impostors = everything - len(row) - genuine
    impostor_mean = -((number * mean).sum() + same_thing.sum()) / impostors.clamp_min(1)
    around = everything * (variance + impostor_mean.square()) - (same_thing - impostor_mean).square().sum()
    around = around - (spread + number * (mean - impostor_mean).square()).sum()
    impostor_variance = (around / impostors.clamp_min(1)).clamp_min(0)
    return (genuine, centre + genuine_mean, genuine_variance), (impostors, centre + impostor_mean, impostor_variance)


def _genuine(pairs: Pairs, q: Tensor, k: Tensor, shift_q: Tensor, shift_k: Tensor) -> Moments:
    """Number of genuine pairs of each class, mean of their scores, and centred squares, [c] each, float64."""
    sides = (q, shift_q, pairs.q.id), (k, shift_k, pairs.k.id)
    *orders, runs = common_classes(pairs.q.code, pairs.k.code)
    found, starts = [torch.zeros(3, 0, dtype=torch.float64, device=q.device)], [0, 0]
    for (by_gram, *_), group in itertools.groupby(runs, functools.partial(_kind, width=q.shape[1])):
        together, points = list(group), []
        many = torch.tensor([g for g, *_ in together])
        for i in range(1 if pairs.k is pairs.q else 2):
            size = torch.tensor([run[1 + i] for run in together]).repeat_interleave(many).to(q.device)
            first = starts[i] + size.cumsum(0) - size
            starts[i] += sum(run[0] * run[1 + i] for run in together)
            if by_gram:
                inside = torch.arange(max(run[1 + i] for run in together), device=q.device)
                at = orders[i][(first[:, None] + inside).clamp_max_(len(orders[i]) - 1)]
                points += [t.index_select(0, at.flatten()).unflatten(0, at.shape) for t in sides[i]]
                points.append(inside < size[:, None])
            else:
                items = [orders[i][a : a + m] for a, m in zip(first.tolist(), size.tolist(), strict=True)]
                points += [[t[of] for of in items] for t in sides[i]]
        points *= 2 if pairs.k is pairs.q else 1
        found.append((_by_gram if by_gram else _by_covariance)(*points))
    number, mean, spread = torch.cat(found, 1)
    return number, mean, spread


def _kind(run: tuple[int, int, int], width: int) -> tuple[bool, int, int]:
    """Whether classes are small enough for products of their points, and roughly how large they are."""
    _, m, n = run
    return min(m, n) <= width, (max(m, 8) - 1).bit_length(), (max(n, 8) - 1).bit_length()


def _by_gram(
    q: Tensor, shift_q: Tensor, id_q: Tensor, own_q: Tensor, k: Tensor, shift_k: Tensor, id_k: Tensor, own_k: Tensor
) -> Tensor:
    """Number, mean and centred squares [3 g] for g classes of up to [g m d] and [g n d] points, by their scores [g m n].

    Of the points those count that `own_q` [g m] and `own_k` [g n] name.
    """
    counts = (id_q[:, :, None] != id_k[:, None, :]) & own_q[:, :, None] & own_k[:, None, :]
    number = counts.sum((1, 2))
    at = shift_q[:, 0] + shift_k[:, 0]
    scores = torch.baddbmm((shift_q - at[:, None])[:, :, None] + shift_k[:, None, :], q, k.mT)
    mean = torch.where(counts, scores, 0).sum((1, 2)) / number.clamp_min(1)
    spread = torch.where(counts, scores - mean[:, None, None], 0).square().sum((1, 2))
    return torch.stack([number.double(), mean.double() + at, spread.double()])


def _by_covariance(
    q: list[Tensor],
    shift_q: list[Tensor],
    id_q: list[Tensor],
    k: list[Tensor],
    shift_k: list[Tensor],
    id_k: list[Tensor],
) -> Tensor:
    """As `_by_gram`, for classes larger than the points are wide: by covariances [d d], equal ids taken off."""
    columns = []
    for a, s, ids_a, b, t, ids_b in zip(q, shift_q, id_q, k, shift_k, id_k, strict=True):
        away_a, mean_a, cov_a = _centred(a)
        away_b, mean_b, cov_b = (away_a, mean_a, cov_a) if b is a else _centred(b)
        by_a, by_b = away_a @ mean_b.to(a.dtype) + s - s.mean(), away_b @ mean_a.to(a.dtype) + t - t.mean()
        # a score less its class's mean is by_a + by_b + away_a away_b, and those three are uncorrelated
        number = len(a) * len(b)
        spread = number * (by_a.square().mean().double() + by_b.square().mean().double() + (cov_a * cov_b).sum())
        row, column = equal_ids(ids_a, ids_b)
        off = (torch.linalg.vecdot(away_a[row], away_b[column]) + by_a[row] + by_b[column]).double()
        left = max(number - len(row), 1)
        moved = -off.sum() / left
        spread = spread - off.square().sum() - left * moved.square()
        mean = mean_a @ mean_b + s.mean().double() + t.mean().double() + moved
        columns.append(torch.stack([mean.new_tensor(number - len(row)), mean, spread.clamp_min(0)]))
    return torch.stack(columns, 1)


def mean_of_different(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Number (at least 1) and mean of the scores of different labels; by sums over classes where that can be."""
    if _read_scores(pairs):
        x = pairs.reduce(_sums_of_different).sum(0)
        number = x[0].detach().clamp_min(1)
        return number, x[1] / number
    q, k = pairs.prepared()
    classes, slot = torch.unique(torch.cat([pairs.q.code, pairs.k.code]), return_inverse=True)
    slots = slot.split([len(q), len(k)])
    sizes = [s.bincount(minlength=len(classes)) for s in slots]
    of_q = _sums_by(q, slots[0], len(classes))
    of_k = of_q if k is q else _sums_by(k, slots[1], len(classes))
    number = len(q) * len(k) - (sizes[0] * sizes[1]).sum()
    total = of_q.sum(0) @ of_k.sum(0) - torch.dot(of_q.flatten(), of_k.flatten())
    row, column = equal_ids(pairs.q.id, pairs.k.id)
    other = (pairs.q.code[row] != pairs.k.code[column]).nonzero()[:, 0]
    if len(other):
        number = number - len(other)
        total = total - (q[row[other]] * k[column[other]]).sum()
    number = number.clamp_min(1)
    return number, total / number


def _sums_by(z: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Sums of the points of each slot [slots d]."""
    return z.new_zeros(slots, z.shape[1]).index_add(0, slot, z)


def _sums_of_different(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Number and sum of a row's scores of different labels [q 2]."""
    _, negative = split(y, valid)
    return torch.stack([as_number(negative, x).sum(1), masked_sum(x, negative)], 1)
