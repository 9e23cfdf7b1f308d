"""Triplet losses over all triplets of a row, without ever listing a triplet."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from . import Rows, in_order, in_place, register_loss
from .common import as_number, softplus, split

Triplets = Literal["all", "semi_hard", "hard", "facenet"]


@register_loss(
    "triplet",
    reads="same",
    in_place=in_place.triplet,
    x="distance",
    geometry="euclidean(normalize=True)",
    paper="Schroff, Kalenichenko, Philbin: FaceNet, CVPR 2015; Hermans, Beyer, Leibe: In Defense of the Triplet Loss, 2017",
)
def triplet(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    margin: float = 0.2,
    triplets: Triplets = "all",
    hinge: Literal["hinge", "soft"] = "hinge",
    power: Literal[1, 2] = 1,
    average: Literal["active", "all"] = "active",
) -> Rows:
    """Triplet hinge `[d_ap - d_an + margin]_+` over all triplets of each row (equation 2 of FaceNet).

    FaceNet squares the distances (`geometry="squared_euclidean(normalize=True)"`) and sums; the default here is the
    plain distance of Hermans et al. and pytorch-metric-learning, averaged over the triplets that cost something.
    The swap of anchor and positive is `swapped_triplet`: it reads the distance from positive to negative, which a row
    of distances to the anchor does not have.

    With a row's positives sorted by falling distance and their prefix sums S_k, a negative at distance d_n meets the
    first k positives, those with d_p > d_n - margin, and adds S_k + k (margin - d_n).

    Paper settings: FaceNet `margin=0.2, triplets="facenet"` on squared distances; Hermans et al. `hinge="soft",
    margin=0` with `mining="batch_hard"`.
    Cost: O(k log positives) time and O(k) memory a row; the soft hinge O(k positives) time, O(k) memory.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        margin: how much nearer the positive must be, in the unit of x.
        triplets: `all`; `semi_hard`: only those with d_ap < d_an < d_ap + margin; `hard`: with d_an <= d_ap;
            `facenet`: for each positive the nearest negative beyond it, or the farthest negative if none is.
        hinge: `hinge`, or `soft`: `log(1 + exp(d_ap - d_an + margin))`, whose every triplet is active.
        power: exponent of the cost of a triplet.
        average: over the `active` triplets, or over `all` triplets (|positives| x |negatives|, of which `semi_hard`
            and `hard` cost only some; for `facenet` one per positive).

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    positives, negatives = as_number(positive, x).sum(1), as_number(negative, x).sum(1)
    width = x.shape[1] if torch.compiler.is_compiling() or not len(x) else max(int(positives.max()), 1)
    far, order = torch.where(positive, x, -torch.inf).topk(width, dim=1)
    real = positive.gather(1, order)
    if triplets == "facenet":
        value, active = _facenet(x, far, real, negative, margin, hinge, power)
        return value, active if average == "active" else torch.where(negatives > 0, positives, 0)
    if hinge == "soft":
        value, active = _soft(x, far, real, negative, margin, triplets, power)
    else:
        met = _farther(far, x - margin, negative)
        skipped = torch.zeros_like(met)
        if triplets == "semi_hard":  # without those at d_p >= d_n, which come first
            skipped = torch.minimum(_farther(far, x, negative, equal=True), met)
        elif triplets == "hard":
            met = torch.minimum(_farther(far, x, negative, equal=True), met)
        value, active = (_sum_of_costs if power == 1 else _sum_of_squares)(x - margin, far, real, skipped, met)
    return value, active if average == "active" else positives * negatives


def _sum_of_costs(limit: Tensor, far: Tensor, real: Tensor, skipped: Tensor, met: Tensor) -> Rows:
    """Per row the sum over its limits [q k] of `far - limit` for positives number skipped..met, and their number."""
    prefix = pad(torch.where(real, far, 0).cumsum(1), (1, 0))
    number = (met - skipped).to(far.dtype)
    total = prefix.gather(1, met) - prefix.gather(1, skipped)
    return torch.addcmul(total, number, limit, value=-1).sum(1), number.sum(1)


def _sum_of_squares(limit: Tensor, far: Tensor, real: Tensor, skipped: Tensor, met: Tensor) -> Rows:
    """The same of squares, `sum far^2 - 2 limit sum far + number limit^2`, around each row's mean positive."""
    weight = as_number(real, far)
    centre = torch.where(real, far, 0).detach().sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
    far, limit = torch.where(real, far - centre, 0), limit - centre
    number = (met - skipped).to(far.dtype)
    first, second = (
        p.gather(1, met) - p.gather(1, skipped) for p in (pad(a.cumsum(1), (1, 0)) for a in (far, far.square()))
    )
    return (second + limit * (number * limit - 2 * first)).sum(1), number.sum(1)


