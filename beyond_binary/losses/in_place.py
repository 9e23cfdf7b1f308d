"""In-place forms: value and gradient of a row loss on one tile, without a graph, in the memory of the tile.

Positives are few, so they and the pairs that do not count are lists of places; the rest of the tile is walked as a
whole, without masks. Each form is tested equal to the plain function it belongs to.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..tiles import Tile
from .common import softplus

Rows = tuple[Tensor, Tensor]


def multi_similarity(tile: Tile, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5) -> Rows:
    """See `losses.tuples.multi_similarity`."""
    x, same = tile.x, tile.same
    pull, weight = tile.place_softmax(same, alpha * (base - tile.take(same)), extra=0.0)
    tile.put(same, -torch.inf)
    tile.put(tile.off, -torch.inf)
    push = tile.softmax_(x.sub_(base).mul_(beta), extra=0.0)
    tile.put(same, -weight)
    tile.put(tile.off, 0.0)
    return pull / alpha + push / beta, tile.valid() > 0


def softmax_over_keys(tile: Tile, temperature: float) -> Rows:
    """See `losses.tuples.softmax_over_keys`."""
    x, same = tile.x, tile.same
    count = tile.sums(same)
    some = count > 0
    mean = tile.sums(same, tile.take(same)) / (temperature * count.clamp_min(1))
    tile.put(tile.off, -torch.inf)
    total = tile.softmax_(x.div_(temperature))
    x.mul_((some / temperature)[:, None])
    x.view(-1).index_add_(0, same.flat, -1 / (temperature * count[same.row]))
    tile.put(tile.off, 0.0)
    return torch.where(some, total - mean, 0), some


def nt_xent(tile: Tile, *, temperature: float = 0.1, positives: str = "together") -> Rows:
    """See `losses.tuples.nt_xent`."""
    x, same = tile.x, tile.same
    count = tile.sums(same)
    near = tile.take(same) / temperature
    if positives == "separate":
        tile.put(same, -torch.inf)
    tile.put(tile.off, -torch.inf)
    total = tile.softmax_(x.div_(temperature))
    if positives == "together":
        value = count * total - tile.sums(same, near)
        x.mul_((count / temperature)[:, None])
        x.view(-1).index_add_(0, same.flat, x.new_full((len(same.row),), -1 / temperature))
    else:
        total = torch.where(tile.valid() > count, total, -torch.inf)
        gap = total[same.row] - near
        value = tile.sums(same, softplus(gap))
        share = gap.sigmoid() / temperature
        x.mul_(tile.sums(same, share)[:, None])
        tile.put(same, -share)
    tile.put(tile.off, 0.0)
    return torch.where(count > 0, value, 0), count


def circle(tile: Tile, *, margin: float = 0.25, scale: float = 256.0, detach: bool = True) -> Rows | None:
    """See `losses.tuples.circle`; with constant weights."""
    if not detach:
        return None
    x, same = tile.x, tile.same
    near = tile.take(same)
    pull_weight = (1 + margin - near).clamp_min_(0).mul_(-scale)
    pull, pulled = tile.place_softmax(same, pull_weight * (near - (1 - margin)))
    count = tile.sums(same)
    some = (count > 0) & (tile.valid() > count)
    push_weight = (x + margin).clamp_min_(0).mul_(scale)
    x.sub_(margin).mul_(push_weight)
    tile.put(same, -torch.inf)
    tile.put(tile.off, -torch.inf)
    logit = pull + tile.softmax_(x)
    slope = torch.where(some, logit.sigmoid(), 0)
    x.mul_(push_weight).mul_(slope[:, None])
    tile.put(same, pulled * pull_weight * slope[same.row])
    tile.put(tile.off, 0.0)
    return torch.where(some, softplus(logit), 0), some


def generalized_lifted_structure(tile: Tile, *, margin: float = 1.0) -> Rows:
    """See `losses.tuples.generalized_lifted_structure`."""
    x, same = tile.x, tile.same
    pull, pulled = tile.place_softmax(same, tile.take(same))
    count = tile.sums(same)
    some = (count > 0) & (tile.valid() > count)
    tile.put(same, torch.inf)
    tile.put(tile.off, torch.inf)
    cost = pull + tile.softmax_(x.neg_().add_(margin))
    active = (some & (cost > 0)).to(x.dtype)
    x.mul_(-active[:, None])
    tile.put(same, pulled * active[same.row])
    tile.put(tile.off, 0.0)
    return torch.where(some, cost.clamp_min(0), 0), some


def supcon(tile: Tile, *, temperature: float = 0.1) -> Rows:
    """See `losses.tuples.supcon`."""
    return softmax_over_keys(tile, temperature)


def contrastive(
    tile: Tile,
    *,
    positive_margin: float = 0.0,
    negative_margin: float = 1.0,
    power: int = 2,
    average: str = "pairs",
) -> Rows | None:
    """See `losses.pairs.contrastive`."""
    if power not in (1, 2):
        return None
    x, same = tile.x, tile.same
    far = (tile.take(same) - positive_margin).clamp_min_(0)
    tile.put(same, torch.inf)
    tile.put(tile.off, torch.inf)
    near = x.sub_(negative_margin).clamp_max_(0)
    if power == 1:
        pull, push = tile.sums(same, far), -near.sum(1)
        active = near.sign_()
        far.sign_()
    else:
        pull, push = tile.sums(same, far.square()) / 2, torch.linalg.vector_norm(near, dim=1).square() / 2
        active = torch.sign(near, out=tile.memory("signs")) if average == "active" else near
    value, count = pull + push, tile.valid()
    if average == "active":
        value, count = torch.stack([pull, push], 1), torch.stack([tile.sums(same, far.sign()), -active.sum(1)], 1)
    tile.put(same, far)
    return value, count


def snr_contrastive(
    tile: Tile, *, positive_margin: float = 0.0, negative_margin: float = 1.0, average: str = "active"
) -> Rows | None:
    """See `losses.pairs.snr_contrastive`."""
    margins = {"positive_margin": positive_margin, "negative_margin": negative_margin}
    return contrastive(tile, power=1, average=average, **margins)


MOST_POSITIVES = 64  # of a row for which triplets are counted positive by positive


def triplet(
    tile: Tile,
    *,
    margin: float = 0.2,
    triplets: str = "all",
    hinge: str = "hinge",
    power: int = 1,
    average: str = "active",
) -> Rows | None:
    """See `losses.triplets.triplet`; for the hinge over all triplets, where a row has few positives."""
    x, same = tile.x, tile.same
    count = tile.sums(same)
    width = int(count.max()) if len(x) else 0
    if (triplets, hinge, power) != ("all", "hinge", 1) or width > MOST_POSITIVES:
        return None
    start = (count.cumsum(0) - count).long()
    slot = torch.arange(len(same.row), device=x.device) - start[same.row]
    limit = x.new_full((len(x), max(width, 1)), -torch.inf)
    limit[same.row, slot] = tile.take(same) + margin
    number = tile.valid() - count
    tile.put(same, torch.inf)
    tile.put(tile.off, torch.inf)
    met, gap, active = tile.memory("met").zero_(), tile.memory("gap"), torch.zeros_like(limit)
    value = x.new_zeros(len(x))
    for place, each in enumerate(limit.split(1, dim=1)):
        torch.sub(each, x, out=gap).clamp_min_(0)
        value += gap.sum(1)
        active[:, place] = gap.sign_().sum(1)
        met += gap
    torch.neg(met, out=x)
    tile.put(same, active[same.row, slot])
    return value, active.sum(1) if average == "active" else count * number


def log_ratio(
    tile: Tile,
    *,
    embedding_power: float = 1.0,
    label_power: float = 1.0,
    ties: str = "exclude",
    zero_labels: str = "drop",
    label_floor: float = 1e-6,
    eps: float = 1e-6,
) -> Rows | None:
    """See `losses.continuous.log_ratio`; on the CPU, some rows at a time, which stay in its cache."""
    if tile.x.device.type != "cpu":
        return None
    value, count = tile.x.new_zeros(len(tile.x)), torch.zeros(len(tile.x), dtype=torch.bool)
    for part in tile.parts():
        y, valid = tile.labels(part)
        y = y.clamp_min(label_floor) if zero_labels == "floor" else y
        powers = embedding_power, label_power
        value[part], count[part] = _log_ratio_rows(tile.x[part], y, valid, powers, ties == "exclude", eps)
    return value, count


def _log_ratio_rows(x: Tensor, y: Tensor, valid: Tensor, powers: tuple[float, float], untie: bool, eps: float) -> Rows:
    """The loss of some rows, with u centred; `x` becomes the gradient."""
    out = torch.from_numpy(np.flatnonzero(~((y.numpy() > 0) & valid.numpy())))
    n = x.shape[1] - torch.bincount(out // max(x.shape[1], 1), minlength=len(x)).to(x.dtype)
    u = x.add_(eps).log()
    if powers[0] != 1:
        u.mul_(powers[0])
    u.sub_(y.log(), alpha=powers[1]).view(-1).index_fill_(0, out, 0.0)
    u.sub_((u.sum(1) / n.clamp_min(1))[:, None]).view(-1).index_fill_(0, out, 0.0)
    squares, pairs = n * torch.linalg.vector_norm(u, dim=1).square(), n * (n - 1) / 2
    if untie:
        known = y.numpy().copy()
        known.reshape(-1)[out.numpy()] = np.nan
        _without_ties(known, u, n, squares, pairs)
    share = torch.where(pairs > 0, 1 / pairs, 0)
    torch.div(u.mul_((2 * powers[0] * n * share)[:, None]), x, out=x).view(-1).index_fill_(0, out, 0.0)
    return squares * share, pairs > 0


def _without_ties(y: np.ndarray, u: Tensor, n: Tensor, squares: Tensor, pairs: Tensor) -> None:
    """Take pairs of equal y out: of a row's sum of squares, of its number of pairs, and of u (as slope, less n times)."""
    flat, group = _tied(y)
    if not len(flat):
        return
    row = flat // y.shape[1]
    own = u.view(-1).numpy().take(flat).astype(np.float64)
    size = np.bincount(group)
    many = size.take(group)
    step = own - (np.bincount(group, own) / size).take(group)
    for total, each in ((squares, many * step * step), (pairs, (many - 1) / 2)):
        total -= torch.from_numpy(np.bincount(row, each, len(y))).to(total.dtype)
    u.view(-1).numpy()[flat] -= many * step / n.numpy().take(row)


