"""Verification: how well one threshold on the similarity tells genuine pairs (same) from impostors (different).

All is exact and ties are one threshold. Between two genuine scores the accepted share of genuine pairs does not change,
so it is enough to know how many impostors lie between, and on, the genuine scores: no list of all impostors is kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import METRICS

log = logging.getLogger(__name__)


class Moments(NamedTuple):
    """Number (or weight) of scores, their mean and variance (of all of them: the divisor is n)."""

    number: float = 0.0
    mean: float = math.nan
    variance: float = math.nan

    @staticmethod
    def of(scores: Tensor, weight: Tensor | None = None) -> Moments:
        """Of scores [n], each counting once or `weight` [n] times."""
        scores = scores.double()
        weight = torch.ones_like(scores) if weight is None else weight.double()
        if not (number := float(weight.sum())):
            return Moments()
        first = float(scores[0])  # about which equal scores have no rounding error
        away = scores - first
        mean = float((weight * away).sum()) / number
        return Moments(number, first + mean, float((weight * (away - mean).square()).sum()) / number)

    def __or__(self, other: Moments) -> Moments:
        """Of both together (Chan, Golub and LeVeque, 1983)."""
        if not (self.number and other.number):
            return self if self.number else other
        number, gap = self.number + other.number, other.mean - self.mean
        share = other.number / number
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * gap * gap
        return Moments(number, self.mean + share * gap, variance)


class Roc(NamedTuple):
    """Rates [t] float64 at falling thresholds, from (0, 0) to (1, 1): impostors (far) and genuine pairs (tar) accepted."""

    far: Tensor
    tar: Tensor


class Places(NamedTuple):
    """Where impostors lie among m distinct genuine scores: how many of them are below each score or on it, and on it.

    Attributes:
        up_to: impostors above the genuine score before and not above this one [m + 1]; the last: above all.
        on: those of them that are equal to it [m + 1].
    """

    up_to: Tensor
    on: Tensor

    @staticmethod
    def of(levels: Tensor, scores: Tensor, weight: Tensor | None = None) -> Places:
        """Of impostors' `scores` [n] among rising `levels` [m]: the levels are sought among the sorted scores."""
        if weight is None:
            scores = rising(scores)
            count = torch.arange(len(scores) + 1, dtype=torch.double, device=scores.device)
        else:
            if not (scores[1:] >= scores[:-1]).all():
                scores, order = scores.sort()
                weight = weight[order]
            count = torch.cat([weight.new_zeros(1).double(), weight.double().cumsum(0)])
        below, up_to = count[torch.searchsorted(scores, levels)], count[torch.searchsorted(scores, levels, right=True)]
        none = count[:1]
        return Places(up_to.diff(prepend=none, append=count[-1:]), torch.cat([up_to - below, none]))

    def __add__(self, other: Places) -> Places:  # type: ignore[override]
        return Places(self.up_to + other.up_to, self.on + other.on)


def rising(scores: Tensor) -> Tensor:
    """The scores, float32 or wider and not NaN, sorted; on the CPU by NumPy, whose sort without an order is over ten times as fast as torch's."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.sort(scores.detach().numpy()))
    return scores.sort().values


@dataclass(frozen=True)
class Separation:
    """Genuine and impostor scores, as far as the metrics read them.

    Attributes:
        genuine: moments of the genuine scores.
        impostor: moments of the impostors'.
        impostors: how many impostor pairs there are, whatever they weigh.
        roc: the error rates; None where nobody asked for them, or where one kind of pair is missing.
    """

    genuine: Moments
    impostor: Moments
    impostors: int
    roc: Roc | None = None

    @staticmethod
    def of(scores: Tensor, same: Tensor, weight: Tensor | None = None) -> Separation:
        """Of a list of pairs: similarities [n], whether they are genuine [n], and how often each counts [n]."""
        own, other = (None, None) if weight is None else (weight[same], weight[~same])
        genuine, impostor = scores[same], scores[~same]
        roc = None
        if len(genuine) and len(impostor):
            levels, level = genuine.unique(return_inverse=True)
            count = level.bincount(None if own is None else own.double(), minlength=len(levels))
            roc = curve(count, Places.of(levels, impostor, other))
        return Separation(Moments.of(genuine, own), Moments.of(impostor, other), len(impostor), roc)


def curve(genuine: Tensor, places: Places) -> Roc | None:
    """The curve from the number of genuine pairs at each rising level [m] and the impostors' places; None if one is 0."""
    genuine = genuine.double()
    total, others = genuine.sum(), places.up_to.sum()
    if not (total > 0 and others > 0):
        return None
    above = places.up_to[1:].flip(0).cumsum(0)
    tar = torch.cat([genuine.new_zeros(1), genuine.flip(0).cumsum(0)])
    # on the way down to each level first the impostors above it are accepted, then what lies on it
    far = torch.stack([above, above + places.on[:-1].flip(0)], 1).flatten()
    rates = torch.stack([tar[:-1], tar[1:]], 1).flatten()
    start, end = genuine.new_zeros(1), genuine.new_ones(1)
    return Roc(torch.cat([start, far / others, end]), torch.cat([start, rates / total, end]))