def _cost(gap: Tensor, hinge: str, power: int) -> Tensor:
    """Cost of triplets with gaps d_ap - d_an + margin."""
    return (softplus(gap) if hinge == "soft" else gap.relu()).pow(power)


def _soft(x: Tensor, far: Tensor, real: Tensor, negative: Tensor, margin: float, triplets: str, power: int) -> Rows:
    """Soft hinges, which no prefix sum gives: one positive at a time, computed again in the backward pass."""
    far = torch.where(real, far, 0)

    def of_one(x: Tensor, positive: Tensor, exists: Tensor) -> Tensor:
        gap = positive - x
        use = negative & exists
        if triplets == "semi_hard":
            use = use & (gap < 0) & (gap + margin > 0)
        elif triplets == "hard":
            use = use & (gap >= 0) & (gap + margin > 0)
        return torch.stack([torch.where(use, _cost(gap + margin, "soft", power), 0).sum(1), as_number(use, x).sum(1)])

    sums = x.new_zeros(2, len(x))
    again = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    for one in zip(far.split(1, dim=1), real.split(1, dim=1), strict=True):
        sums = sums + (
            checkpoint(of_one, x, *one, use_reentrant=False, preserve_rng_state=False) if again else of_one(x, *one)
        )
    return sums[0], sums[1].detach()


def _facenet(x: Tensor, far: Tensor, real: Tensor, negative: Tensor, margin: float, hinge: str, power: int) -> Rows:
    """Each positive with the nearest negative beyond it, or the farthest: one search among the sorted negatives."""
    near, order = torch.where(negative, x, torch.inf).detach().sort(1)
    last = negative.sum(1, keepdim=True) - 1
    place = torch.searchsorted(near, far.detach(), right=True)
    chosen = order.gather(1, torch.minimum(place, last.clamp_min(0)))
    use = real & (last >= 0)
    gap = torch.where(use, far, 0) - x.gather(1, chosen) + margin
    cost = torch.where(use, _cost(gap, hinge, power), 0)
    return cost.sum(1), as_number(cost > 0, x).sum(1)


def _farther(far: Tensor, limit: Tensor, mask: Tensor, equal: bool = False) -> Tensor:
    """How many of the row's falling distances [q p] exceed (or equal) each limit [q k]; 0 outside `mask`."""
    far, limit = far.detach(), limit.detach()
    if far.shape[1] > 32 or torch.compiler.is_compiling():
        number = torch.searchsorted(-far, -limit, right=equal)
        return torch.where(mask, number, 0)
    number = torch.zeros_like(mask, dtype=torch.uint8)
    for each in far.split(1, dim=1):  # few positives: quicker than a search
        number += ((limit <= each) if equal else (limit < each)).view(torch.uint8)
    return (number * mask.view(torch.uint8)).long()


@register_loss(
    "dense_triplet",
    reads="order",
    in_place=in_order.dense_triplet,
    x="distance",
    geometry="squared_euclidean(normalize=True)",
    paper="Kim et al.: Deep Metric Learning Beyond Binary Supervision, CVPR 2019 (the baseline with dense triplets)",
)
def dense_triplet(
    x: Tensor,
    y: Tensor,
    valid: Tensor,
    *,
    margin: float = 0.03,
    ties: Literal["exclude", "include"] = "exclude",
    average: Literal["all", "active"] = "all",
) -> Rows:
    """Triplet hinge over dense triplets: every pair i, j of a row with y_i < y_j (equation 7 of the paper).

    The sum of `[x_i - x_j + margin]_+` is linear in x between the kinks: with c_i the number of costing pairs in which
    i is the nearer label, less the number in which it is the farther one, it is `sum c_i x_i + margin * pairs`. The
    counts come from integers alone, by a search over ranks, and no pair is ever listed.

    The authors' code walks the keys sorted by label and so takes pairs of equal labels too, in whatever order its list
    has them; the paper's strict inequality leaves them out. pytorch-metric-learning has no such loss.

    Paper settings: the defaults, squared distances of normalised embeddings (authors' code; `ties="include"`).
    Cost: O(k (256 + k / 256)) time on the CPU, plus O(k t) for the t keys of the longest tie; O(k log^2 k) elsewhere, and
    for classes; O(k) memory a row. Under torch.compile O(k^2) of both.

    Args:
        x: distances [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        margin: how much nearer the key with the nearer label must be, in the unit of x.
        ties: `exclude` pairs of equal label distance (paper), or `include` them in the order of the keys (code).
        average: over `all` such pairs (authors' code), or over the `active` ones, which cost something.

    Returns:
        value and count [q].
    """
    rank, before = _label_ranks(y, valid, ties == "include")
    centred = x - torch.where(valid, x, 0).detach().mean(1, keepdim=True)  # the counts add up to 0
    as_near, as_far = _costing_pairs(x.detach(), rank, valid, margin)
    active = as_far.sum(1)
    value = torch.linalg.vecdot(centred, as_near - as_far) + margin * active
    return value, active if average == "active" else before.to(x.dtype).sum(1)