FEW_TIES = 4  # groups of a row up to which their members are looked for one group at a time


def _tied(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries of y [rows k] that some other of its row equals: where in the flattened y, and of which group."""
    width = y.shape[1]
    ordered = np.sort(y, axis=1).reshape(-1)
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    same = same[same % width != width - 1]  # the next is of the same row
    first = np.ones(len(same), dtype=bool)
    first[1:] = np.diff(same) != 1
    starts = same[first]
    row = starts // width
    if len(row) <= FEW_TIES * len(y):
        found = np.flatnonzero(y[row] == ordered[starts][:, None])
        group = found // width
        return row[group] * width + found % width, group
    tied = np.zeros(y.size, dtype=np.int8)
    tied[same] = tied[same + 1] = 1
    tied[starts] += 1
    places = np.flatnonzero(tied)
    order = (_argsort(y) + np.arange(0, y.size, width)[:, None]).reshape(-1)
    return order.take(places), (tied.take(places) == 2).cumsum() - 1


def _argsort(y: np.ndarray) -> np.ndarray:
    """Order of each row of numbers that are not negative; those of 32 bits are sorted with their columns beside them."""
    if y.dtype != np.float32:
        return np.argsort(y, axis=1)
    keys = y.view(np.int32).astype(np.int64) << 32 | np.arange(y.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF
