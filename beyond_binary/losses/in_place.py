"""In-place forms: value and gradient of a row loss on one tile, without a graph, in the memory of the tile.

Positives are few, so they and the pairs that do not count are lists of places; the rest of the tile is walked as a
whole, without masks. Each form is tested equal to the plain function it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .common import softplus

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Places:
    """Some entries of a tile: their rows and their positions in the flattened tile, int64, ordered by row."""

    row: Tensor
    flat: Tensor

    @staticmethod
    def of(mask: Tensor) -> Places:
        """The entries of a mask [rows k]."""
        flat = mask.flatten().nonzero()[:, 0]
        return Places(flat // max(mask.shape[1], 1), flat)


class Tile:
    """What an in-place form gets: `x` [rows k] to overwrite, and where the same and the uncounted pairs are.

    Args:
        x: similarities or distances; the form leaves d(sum of values)/dx here.
        places: gives `same` (valid pairs of the same) and `off` (pairs that do not count).
    """

    def __init__(self, x: Tensor, places: Callable[[], tuple[Places, Places]]) -> None:
        self.x = x
        self._places = places

    @cached_property
    def _both(self) -> tuple[Places, Places]:
        return self._places()

    @property
    def same(self) -> Places:
        """Valid pairs of the same."""
        return self._both[0]

    @property
    def off(self) -> Places:
        """Pairs that do not count."""
        return self._both[1]

    def take(self, places: Places) -> Tensor:
        """Entries of x."""
        return self.x.view(-1)[places.flat]

    def put(self, places: Places, value: Tensor | float) -> None:
        """Set entries of x."""
        if isinstance(value, Tensor):
            self.x.view(-1).scatter_(0, places.flat, value)
        else:
            self.x.view(-1).index_fill_(0, places.flat, value)

    def sums(self, places: Places, value: Tensor | None = None) -> Tensor:
        """Sums over each row's places of one value a place; without values their number [rows]."""
        value = self.x.new_ones(len(places.row)) if value is None else value
        return self.x.new_zeros(len(self.x)).index_add_(0, places.row, value)

    def valid(self) -> Tensor:
        """Number of each row's valid pairs [rows]."""
        return self.x.shape[1] - self.sums(self.off)

    def softmax_(self, logits: Tensor, extra: float | None = None) -> Tensor:
        """Turn logits [rows k] in place into their softmax, and return their log-sum-exp [rows].

        Entries at -inf are out of it, and get (as good as) 0; a row of nothing else gives 0 and some finite numbers.
        `extra` is one more logit that every row has.
        """
        top = logits.amax(1, keepdim=True) if logits.shape[1] else logits.new_zeros(len(logits), 1)
        top.clamp_min_(torch.finfo(logits.dtype).min / 4 if extra is None else extra)
        floor = -80.0 if logits.dtype == torch.float32 else -700.0  # exp of less is slow, and lost in the sum
        total = logits.sub_(top).clamp_min_(floor).exp_().sum(1, keepdim=True)
        if extra is not None:
            total += (extra - top).exp_()
        logits.div_(total)
        return (total.log_() + top)[:, 0]

    def place_softmax(self, places: Places, logits: Tensor, extra: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-sum-exp [rows] of logits given at places, and their softmax there; -inf for a row without any."""
        low = torch.finfo(logits.dtype).min / 4 if extra is None else extra
        top = logits.new_full((len(self.x),), low).scatter_reduce_(0, places.row, logits, "amax")
        power = (logits - top[places.row]).exp_()
        total = self.sums(places, power)
        if extra is not None:
            total += (extra - top).exp_()
        return total.log() + top, power / total[places.row]


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
    """See `losses.pairs.contrastive`; for averages over all pairs."""
    if average != "pairs" or power not in (1, 2):
        return None
    x, same = tile.x, tile.same
    far = (tile.take(same) - positive_margin).clamp_min_(0)
    tile.put(same, torch.inf)
    tile.put(tile.off, torch.inf)
    near = x.neg_().add_(negative_margin).clamp_min_(0)
    cost, close = (far, near.sum(1)) if power == 1 else (far.square() / 2, torch.linalg.vecdot(near, near) / 2)
    value = close + tile.sums(same, cost)
    if power == 1:
        far, near = far.sign_(), near.sign_()
    near.neg_()
    tile.put(same, far)
    return value, tile.valid()


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
    met, gap, active = torch.zeros_like(x), torch.empty_like(x), torch.zeros_like(limit)
    value = x.new_zeros(len(x))
    for place, each in enumerate(limit.split(1, dim=1)):
        torch.sub(each, x, out=gap).clamp_min_(0)
        value += gap.sum(1)
        active[:, place] = gap.sign_().sum(1)
        met += gap
    torch.neg(met, out=x)
    tile.put(same, active[same.row, slot])
    return value, active.sum(1) if average == "active" else count * number