def _label_ranks(y: Tensor, valid: Tensor, apart: bool) -> tuple[Tensor, Tensor]:
    """Rank of each key's label in its row, and number of valid keys that rank before it (0 if not valid), [q k].

    Equal labels have one rank unless they are told `apart` by their order in the row.
    """
    ordered, order = torch.where(valid, y, torch.inf).sort(dim=1, stable=True)
    position = torch.arange(y.shape[1], device=y.device).expand_as(order)
    new = ordered[:, 1:] != ordered[:, :-1]
    step = pad(torch.ones_like(new) if apart else new, (1, 0))
    rank, before = step.cumsum(1), torch.where(step, position, 0).cummax(1).values if y.shape[1] else position
    back = torch.empty_like(order).scatter_(1, order, position)
    return rank.gather(1, back), torch.where(valid, before.gather(1, back), 0)


SOME_PAIRS = 1 << 15  # walked at once by `_costing_pairs`


def _costing_pairs(x: Tensor, rank: Tensor, valid: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Per key, in how many pairs with rank_i < rank_j and x_i > x_j - margin it is i, and in how many j, [q k].

    Each key is entered twice, as x and as x - margin, and numbered by value. In the order of ranks, x - margin first
    among equals, a pair is an x somewhere before an x - margin with a lower number: what merge sort counts, in blocks
    of twice the size each time, as pairs of a left and a right half.
    """
    q, k = x.shape
    if q * k > SOME_PAIRS and q > 1 and not torch.compiler.is_compiling():  # some rows at a time stay in the cache
        parts = zip(*(t.split(max(SOME_PAIRS // k, 1)) for t in (x, rank, valid)), strict=True)
        near, far = zip(*(_costing_pairs(a, b, c, margin) for a, b, c in parts), strict=True)
        return torch.cat(near), torch.cat(far)
    if torch.compiler.is_compiling() or not x.numel():
        pair = (rank[:, :, None] < rank[:, None, :]) & (x[:, :, None] > (x - margin)[:, None, :])
        pair = (pair & valid[:, :, None] & valid[:, None, :]).to(x.dtype)
        return pair.sum(2), pair.sum(1)
    order = torch.cat([x, x - margin], 1).argsort(
        dim=1, stable=True
    )  # of equals, x before x - margin: they do not cost
    entries, bits = _entries(order, rank, valid)
    place = torch.arange(1 << bits, device=x.device, dtype=entries.dtype)
    total = entries.new_zeros(entries.shape)
    for level in range(bits):
        half, block = (place >> level) & 1, place >> (level + 1) << (bits + 3)
        entries = _sorted(entries | half << 2 | block) & ((8 << bits) - 1)
        low, high = ((entries & mask) == flags for mask, flags in ((6, 2), (5, 5)))
        entries &= -5
        lows, highs = (m.cumsum(1, dtype=entries.dtype).view(q, -1, 2 << level) for m in (low, high))
        behind = highs - pad(highs[:, :-1, -1:], (0, 0, 1, 0))
        ahead = lows[:, :, -1:] - lows
        number = low * behind.view(q, -1) + high * ahead.view(q, -1)
        total.scatter_add_(1, (entries >> 3).long(), number)
    both = torch.empty_like(order).scatter_(1, order, total[:, : 2 * k].long()).to(x.dtype)
    return both[:, :k], both[:, k:]


def _entries(order: Tensor, rank: Tensor, valid: Tensor) -> tuple[Tensor, int]:
    """The keys as x and as x - margin in the order of ranks, and the bits of their number.

    An entry is 8 * number + 2 if it is a valid x, or + 1 if a valid x - margin; 4 is for the half of a block. Filled up
    to a power of two with entries that are neither.
    """
    k = rank.shape[1]
    bits = (2 * k - 1).bit_length()
    number = torch.arange(2 * k, device=order.device)
    as_x = order < k
    kind = torch.where(as_x, 2, 1) * valid.repeat(1, 2).gather(1, order)
    label = rank.repeat(1, 2).gather(1, order) * 2 + as_x
    entries = _sorted(label << (bits + 3) | number << 3 | kind) & ((8 << bits) - 1)
    entries = pad(entries, (0, (1 << bits) - 2 * k), value=(8 << bits) - 8)
    return entries.int() if 2 * bits + 2 < 31 else entries, bits


def _sorted(keys: Tensor) -> Tensor:
    """Rows of integers sorted; on the CPU by numpy, which is several times faster."""
    return torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(1).values
