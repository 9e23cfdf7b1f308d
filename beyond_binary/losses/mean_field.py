"""Mean-field losses: one learned mean field per class stands for its items. And the loss of classes that it came from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..geometry import create_geometry
from ..points import Points
from ..targets.vectors import Classes
from ..tiles import Places, Tile
from ..walks import Gradient, Pairs, Tiles, walked
from . import Rows, register_loss
from .common import any_in_row, masked_sum, softplus, split
from .groups import LOW, by_class, equal_ids, log_sums, sizes, slot_log_sums

TILE = 1 << 19  # pairs that are held at once
LARGE = 75.0  # exponents up to which sums of exponentials are safe in single precision
MFT = "Furusawa: Mean Field Theory in Deep Metric Learning, ICLR 2024"


def crowding(proxies: Tensor, cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum over ordered pairs of different classes of `cost(cosine of their proxies)`, divided by the classes.

    Time O(c^2 d). Rows of classes are walked in tiles that the backward pass computes again: no [c c] matrix exists.
    """
    w = F.normalize(proxies, dim=1)
    c = len(w)
    number = torch.arange(c, device=w.device)

    def rows(w: Tensor, part: Tensor) -> Tensor:
        itself = part[:, None] == number[None, :]
        return cost((w[part] @ w.T).masked_fill(itself, 0)).masked_fill(itself, 0).sum()

    if torch.compiler.is_compiling():
        return rows(w, number) / c
    parts = number.split(max(1, TILE // c))
    sums = [checkpoint(rows, w, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    total: Tensor = torch.stack(sums).sum() / c
    return total


def _contrastive_penalty(
    z: Tensor, proxies: Tensor, *, negative_margin: float = 0.3, regularizer: float = 0.0
) -> Tensor:
    if regularizer == 0 or len(z) == 0:
        return proxies.sum() * 0
    return regularizer * crowding(proxies, lambda s: (negative_margin - 1 + s).relu().square())


@register_loss(
    "mean_field_contrastive",
    reads="same",
    x="similarity",
    geometry="cosine",
    keys="proxy",
    penalty=_contrastive_penalty,
    any_proxies=True,
    proxy_rate=2000.0,
    paper=MFT,
)
def mean_field_contrastive(
    x: Tensor, y: Tensor, valid: Tensor, *, positive_margin: float = 0.02, negative_margin: float = 0.3
) -> Rows:
    """Mean-field contrastive loss (equation 8): each item against the mean fields of all classes.

    Per item `[d - positive_margin]_+` for its own class's mean field plus the sum over all others of
    `[negative_margin - d]_+`, where `d = 1 - cosine`. With `regularizer > 0` also
    `regularizer / c * sum over c != c' of [negative_margin - d(M_c, M_c')]_+ ^ 2`, which keeps mean fields apart. Equal
    to the authors' code, values and gradients; theirs holds a [c c] matrix.

    Our extension to several labels per item (target `within('multi_label', radius=0.999)`, `proxy_codes=torch.eye(c)`):
    an item is pulled to the mean field of each of its labels, the first part summed over them.

    Paper settings: margins 0.02 and 0.3, regularizer 0 in all published commands; the learning rate of the mean fields
    is 2000 times that of the network (the trainer's default for them).
    Cost: O(n c d), the regulariser O(c^2 d); memory of a tile.

    Args:
        x: cosine similarities of items to mean fields [q k].
        y: label distances [q k].
        valid: pairs that count [q k].
        positive_margin: distance to the own mean field that costs nothing.
        negative_margin: distance from which other mean fields cost nothing.
        regularizer: (of the penalty) weight of the term between mean fields; 0 skips it.

    Returns:
        value and count [q].
    """
    positive, negative = split(y, valid)
    pull = masked_sum((1 - positive_margin - x).relu(), positive)
    return pull + masked_sum((negative_margin - 1 + x).relu(), negative), any_in_row(valid)


def _pull(log_mean: Tensor, alpha: float, weight: float) -> Tensor:
    """Sum of log(1 + weight exp(log_mean)) / alpha."""
    return torch.logaddexp(torch.zeros_like(log_mean), log_mean + math.log(weight)).sum() / alpha


@register_loss(
    "mean_field_class_wise_multi_similarity",
    reads="same",
    x="similarity",
    geometry="cosine",
    keys="proxy",
    form="pairs",
    any_proxies=True,
    proxy_rate=2000.0,
    between={"alpha": (0, math.inf), "beta": (0, math.inf)},
    paper=MFT,
)
def mean_field_class_wise_multi_similarity(
    pairs: Pairs,
    *,
    alpha: float = 0.01,
    beta: float = 80.0,
    base: float = 0.8,
    regularizer: float = 0.0,
) -> Tensor:
    """Mean-field class-wise multi-similarity loss (equation 10): class means of exponentials against mean fields.

    With s the cosine similarities and K the number of classes in the batch,
    `1 / (alpha K) * sum over classes c of the batch of log(1 + mean_{i in c} exp(alpha (base - s(i, M_c))))` plus
    `1 / (2 beta K) * sum over c != c' of log(1 + N(c, c') + N(c', c))`, where
    `N(c, c') = mean_{i in c} exp(beta (s(i, M_c') - base))`, 0 for a class without items. The authors write `d = 1 - s`.
    With `regularizer > 0` also
    `regularizer / C * sum over c != c' of (log(1 + exp(beta (s(M_c, M_c') - base))) / beta) ^ 2` over all C classes.
    Equal to the authors' code, values and gradients; theirs holds [n c c] numbers. alpha = 0.01 makes the loss start at
    about log(2) / alpha = 69, a constant that does no harm.

    Our extension to several labels per item (target `within('multi_label', radius=0.999)`, `proxy_codes=torch.eye(c)`):
    an item is in the class of each of its labels, and the mean of N(c, c') leaves out items that are in both.

    Paper settings: alpha 0.01, beta 80, base (delta) 0.8, regularizer 0 in all published commands; the learning rate of the
    mean fields is 2000 times that of the network (the trainer's default for them).
    Cost: O(n C d + K^2) time, O((n + C) d + K^2) memory beside a tile; the regulariser O(C^2 d) time, memory of a tile.
    With exponents past 75 or another geometry, O(n C + C^2) memory; with several labels O(n K C) time and O((n + K) C) memory, but
    labels are compared with those of the proxies, a table of C by C.

    Args:
        pairs: items against mean fields.
        alpha: sharpness for the own class.
        beta: sharpness for other classes.
        base: similarity around which both parts turn (delta of the paper).
        regularizer: weight of the term between mean fields; 0 skips it.

    Returns:
        The loss, a scalar.
    """
    if pairs.k.code.ndim > 1 or not isinstance(pairs.block.target, Classes):
        loss = _fields_of_sets(pairs, alpha, beta, base)
    elif _bounded(pairs, alpha, beta, base):
        across = replace(pairs.swapped(), tile=max(1, (pairs.tile or 1) * len(pairs.k) // len(pairs.q)))
        walk = functools.partial(_fields_walk, across, alpha=alpha, beta=beta, base=base)
        loss = walked(across, walk, lambda p: _fields_plain(p.swapped(), alpha, beta, base))
    else:
        loss = _fields_plain(pairs, alpha, beta, base)
    if regularizer == 0:
        return loss
    return loss + regularizer * crowding(pairs.k.z, lambda s: (softplus(beta * (s - base)) / beta).square())


def _fields_plain(pairs: Pairs, alpha: float, beta: float, base: float) -> Tensor:
    """All classes have slots, so that shapes depend on no data."""
    x, _, _ = pairs.dense()
    code, c = pairs.q.code, len(pairs.k)
    size = torch.zeros(c, dtype=x.dtype, device=x.device).scatter_add(0, code, torch.ones_like(x[:, 0]))
    log_size = size.clamp_min(1).log()
    own = slot_log_sums(alpha * (base - x.gather(1, code[:, None])), code, c)[:, 0] - log_size
    to = slot_log_sums(beta * (x - base), code, c) - log_size[:, None]
    itself = torch.eye(c, dtype=torch.bool, device=x.device)
    both = torch.stack([to, to.T, torch.zeros_like(to)]).logsumexp(0).masked_fill(itself, 0)
    return (_pull(own, alpha, 1.0) + both.sum() / (2 * beta)) / (size > 0).sum()


def _fields_of_sets(pairs: Pairs, alpha: float, beta: float, base: float) -> Tensor:
    """As `_fields_plain` where an item can be in several classes, by products with the [n c] table of who is in which."""
    x, y, valid = pairs.dense()
    same, outside = (mask.double() for mask in split(y, valid))
    x, some = x.double(), _some(same)
    inside = same[:, some]
    size = inside.sum(0)
    own = (alpha * (base - x[:, some])).masked_fill(inside == 0, LOW).logsumexp(0) - size.clamp_min(1).log()
    to = _log_means(beta * (x - base), lambda powers: inside.T @ (outside * powers), inside.T @ outside)
    among = to[:, some]
    both = torch.logaddexp(among, among.T).fill_diagonal_(LOW)
    once = to.index_fill(1, some, LOW)  # of two classes only one has items
    push = (softplus(both).sum() / 2 + softplus(once).sum()) / beta
    pull = _pull(torch.where(size > 0, own, LOW), alpha, 1.0)
    return ((pull + push) / (size > 0).sum().clamp_min(1)).to(pairs.q.z.dtype)


def _some(inside: Tensor) -> Tensor:
    """Numbers of the classes with items, by the [n c] table of who is in which; all of them where shapes may depend on
    no data."""
    if torch.compiler.is_compiling():
        return torch.arange(inside.shape[1], device=inside.device)
    return inside.any(0).nonzero()[:, 0]


def _log_means(exponent: Tensor, sums: Callable[[Tensor], Tensor], count: Tensor) -> Tensor:
    """Logarithm of `sums(exp(exponent)) / count`, `LOW` where the count is 0; float64."""
    top = exponent.detach().amax() if exponent.numel() else exponent.sum()
    total = sums((exponent - top).exp()).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(count > 0, total.log() + top - count.clamp_min(1).log(), LOW)


def _fields_walk(fields: Pairs, tiles: Tiles, *, alpha: float, beta: float, base: float) -> tuple[Tensor, Gradient]:
    """As `_fields_plain`, by means of exponentials; rows are mean fields, keys the items."""
    classes, slot, size = fields.k.code.unique(return_inverse=True, return_counts=True)
    of_field = torch.full_like(fields.q.code, -1).index_copy_(
        0, classes, torch.arange(len(classes), device=slot.device)
    )
    count, share = len(classes), 1 / size.to(fields.q.z.dtype)
    among, pull = share.new_zeros(count, count), torch.zeros_like(share)
    others = torch.zeros_like(share[0], dtype=torch.float64)

    def means(part: slice, tile: Tile) -> tuple[Tensor, Tensor]:
        """Own exponentials of the items at `tile.same`, and means [rows classes]; x: exponentials of the other items."""
        near = (alpha * (base - tile.take(tile.same))).exp_()
        _powers(tile.x, beta, base)
        tile.put(tile.same, 0.0)
        to = share.new_zeros(len(tile.x), count).scatter_add_(1, slot.expand_as(tile.x), tile.x)
        return near, to.mul_(share)

    for part, tile in tiles:
        near, to = means(part, tile)
        pull.index_add_(0, of_field[part][tile.same.row], near)
        present = of_field[part] >= 0
        among[of_field[part][present]] = to[present]
        others += to[~present].log1p_().sum()
    pull.mul_(share)
    both = among + among.T
    value = (pull.log1p().sum() / alpha + (others + both.log1p().sum() / 2) / beta) / count
    of_pull, of_both = -share / (count * (1 + pull)), 1 / (1 + both)

    def gradient(part: slice, tile: Tile) -> None:
        near, to = means(part, tile)
        present = of_field[part] >= 0
        weight = to.add_(1).reciprocal_()
        weight[present] = of_both[of_field[part][present]]
        tile.x.mul_(weight.mul_(share / count).index_select(1, slot))
        tile.put(tile.same, near * of_pull[of_field[part][tile.same.row]])

    return value, gradient


@register_loss(
    "class_wise_multi_similarity",
    reads="same",
    x="similarity",
    geometry="cosine",
    form="pairs",
    classes_only=True,
    label_sets=True,
    between={"alpha": (0, math.inf), "beta": (0, math.inf)},
    paper=MFT,
)
def class_wise_multi_similarity(
    pairs: Pairs, *, alpha: float = 0.01, beta: float = 80.0, base: float = 0.8, self_pairs: bool = True
) -> Tensor:
    """Class-wise multi-similarity loss (equation 9): multi-similarity without anchors, averaged over pairs of classes.

    With s the cosine similarities and K the number of classes in the batch,
    `1 / (alpha K) * sum over c of log(1 + 1/2 mean_{i, j in c} exp(alpha (base - s_ij)))` plus
    `1 / (2 beta K) * sum over c != c' of log(1 + mean_{i in c, j in c'} exp(beta (s_ij - base)))`. Equal to the authors'
    code, values and gradients. Like theirs the positive mean takes in the pairs of an item with itself, which only
    dilute the pull of small classes; `self_pairs=False` leaves them out, and then a class of one item has no first
    part. Against references, c runs over the classes of the batch and c' over those of the references.

    Our extension to several labels per item (target `within('multi_label', radius=0.999)`): an item is in the class of
    each of its labels, and only pairs of items without a common label are pushed apart.

    Paper settings: alpha 0.01, beta 80, base (delta) 0.8.
    Cost: O(n^2 d) time; memory O(K^2) and a tile of rows.

    Args:
        pairs: the block of pairs.
        alpha: sharpness for the same class.
        beta: sharpness for different classes.
        base: similarity around which both parts turn (delta of the paper).
        self_pairs: whether pairs with equal ids of one class count as positives.

    Returns:
        The loss, a scalar; 0 if no pair is valid.
    """
    if pairs.q.code.ndim > 1:
        return _sets(pairs, alpha, beta, base, self_pairs)
    if _bounded(pairs, alpha, beta, base):
        options: dict[str, Any] = {"alpha": alpha, "beta": beta, "base": base, "self_pairs": self_pairs}
        walk = functools.partial(_class_wise_walk, pairs, **options)
        return walked(pairs, walk, functools.partial(class_wise_multi_similarity, **options))

    def exponents(x: Tensor, same: Tensor, valid: Tensor) -> Tensor:
        """What each pair adds to the logarithm of its pair of classes."""
        return torch.where(same, alpha * (base - x), beta * (x - base)).masked_fill(~valid, LOW)

    plain = pairs.plain or pairs.block.miner is not None
    log_mean, same, count, some = (_between_classes_plain if plain else _between_classes)(pairs, exponents, self_pairs)
    pull = _pull(torch.where(same, log_mean, LOW), alpha, 0.5)
    push = softplus(torch.where(same, LOW, log_mean)).sum() / (2 * beta)
    return torch.where(some, (pull + push) / count, 0)


def _sets(pairs: Pairs, alpha: float, beta: float, base: float, self_pairs: bool) -> Tensor:
    """As `class_wise_multi_similarity` where an item can be in several classes, codes being multi-hot."""
    x, y, valid = pairs.dense()
    same, different = split(y, valid)
    if self_pairs:
        same = same | (pairs.q.id[:, None] == pairs.k.id[None, :])
    x, near, far = x.double(), same.double(), different.double()
    some = _some(torch.cat([pairs.q.code, pairs.k.code]))
    q, k = pairs.q.code[:, some].double(), pairs.k.code[:, some].double()

    def inside(pair: Tensor) -> Tensor:
        """Sum over the pairs of each class."""
        return ((q.T @ pair) * k.T).sum(1)

    def between(pair: Tensor) -> Tensor:
        """Sum over the pairs of each two classes."""
        return q.T @ pair @ k

    pull = _log_means(alpha * (base - x), lambda powers: inside(near * powers), inside(near))
    push = _log_means(beta * (x - base), lambda powers: between(far * powers), between(far))
    total = _pull(pull, alpha, 0.5) + softplus(push.fill_diagonal_(LOW)).sum() / (2 * beta)
    count = (q.sum(0) > 0).sum().clamp_min(1)
    return torch.where(valid.any(), total / count, 0).to(pairs.q.z.dtype)


def _bounded(pairs: Pairs, alpha: float, beta: float, base: float) -> bool:
    """Whether the loss can be walked, and no sum of its exponentials can overflow."""
    known = not pairs.plain and pairs.block.miner is None and pairs.block.geometry == create_geometry("cosine")
    return known and 0 < alpha * (1 + base) < LARGE and beta > 0 and beta * (1 - base) < LARGE


def _powers(x: Tensor, beta: float, base: float) -> Tensor:
    """`exp(beta (x - base))` in place; what is lost beside 1 is kept where `exp` and products are quick."""
    lowest = -60.0 if x.dtype == torch.float32 else -600.0
    return x.sub_(base).mul_(beta).clamp_min_(lowest).exp_()


def _class_wise_walk(
    pairs: Pairs, tiles: Tiles, *, alpha: float, beta: float, base: float, self_pairs: bool
) -> tuple[Tensor, Gradient]:
    """As `class_wise_multi_similarity`, by sums of exponentials of each pair of classes."""
    q, k = pairs.q, pairs.k
    (classes_q, slot_q), (classes_k, slot_k) = (p.code.unique(return_inverse=True) for p in (q, k))
    count, width = len(classes_q), len(k)
    number = (slot_q.bincount()[:, None] * slot_k.bincount()).to(q.z.dtype)
    push = torch.zeros_like(number)
    pull, positives = push.new_zeros(2, count)

    def powers(part: slice, tile: Tile) -> tuple[Places, Tensor, Places]:
        """Places and exponentials of positives, places of other classes that do not count; x: those of the others."""
        same, off = tile.same, tile.off
        alike = q.code[part][off.row] == k.code[off.flat - off.row * width]
        away = Places(off.row[~alike], off.flat[~alike])
        if self_pairs:
            same = Places(torch.cat([same.row, off.row[alike]]), torch.cat([same.flat, off.flat[alike]]))
        near = (alpha * (base - tile.take(same))).exp_()
        _powers(tile.x, beta, base)
        tile.put(tile.same, 0.0)
        tile.put(off, 0.0)
        return same, near, away

    for part, tile in tiles:
        same, near, away = powers(part, tile)
        pull.index_add_(0, slot_q[part][same.row], near)
        positives.index_add_(0, slot_q[part][same.row], torch.ones_like(near))
        at = slot_q[part][away.row], slot_k[away.flat - away.row * width]
        number.index_put_(at, number.new_tensor(-1.0), accumulate=True)
        here, row = slot_q[part].unique(return_inverse=True)
        by_row = push.new_zeros(len(here), width).index_add_(0, row, tile.x)
        push[here] += push.new_zeros(len(classes_k), len(here)).index_add_(0, slot_k, by_row.T.contiguous()).T
    pull.div_(2 * positives.clamp_min_(1))
    push.div_(number.clamp_min_(1))
    some = (k.id != q.id[0]).any() | (q.id != k.id[0]).any()
    factor = some.to(push.dtype) / count
    value = factor * (pull.log1p().sum() / alpha + push.log1p().sum() / (2 * beta))
    of_pull = -factor / (2 * positives * (1 + pull))
    of_push = push.add_(1).mul_(number).reciprocal_().mul_(factor / 2)

    def gradient(part: slice, tile: Tile) -> None:
        same, near, _ = powers(part, tile)
        tile.x.mul_(of_push[slot_q[part]].index_select(1, slot_k))
        tile.put(same, near * of_pull[slot_q[part][same.row]])

    return value, gradient


Exponents = Callable[[Tensor, Tensor, Tensor], Tensor]
ClassBlock = tuple[Tensor, Tensor, Tensor | int, Tensor]


def _between_classes_plain(pairs: Pairs, exponents: Exponents, self_pairs: bool) -> ClassBlock:
    """Log-means [c c'] of all pairs of classes, where c = c', number of classes c, and whether any pair is valid.

    A class has the slot of its first item, so that shapes depend on no data.
    """
    x, y, valid = pairs.dense()
    q, k, same = pairs.q, pairs.k, ~y if y.dtype == torch.bool else y == 0
    counted = valid | (same & (q.id[:, None] == k.id[None, :])) if self_pairs else valid
    slot_q, slot_k = (
        (code[:, None] == code[None, :]).to(torch.uint8).argmax(1) for code in (q.code, k.code)
    )  # fmt: skip
    n, m = x.shape
    sums = slot_log_sums(slot_log_sums(exponents(x, same, counted), slot_q, n).T, slot_k, m).T
    number = torch.zeros(n, m, dtype=x.dtype, device=x.device)
    number = number.index_add(0, slot_q, counted.to(x.dtype))
    number = torch.zeros_like(number).index_add(1, slot_k, number)
    first = slot_q == torch.arange(n, device=x.device)
    log_mean = torch.where(number > 0, sums - number.clamp_min(1).log(), LOW)
    return log_mean, same, first.sum(), valid.any()


def _numbers(own: Points, keys: Points, size_q: Tensor, size_k: Tensor, self_pairs: bool, like: Tensor) -> Tensor:
    """How many pairs of each pair of classes count [c c']; points in the order of their classes."""
    slot_q, slot_k = (torch.arange(len(s), device=s.device).repeat_interleave(s) for s in (size_q, size_k))
    row, column = equal_ids(own.id, keys.id)
    if self_pairs:
        drop = own.code[row] != keys.code[column]
        row, column = row[drop], column[drop]
    number = (size_q[:, None] * size_k[None, :]).to(like.dtype)
    return number.index_put_((slot_q[row], slot_k[column]), -torch.ones_like(like[row, 0]), accumulate=True)


def _between_classes(pairs: Pairs, exponents: Exponents, self_pairs: bool) -> ClassBlock:
    """As `_between_classes_plain`, with one row and column per class, in tiles that are computed again in backward."""
    order_q, classes_q, runs_q = by_class(pairs.q.code)
    order_k, classes_k, runs_k = by_class(pairs.k.code)
    q, k = pairs.prepared()
    keys, q = pairs.k[order_k], q[order_q]
    k, own = k[order_k], pairs.q[order_q]
    geometry = pairs.block.geometry

    def tile(part: Tensor, keys_z: Tensor, rows: slice, run: tuple[int, int]) -> Tensor:
        """Log-means [g c'] of some rows: g classes of m items, or a piece of one class."""
        same = own.code[rows, None] == keys.code[None, :]
        valid = own.id[rows, None] != keys.id[None, :]
        if self_pairs:
            valid = valid | same
        v = exponents(geometry.pairs(part, keys_z), same, valid)
        return log_sums(log_sums(v, [run]).T, runs_k).T

    def again(rows: slice, run: tuple[int, int]) -> Tensor:
        result: Tensor = checkpoint(tile, q[rows], k, rows, run, use_reentrant=False, preserve_rng_state=False)
        return result

    limit, start, found = max(1, TILE // len(k)), 0, []
    for g, m in runs_q:
        if m <= limit:
            for part in torch.arange(g).split(limit // m):
                found.append(again(slice(start, start + len(part) * m), (len(part), m)))
                start += len(part) * m
            continue
        for _ in range(g):
            pieces = [slice(start + a, start + min(a + limit, m)) for a in range(0, m, limit)]
            found.append(torch.stack([again(p, (1, p.stop - p.start)) for p in pieces]).logsumexp(0))
            start += m
    number = _numbers(own, keys, sizes(runs_q, k), sizes(runs_k, k), self_pairs, q)
    log_mean = torch.where(number > 0, torch.cat(found) - number.clamp_min(1).log(), LOW)
    some = (pairs.k.id != pairs.q.id[0]).any() | (pairs.q.id != pairs.k.id[0]).any()
    return log_mean, classes_q[:, None] == classes_k[None, :], len(classes_q), some
