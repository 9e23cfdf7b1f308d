"""In-place forms (see `in_place`) of losses that read the order or the value of label distances, by numpy on the CPU.

They walk some rows at a time, which stay in the cache. Pairs that do not count get NaN or infinity, which sort last.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry import row_dots
from ..tiles import Places, Tile

Rows = tuple[Tensor, Tensor]


def log_ratio(
    tile: Tile,
    *,
    embedding_power: float,
    label_power: float,
    ties: str,
    zero_labels: str,
    label_floor: float,
    eps: float,
    inner_eps: float,
) -> Rows | None:
    """See `losses.continuous.log_ratio`; on the CPU, some rows at a time, which stay in its cache."""
    if tile.x.device.type != "cpu" or inner_eps or zero_labels == "add":
        return None
    value, count = tile.x.new_zeros(len(tile.x)), torch.zeros(len(tile.x), dtype=torch.bool)
    for part in tile.parts():
        y, valid = tile.labels(part)
        y = y.clamp_min(label_floor) if zero_labels == "floor" else y
        powers = embedding_power, label_power
        value[part], count[part] = _log_ratio_rows(tile.x[part], y, valid, powers, ties == "exclude", eps)
    return value, count


def soft_contrastive(tile: Tile, *, sigma: float, delta: float, mean_gradient: bool, count_self: bool) -> Rows:
    """See `losses.continuous.soft_contrastive`; some rows at a time."""
    value, count = tile.x.new_zeros(len(tile.x)), tile.x.new_zeros(len(tile.x))
    low = -80.0 if tile.x.dtype == torch.float32 else -700.0  # exp of less is slow, and as good as 0
    for part in tile.parts():
        (y, valid), x = tile.labels(part), tile.x[part]
        out = Places.of(~valid).flat
        count[part] = x.shape[1] - torch.bincount(out // max(x.shape[1], 1), minlength=len(x)).to(x.dtype)
        keys = count[part].clamp_min(1) + count_self
        mean = x.view(-1).index_fill_(0, out, 0.0).view_as(x).sum(1) / keys
        unit = torch.where(mean > 0, 1 / mean, 1)[:, None]
        ratio = x.mul_(unit)
        same = (
            y.to(x.dtype).square().mul_(-1 / sigma).clamp_min_(low).exp_().view(-1).index_fill_(0, out, 0.0).view_as(x)
        )
        near = torch.sub(delta, ratio).clamp_min_(0)
        push = (1 - same).mul_(near).view(-1).index_fill_(0, out, 0.0).view_as(x)
        pull = same.mul_(ratio)
        value[part] = row_dots(pull, ratio) + row_dots(push, near)
        slope = pull.sub_(push).mul_(2)
        through_mean = (
            torch.where(mean > 0, -row_dots(slope, ratio) / keys, 0) if mean_gradient else torch.zeros_like(keys)
        )
        torch.add(slope, through_mean[:, None], out=x).mul_(unit).view(-1).index_fill_(0, out, 0.0)
    return value, count > 0


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
    ordered = np.sort(y, axis=1)
    same, first, _ = _runs(ordered)
    starts = same[same == first]
    row = starts // width
    if len(row) <= FEW_TIES * len(y):
        found = np.flatnonzero(y[row] == ordered.reshape(-1)[starts][:, None])
        group = found // width
        return row[group] * width + found % width, group
    tied = np.zeros(y.size, dtype=np.int8)
    tied[same] = tied[same + 1] = 1
    tied[starts] += 1
    places = np.flatnonzero(tied)
    order = (_argsort(y) + np.arange(0, y.size, width)[:, None]).reshape(-1)
    return order.take(places), (tied.take(places) == 2).cumsum() - 1


def _runs(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries of sorted rows that equal the next one, and the first and the last of their equals (all flattened)."""
    width, flat = ordered.shape[1], ordered.reshape(-1)
    same = np.flatnonzero(flat[1:] == flat[:-1])
    same = same[same % width != width - 1]  # the next is of the same row
    new = np.ones(len(same) + 1, dtype=bool)
    new[1:-1] = np.diff(same) != 1
    run = new[:-1].cumsum() - 1
    return same, same[new[:-1]][run], same[new[1:]][run] + 1


