"""In-place forms: value and gradient of a row loss on one tile, without a graph, in the memory of the tile.

Positives are few, so they and the pairs that do not count are lists of places; the rest of the tile is walked as a
whole, without masks. Each form is tested equal to the plain function it belongs to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiles import Places, Tile
from .common import softplus

Rows = tuple[Tensor, Tensor]


def multi_similarity(tile: Tile, *, alpha: float, beta: float, base: float) -> Rows:
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


def nt_xent(tile: Tile, *, temperature: float, positives: str) -> Rows:
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


def circle(tile: Tile, *, margin: float, scale: float, detach: bool) -> Rows | None:
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


def generalized_lifted_structure(tile: Tile, *, margin: float) -> Rows:
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


def supcon(tile: Tile, *, temperature: float) -> Rows:
    """See `losses.tuples.supcon`."""
    return softmax_over_keys(tile, temperature)


def contrastive(
    tile: Tile,
    *,
    positive_margin: float,
    negative_margin: float,
    power: int,
    average: str,
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


def snr_contrastive(tile: Tile, *, positive_margin: float, negative_margin: float, average: str) -> Rows | None:
    """See `losses.pairs.snr_contrastive`."""
    margins = {"positive_margin": positive_margin, "negative_margin": negative_margin}
    return contrastive(tile, power=1, average=average, **margins)


def margin(tile: Tile, *, alpha: float, nu: float, over: str) -> Rows:
    """See `losses.pairs.margin`."""
    x, same, different, row = tile.x, tile.same, tile.different, tile.row
    assert row is not None
    far = (tile.take(same) - row[same.row] + alpha).clamp_min_(0)
    positives, pull, pulling = tile.sums(same), tile.sums(same, far), tile.sums(same, far.sign())
    if different is None:
        negatives = tile.valid() - positives
        tile.put(same, torch.inf)
        tile.put(tile.off, torch.inf)
        torch.sub((row + alpha)[:, None], x, out=x).clamp_min_(0)
        push, pushing = x.sum(1), -x.sign_().neg_().sum(1)
    else:
        near = ((row + alpha)[different.row] - tile.take(different)).clamp_min_(0)
        negatives, push, pushing = (tile.sums(different, each) for each in (None, near, near.sign()))
    betas = positives.new_ones(len(x))
    far.sign_()
    if over == "triplets":
        pull, pulling, push, pushing = pull * negatives, pulling * negatives, push * positives, pushing * positives
        betas = positives * negatives
        far.mul_(negatives[same.row])
    if different is not None:
        near = near.sign_().neg_() if over == "pairs" else near.sign_().mul_(-positives[different.row])
        tile.sparse = (
            Places(torch.cat([same.row, different.row]), torch.cat([same.flat, different.flat])),
            torch.cat([far, near]),
        )
    else:
        if over == "triplets":
            x.mul_(positives[:, None])
        tile.put(same, far)
    count = pulling + pushing
    tile.grad_row = torch.where(count > 0, pushing - pulling + nu * betas, 0)
    return pull + push + nu * row * betas, count


def fastap(tile: Tile, *, bins: int) -> Rows:
    """See `losses.ranking.fastap`."""
    x, same = tile.x, tile.same
    outside = (x < 0) | (x > 4)
    place = x.nan_to_num_().clamp_(0, 4).mul_(bins / 4)
    cell = place.floor().clamp_max_(bins - 1)
    place.sub_(cell)
    cell = cell.long()
    part, at = tile.take(same), same.row * (bins + 1) + cell.view(-1)[same.flat]
    hits = x.new_zeros(len(x) * (bins + 1)).index_add_(0, at, 1 - part).index_add_(0, at + 1, part).view(-1, bins + 1)
    for places in (same, tile.off):
        cell.view(-1).index_fill_(0, places.flat, bins + 1)  # beyond the last centre
    misses = x.new_zeros(len(x), bins + 3)
    misses[:, 1:].scatter_add_(1, cell, place)
    misses[:, :-1].scatter_add_(1, cell, torch.sub(1, place, out=place))
    number = tile.sums(same)
    with torch.enable_grad():
        leaves = hits.requires_grad_(), misses[:, : bins + 1].clone().requires_grad_()
        value = misplaced(*leaves) / number.clamp_min(1)
        slopes = [grad.diff() * (bins / 4) for grad in torch.autograd.grad(value.sum(), leaves)]
    torch.gather(F.pad(slopes[1], (0, 2)), 1, cell, out=x)
    tile.put(same, slopes[0].reshape(-1)[at - same.row])
    x.masked_fill_(outside, 0)
    return value.detach(), number > 0


def misplaced(hits: Tensor, misses: Tensor) -> Tensor:
    """Sum over a row's positives of the share of negatives in its ranking up to there, by histograms [q bins]."""
    before = misses.cumsum(1)
    everything = hits.cumsum(1) + before
    return (hits * before / torch.where(everything > 0, everything, 1)).sum(1)


MOST_POSITIVES = 12  # of a row for which triplets are counted positive by positive


def triplet(
    tile: Tile,
    *,
    margin: float,
    triplets: str,
    hinge: str,
    power: int,
    average: str,
) -> Rows | None:
    """See `losses.triplets.triplet`; for the hinge over all triplets."""
    if (triplets, hinge, power) != ("all", "hinge", 1):
        return None
    x, same = tile.x, tile.same
    count = tile.sums(same)
    width = int(count.max()) if len(x) else 0
    start = (count.cumsum(0) - count).long()
    slot = torch.arange(len(same.row), device=x.device) - start[same.row]
    limit = x.new_full((len(x), max(width, 1)), -torch.inf)
    limit[same.row, slot] = tile.take(same) + margin
    number = tile.valid() - count
    tile.put(same, torch.inf)
    tile.put(tile.off, torch.inf)
    value, active = (_each_positive if width <= MOST_POSITIVES else _ranked_positives)(tile, limit)
    tile.put(same, active[same.row, slot])
    return value, active.sum(1) if average == "active" else count * number


def _each_positive(tile: Tile, limit: Tensor) -> Rows:
    """Sum [q] of `limit - x` where that is positive, and how often it is [q p]; x becomes less how often it is."""
    met, gap, active = tile.memory("met").zero_(), tile.memory("gap"), torch.zeros_like(limit)
    value = tile.x.new_zeros(len(tile.x))
    for place, each in enumerate(limit.split(1, dim=1)):
        torch.sub(each, tile.x, out=gap).clamp_min_(0)
        value += gap.sum(1)
        active[:, place] = gap.sign_().sum(1)
        met += gap
    torch.neg(met, out=tile.x)
    return value, active


def _ranked_positives(tile: Tile, limit: Tensor) -> Rows:
    """The same by a search of each x among the row's sorted limits; better where these are many."""
    x, width = tile.x, limit.shape[1]
    ordered, order = limit.sort(1)
    passed = torch.searchsorted(ordered, x, right=True)
    met = torch.sub(width, passed, out=torch.empty_like(passed)).to(x.dtype)
    row = torch.arange(len(x), device=x.device)[:, None]
    flat = passed.add_(row * (width + 1)).flatten()
    found = torch.bincount(flat, minlength=len(x) * (width + 1)).view(-1, width + 1)[:, :width].cumsum(1).to(x.dtype)
    value = (torch.where(found > 0, ordered, 0) * found).sum(1)
    x.masked_fill_(met == 0, 0.0)
    value -= torch.linalg.vecdot(x, met)
    torch.neg(met, out=x)
    return value, torch.empty_like(limit).scatter_(1, order, found)
