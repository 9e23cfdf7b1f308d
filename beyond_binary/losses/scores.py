"""Number, mean and variance of genuine and impostor scores; where it pays, without listing the pairs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import create_geometry
from ..targets.vectors import Classes
from ..walks import Pairs
from .common import as_number, masked_sum, split
from .groups import common_classes, equal_ids

CHUNK = 1 << 18  # numbers of the keys that are normalised at once: they stay in the cache
PRODUCTS = (create_geometry("cosine"), create_geometry("dot"))
Moments = tuple[Tensor, Tensor, Tensor]
"""Number, mean and variance (population) of some scores, float64."""


def pooled(number: Tensor, mean: Tensor, spread: Tensor) -> Moments:
    """Of groups [g] of scores, with their number, mean and centred squares: those of all together, population variance."""
    total = number.sum()
    centre = (number * mean).sum() / total.clamp_min(1)
    return total, centre, (spread + number * (mean - centre).square()).sum() / total.clamp_min(1)


def _together(parts: Sequence[Moments]) -> Moments:
    """Moments of all scores from those of parts of them."""
    number, mean, variance = (torch.stack(values) for values in zip(*parts, strict=True))
    return pooled(number, mean, number * variance)


def read_scores(pairs: Pairs) -> bool:
    """Whether the scores must be formed: the plain form is wanted, or they are no inner products by classes."""
    if pairs.plain or pairs.block.miner is not None or not isinstance(pairs.block.target, Classes):
        return True
    return pairs.block.geometry not in PRODUCTS


def score_moments(
    pairs: Pairs, bandwidth: float | None = None, hardness: float | None = None
) -> tuple[Moments, Moments]:
    """Moments of genuine and of impostor scores by forming them, in two passes: the reference for the fast forms."""

    def sums(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
        both = shares(x, y, valid, bandwidth, hardness)
        return torch.stack([t.sum(1) for share in both for t in (share, _times(share, x))], 1)

    def squares(x: Tensor, y: Tensor, valid: Tensor, means: Tensor) -> Tensor:
        both = zip(means, shares(x, y, valid, bandwidth, hardness), strict=True)
        return torch.stack([_times(share, (x - mean).square()).sum(1) for mean, share in both], 1)

    total = pairs.reduce(sums).double().sum(0)
    number = total[::2]
    number_or_1 = torch.where(number == 0, 1, number)
    means = total[1::2] / number_or_1
    spread = pairs.reduce(squares, shared=(means.to(pairs.q.z.dtype),)).double().sum(0) / number_or_1
    return (number[0], means[0], spread[0]), (number[1], means[1], spread[1])


def shares(
    x: Tensor, y: Tensor, valid: Tensor, bandwidth: float | None, hardness: float | None
) -> tuple[Tensor, Tensor]:
    """By how much each pair [q k] counts as genuine and as an impostor, in the type of x."""
    if bandwidth is None:
        genuine, impostor = (as_number(kind, x) for kind in split(y, valid))
    else:
        near = torch.where(valid, y / bandwidth, torch.inf).square()
        genuine, impostor = (-near / 2).exp().to(x), torch.where(valid, -torch.expm1(-near / 2), 0).to(x)
    return genuine, impostor if hardness is None else _harder(impostor, x, hardness)


def _harder(share: Tensor, x: Tensor, hardness: float) -> Tensor:
    """Shares of each row [q k] moved to high x, their sum as it was; without a gradient, as a miner's choice."""
    x = torch.where(share > 0, x.detach(), -torch.inf)
    top = x.amax(1, keepdim=True)
    weight = share * torch.where(share > 0, hardness * (x - top), 0).exp()
    total = weight.sum(1, keepdim=True)
    return weight * (share.sum(1, keepdim=True) / torch.where(total > 0, total, 1))


def _times(share: Tensor, x: Tensor) -> Tensor:
    """The product, 0 without a share, whatever x is."""
    return torch.where(share > 0, share * x, 0)


def proxy_moments(pairs: Pairs) -> tuple[Moments, Moments]:
    """Moments of the scores of items with their own and with all other proxies."""
    if 2 * max(len(pairs.q), len(pairs.k)) <= pairs.q.z.shape[1]:
        return score_moments(replace(pairs, tile=None))  # less work than covariances
    normalize = pairs.block.geometry == create_geometry("cosine")
    z = pairs.block.geometry.prepare(pairs.q.z)
    mean_key, cov_key, own = _KeyMoments.apply(pairs.k.z, pairs.q.code, normalize)
    n, c = len(z), len(pairs.k)
    genuine = (z * own).sum(1).double()
    mean, variance = _all_scores(*_mean_and_covariance(z), mean_key, cov_key)
    impostors = n * (c - 1)
    genuine_mean = genuine.mean()
    impostor_mean = (n * c * mean - genuine.sum()) / impostors
    around = n * c * (variance + (mean - impostor_mean).square()) - (genuine - impostor_mean).square().sum()
    spread = (genuine - genuine_mean).square().mean(), (around / impostors).clamp_min(0)
    return (genuine.new_tensor(n), genuine_mean, spread[0]), (genuine.new_tensor(impostors), impostor_mean, spread[1])