def _argsort(y: np.ndarray) -> np.ndarray:
    """Order of each row, equal ones as they stand; numbers of 32 bits are sorted with their columns beside them."""
    if y.dtype != np.float32:
        return np.argsort(y, axis=1, kind="stable")
    bits = y.view(np.int32)
    keys = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64) << 32 | np.arange(y.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF


WIDEST = 600.0  # span of exponents that double precision holds


def rank_n_contrast(tile: Tile, *, temperature: float) -> Rows | None:
    """See `losses.continuous.rank_n_contrast`; where the distances of a tile do not differ by hundreds."""
    if tile.x.device.type != "cpu" or not tile.x.numel():
        return None
    span = float(tile.x.amax() - tile.x.amin()) / temperature
    if span > WIDEST:
        return None
    kind = torch.float64 if span > 60 else tile.x.dtype
    value, count = tile.x.new_zeros(len(tile.x)), tile.x.new_zeros(len(tile.x))
    for part in tile.parts():
        y, valid = tile.labels(part)
        x = tile.x[part]
        value[part], slope = _rank_n_rows(x.to(kind) / temperature, y.to(x.dtype), valid)
        count[part] = valid.sum(1).to(x.dtype)
        x.copy_(slope / temperature)
    return value, count


def _rank_n_rows(x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Value of some rows and its slope; a key competes with the keys that come after it in the order of labels."""
    near = (x - x.amin(1, keepdim=True)) * valid
    known = np.where(valid.numpy(), y.numpy(), np.nan)
    order = torch.from_numpy(_argsort(known))
    real = valid.gather(1, order).to(x.dtype)
    power = torch.exp(-near).gather(1, order) * real
    same, first, last = (torch.from_numpy(p) for p in _runs(np.take_along_axis(known, order.numpy(), 1)))
    total = power.flip(1).cumsum(1, dtype=torch.float64).flip(1).view(-1)
    total[same + 1] = total[first]
    total = torch.where(real > 0, total.view_as(power), 1).to(x.dtype)
    share = (real / total).cumsum(1, dtype=torch.float64).view(-1)
    share[same] = share[last]
    slope = (real - power * share.view_as(power)).to(x.dtype)
    return near.sum(1) + total.log().sum(1), torch.empty_like(x).scatter_(1, order, slope)


def dense_triplet(tile: Tile, *, margin: float, ties: str, average: str) -> Rows | None:
    """See `losses.triplets.dense_triplet`; the same counts, taken in another way."""
    if tile.x.device.type != "cpu" or tile.x.shape[1] > np.iinfo(np.int16).max or not len(tile.x):
        return None
    if tile.labels(slice(0, 1))[0].dtype == torch.bool:  # long ties take longer than another way of counting
        return None
    value, count = tile.x.new_zeros(len(tile.x)), tile.x.new_zeros(len(tile.x))
    for part in tile.parts():
        y, valid = tile.labels(part)
        x, known = tile.x[part], np.where(valid.numpy(), y.to(tile.x.dtype).numpy(), np.nan)
        number, active, pairs = _costing(torch.where(valid, x, torch.inf).numpy(), known, margin, ties == "exclude")
        centred = x - torch.where(valid, x, 0).mean(1, keepdim=True)
        x.copy_(torch.from_numpy(number))
        value[part] = row_dots(centred, x) + margin * torch.from_numpy(active).to(x.dtype)
        count[part] = torch.from_numpy(active if average == "active" else pairs).to(x.dtype)
    return value, count


BLOCK = 256  # keys whose pairs are compared one by one; counts of fewer fit into 8 bits


def _costing(x: np.ndarray, y: np.ndarray, margin: float, untie: bool) -> tuple[np.ndarray, ...]:
    """In how many pairs with y_i < y_j and x_i > x_j - margin a key is i, less those in which it is j; both totals.

    With p the place of a key in the order of x, and q the number of keys of at most x - margin, i and j cost if
    p_i >= q_j. In the order of y, keys of one block are compared with each other; for those of different blocks, the
    keys of lower blocks before each place in the order of x are counted. Pairs of equal y are taken out again.
    """
    rows, k = x.shape
    start = np.arange(0, x.size, k)[:, None]
    by_y = _argsort(y) + start
    entries = _argsort(np.concatenate([x, x - np.asarray(margin, x.dtype)], 1))
    places = np.empty((rows, 2 * k), dtype=np.int64)
    np.put_along_axis(places, entries, torch.from_numpy(entries < k).cumsum(1).numpy(), 1)
    p, q = places[:, :k].reshape(-1).take(by_y) - 1, places[:, k:].reshape(-1).take(by_y)
    near, far = _later_and_earlier(p, q, BLOCK)
    if k > BLOCK:
        block = np.empty(x.size, dtype=np.int64)
        block[p + start] = np.arange(k) // BLOCK
        reached = np.bincount((q + start + start // k).reshape(-1), minlength=x.size + rows).reshape(rows, -1)
        _add_other_blocks(
            near, far, q, reached.cumsum(1).reshape(-1).take(p + start + start // k), block.reshape(rows, k)
        )
    valid = k - np.isnan(y).sum(1)
    pairs = valid * (valid - 1) // 2
    if untie:
        pairs -= _take_out_ties(near, far, p, q, y.reshape(-1).take(by_y))
    found = np.empty(x.size, dtype=np.int64)
    found[by_y] = near - far
    return found.reshape(rows, k), far.sum(1), pairs


def _later_and_earlier(
    p: np.ndarray, q: np.ndarray, block: int, group: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """For each key [rows k] the j after it with p_i >= q_j, and for each the i before it, less than a block apart.

    Both of one block, or, where a `group` is given, both of the same group.
    """
    rows, k = p.shape
    height = block if group is None else k
    shape = -(-k // height), height, rows

    def lying(a: np.ndarray, fill: int) -> np.ndarray:
        whole = np.full((shape[0] * height, rows), fill, dtype=np.int16)
        whole[:k] = a.T
        return whole.reshape(shape)

    p, q = lying(p, -1), lying(q, np.iinfo(np.int16).max)
    group = None if group is None else lying(group, -1)
    near, far = (np.zeros(shape, dtype=np.uint8 if block <= 256 else np.uint16) for _ in range(2))
    for step in range(1, min(block, k)):
        hit = p[:, :-step] >= q[:, step:]
        if group is not None:
            hit &= group[:, :-step] == group[:, step:]
        near[:, :-step] += hit.view(np.uint8)
        far[:, step:] += hit.view(np.uint8)
    return tuple(a.reshape(-1, rows)[:k].T.astype(np.int64) for a in (near, far))  # type: ignore[return-value]


def _add_other_blocks(near: np.ndarray, far: np.ndarray, q: np.ndarray, u: np.ndarray, block: np.ndarray) -> None:
    """Add pairs of different blocks: `u` are the keys a key reaches, `block` those of the keys in the order of x.

    The keys of lower blocks than b before each place are running sums, four b in the parts of a number of 64 bits.
    """
    rows, k = q.shape
    start = np.arange(0, rows * (k + 1), k + 1)[:, None]
    last = (k - 1) // BLOCK
    for first in range(0, last + 2, 4):
        lanes = np.array([sum(1 << 16 * i for i in range(4) if first + i > b) for b in range(last + 1)], dtype=np.int64)
        sums = np.zeros((rows, k + 1), dtype=np.int64)
        torch.cumsum(torch.from_numpy(lanes.take(block)), 1, out=(running := torch.empty(rows, k, dtype=torch.int64)))
        sums[:, 1:] = running.numpy()
        lower = sums.view(np.uint16).reshape(-1)
        for lane in range(4):
            b = first + lane
            if b <= last:
                part = slice(b * BLOCK, (b + 1) * BLOCK)
                far[:, part] += b * BLOCK - lower.take((q[:, part] + start) * 4 + lane).astype(np.int64)
            if 1 <= b <= last + 1:
                part = slice((b - 1) * BLOCK, b * BLOCK)
                near[:, part] += u[:, part] - lower.take((u[:, part] + start) * 4 + lane).astype(np.int64)


def _take_out_ties(near: np.ndarray, far: np.ndarray, p: np.ndarray, q: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Take pairs of equal y (sorted) out of the counts; returns their number in each row."""
    same, _, last = _runs(y)
    if not len(same):
        return np.zeros(len(y), dtype=np.int64)
    row = np.unique(same // y.shape[1])
    group = np.cumsum(y[row, 1:] != y[row, :-1], axis=1)
    group = np.concatenate([np.zeros_like(group[:, :1]), group], axis=1)
    longest = int((last - same).max()) + 1
    later, earlier = _later_and_earlier(p[row], q[row], longest, group)
    near[row] -= later
    far[row] -= earlier
    return np.bincount(same // y.shape[1], last - same, len(y)).astype(np.int64)