@METRICS.register(reads="same", over="pairs")
def d_prime(pairs: Separation) -> float:
    """Decidability d' = |mu_g - mu_i| / sqrt((var_g + var_i) / 2), signed: negative if impostors score higher.

    Daugman, "The importance of being random", Pattern Recognition 2003; the variances divide by n. Infinite without
    any spread, NaN with fewer than two pairs of a kind.
    """
    genuine, impostor = pairs.genuine, pairs.impostor
    if min(genuine.number, impostor.number) < 2:
        return math.nan
    gap, spread = genuine.mean - impostor.mean, math.sqrt((genuine.variance + impostor.variance) / 2)
    return gap / spread if spread else math.copysign(math.inf, gap) if gap else 0.0


@METRICS.register(reads="same", over="pairs", curve=True, higher_is_better=False)
def eer(pairs: Separation) -> float:
    """Equal error rate: where as many impostors are accepted as genuine pairs refused, as a share of each.

    On the curve through all thresholds, straight between neighbouring ones; ties are one threshold, so a constant
    score has 0.5. NaN where one kind of pair is missing.
    """
    if pairs.roc is None:
        return math.nan
    far, gap = pairs.roc.far, pairs.roc.far - (1 - pairs.roc.tar)
    after = int((gap >= 0).int().argmax())
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(far[after - 1] + share * (far[after] - far[after - 1]))


@METRICS.register("tar_at_far_x", reads="same", over="pairs", curve=True)
def tar_at_far(pairs: Separation, far: float) -> float:
    """Share of genuine pairs accepted at the lowest threshold that accepts at most a share `far` of the impostors.

    A step, not a line between thresholds. NaN, with a warning, where `far` is less than one of the impostors: so few of
    them cannot show such a rate.
    """
    if pairs.roc is None:
        return math.nan
    if far * pairs.impostors < 1 - 1e-9:
        log.warning(
            "TAR at FAR = %g cannot be resolved by %d impostor pairs; it needs at least %d",
            far,
            pairs.impostors,
            math.ceil(1 / far),
        )
        return math.nan
    return float(pairs.roc.tar[pairs.roc.far <= far * (1 + 1e-12)].max())


class Collector:
    """Gathers what `Separation` holds from tiles of pairs: all of them by `add`, then, for the curve, again by `place`.

    For the curve all genuine scores are kept, else none.
    """

    def __init__(self, curve: bool) -> None:
        self._curve = curve
        self._genuine: list[Tensor] = []
        self._moments = Moments(), Moments()
        self._impostors = 0
        self._levels: tuple[Tensor, Tensor] | None = None
        self._places: Places | None = None

    def add(self, x: Tensor, right: Tensor, valid: Tensor) -> None:
        """A tile: similarities, which pairs are genuine, which count [q k]."""
        genuine, impostor = x[right & valid], x[valid & ~right]
        if self._curve:
            self._genuine.append(genuine)
        self._impostors += len(impostor)
        own, other = self._moments
        self._moments = own | Moments.of(genuine), other | Moments.of(impostor)

    def place(self, tiles: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """The same tiles once more: where the impostors lie among the genuine scores."""
        levels, count = torch.cat(self._genuine).unique(return_counts=True)
        self._levels = levels, count
        for x, right, valid in tiles:
            places = Places.of(levels, x[valid & ~right])
            self._places = places if self._places is None else self._places + places

    def result(self) -> Separation:
        """What was gathered."""
        roc = None
        if self._levels is not None and self._places is not None and len(self._levels[0]):
            roc = curve(self._levels[1], self._places)
        return Separation(*self._moments, self._impostors, roc)