def _about_mean(z: Tensor) -> tuple[Tensor, Tensor]:
    """Points about their mean [n d], and the mean [d]."""
    mean = z.mean(0)
    return z - mean, mean


def _mean_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d d] of some points, float64."""
    away, mean = _about_mean(z)
    return mean.double(), (away.T @ away).double() / len(z)


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
    (grad,) = torch.autograd.grad((*_mean_and_covariance(keys), keys[rows]), z, grads, create_graph=True)
    return grad


def class_moments(pairs: Pairs) -> tuple[Moments, Moments]:
    """Moments of the scores of the same and of different classes, pairs of equal ids left out.

    Keys that were joined are taken part by part: what is remembered has no gradient, and is most of them.
    """
    if pairs.k.parts:
        of_parts = [class_moments(pairs.between(pairs.q, part)) for part in pairs.k.parts if len(part)]
        return _together([genuine for genuine, _ in of_parts]), _together([impostor for _, impostor in of_parts])
    q, k = pairs.prepared()
    away_q, mean_q = _about_mean(q)
    away_k, mean_k = (away_q, mean_q) if k is q else _about_mean(k)
    shift_q = away_q @ mean_k
    shift_k = shift_q if k is q else away_k @ mean_q
    centre = mean_q.double() @ mean_k.double()
    # a score less the mean of all is shift_q + shift_k + away_q away_k, and those three are uncorrelated
    variance = (shift_q.square().mean() + shift_k.square().mean() + _mean_square(away_q, away_k)).double()
    number, mean, spread = _genuine(pairs, away_q, away_k, shift_q, shift_k)
    row, column = equal_ids(pairs.q.id, pairs.k.id)
    # scores less the mean of all scores, each from centred points: nearly equal scores keep their digits
    at_q, at_k = away_q, away_k
    if k is not q or len(row) != len(q):  # else each item is the same as itself alone
        at_q, at_k, shift_q, shift_k = away_q[row], away_k[column], shift_q[row], shift_k[column]
    same_thing = (torch.linalg.vecdot(at_q, at_k) + shift_q + shift_k).double()
    genuine, genuine_mean, genuine_variance = pooled(number, mean, spread)
    everything = len(q) * len(k)
    impostors = everything - len(row) - genuine
    impostor_mean = -((number * mean).sum() + same_thing.sum()) / impostors.clamp_min(1)
    around = everything * (variance + impostor_mean.square()) - (same_thing - impostor_mean).square().sum()
    around = around - (spread + number * (mean - impostor_mean).square()).sum()
    impostor_variance = (around / impostors.clamp_min(1)).clamp_min(0)
    return (genuine, centre + genuine_mean, genuine_variance), (impostors, centre + impostor_mean, impostor_variance)


def _mean_square(q: Tensor, k: Tensor) -> Tensor:
    """Mean of the squared inner products of two sets of points: formed if they are few, else by second moments [d d]."""
    if 2 * len(q) * len(k) <= q.numel() + k.numel():
        return (q @ k.T).square().mean()
    of_q = (q.T @ q).double() / len(q)
    return (of_q * (of_q if k is q else (k.T @ k).double() / len(k))).sum()


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
        away_a, mean_a = _about_mean(a)
        away_b, mean_b = (away_a, mean_a) if b is a else _about_mean(b)
        by_a, by_b = away_a @ mean_b + s - s.mean(), away_b @ mean_a + t - t.mean()
        # a score less its class's mean is by_a + by_b + away_a away_b, and those three are uncorrelated
        number = len(a) * len(b)
        spread = number * (by_a.square().mean() + by_b.square().mean() + _mean_square(away_a, away_b)).double()
        row, column = equal_ids(ids_a, ids_b)
        off = (torch.linalg.vecdot(away_a[row], away_b[column]) + by_a[row] + by_b[column]).double()
        left = max(number - len(row), 1)
        moved = -off.sum() / left
        spread = spread - off.square().sum() - left * moved.square()
        mean = mean_a.double() @ mean_b.double() + s.mean().double() + t.mean().double() + moved
        columns.append(torch.stack([mean.new_tensor(number - len(row)), mean, spread.clamp_min(0)]))
    return torch.stack(columns, 1)


def mean_of_different(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Number (at least 1) and mean of the scores of different labels; by sums over classes where that can be."""
    if read_scores(pairs):
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
