"""Losses: pure functions over a block of pairs, registered with what they read.

A row loss has the type `(x [q k], y [q k], valid [q k], **options) -> (value, count)`. `x` is the similarity or
distance of the embeddings, `y` the label distance (0 = the same), `valid` the pairs that count. `value` and `count` are
[q], or [q t] for a loss of t terms, and the loss is

    sum over terms t of ( sum over rows of value[:, t] ) / ( sum over rows of count[:, t] ).

With a count of 1 for each defined row this is the mean over defined rows; a count of active pairs makes it the mean
over those. Because numerator and denominator add up over rows, so do blocks of rows and processes. Rows that are not
defined have value 0 and count 0.

A softmax loss over learned classes has the form `softmax`: `(s [q], **options) -> (own [q], factor)`, from the score of
a row's own class to that class's logit, and what turns the scores of the other classes into logits (see `softmax`).

A loss that is no sum over rows has the form `pairs`: `(pairs, **options) -> loss`, on a `walks.Pairs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import Tensor

from ..geometry import Kind
from ..keys import Boundary
from ..registry import Registry
from ..targets import Gives

Rows = tuple[Tensor, Tensor]
RowLoss = Callable[..., Rows]
Build = TypeVar("Build", bound=Callable[..., Any])

LOSSES = Registry("loss")
POSITIVE = frozenset({
    "temperature", "scale", "sigma", "bandwidth", "hardness", "gamma", "la", "bins", "steps", "centers", "d_floor", "embedding_power",
    "label_power", "label_floor", "anneal_base",
})  # fmt: skip
"""Options that no loss can take at 0 or below."""

NOT_NEGATIVE = frozenset({
    "anneal_floor", "anneal_rate", "eps", "inner_eps", "l2", "nu", "regularizer", "variance_floor", "variance_slack",
    "variance_weight", "warn_below",
})  # fmt: skip
"""Options that no loss can take below 0."""


@dataclass(frozen=True)
class LossFacts:
    """What a loss declares at registration.

    Attributes:
        reads: what it reads of the label distance: `same` (only y == 0), `order` (ranks), `magnitude` (the value).
        x: whether it reads similarities or distances.
        geometry: the geometry (spec) of its paper.
        rows: what a row is: an item of the batch, or a `proxy`.
        keys: what the columns are: the batch (or references), or one `proxy` per class.
        form: `rows` for a row loss, `pairs` for a loss of a whole block,
            `softmax` for cross-entropy over the proxies.
        paper: where it comes from.
        per_row: what a row loss gets as fourth argument [q], with gradient: the `norm` of the embedding before it is
            normalised, or the learned `beta` of its class.
        penalty: a regulariser `(z, proxies, **options) -> scalar` added to the loss; z [n d] are the embeddings of all
            processes, proxies [c d] or None. Its options are options of the loss.
        scale_free: whether the loss does not change when all embeddings are scaled.
        in_place: optional faster form of a row loss: `(tile, **options) -> (value, count)` without a graph, which
            overwrites `tile.x` with the gradient of `value.sum()`; None where it declines, `tile.x` untouched. Of two
            terms, only the first may depend on x at `tile.same`, and only the second elsewhere.
        by_proxy: optional faster form of a row loss whose rows are proxies, of two terms, without a graph:
            `(s [c n], row, column, weights, **options) -> values`, from the scores of some proxies and the places of the
            pairs that are the same to the terms' numerators [2]; `s` is overwritten with the gradient of their sum
            weighted by `weights`. The first term's denominator is the number of classes present, the second's that of
            proxies.
        merge: for a softmax loss with several centres a class, `(s [q c * centers], *, centers, ...) -> [q c]`.
        others_only: whether a softmax loss leaves the own class out of its sum.
        between: options whose values must lie between two numbers, neither of them included (those in `POSITIVE` are
            greater than 0 for every loss).
        geometry_only: whether no other geometry will do.
        classes_only: whether items must have a class each, beyond being the same or different.
        label_sets: whether, of a loss with `classes_only`, items may also have sets of labels (multi-hot).
        proxy_init: how proxies start unless told otherwise, `random` or `class_mean`.
        both_ends: whether a pair is read from its key as well, so that a miner cannot go with other keys than the batch.
        proxy_rate: learning rate of what the loss learns unless told otherwise, as a multiple of the network's.
        any_proxies: whether proxies may have labels of any kind (`proxy_codes`), not one class each.
        weighted_by: an option with which the loss reads the value of label distances, whatever `reads` says.
    """

    reads: Gives
    x: Kind
    geometry: str
    paper: str
    rows: Literal["item", "proxy"] = "item"
    keys: Literal["item", "proxy"] = "item"
    form: Literal["rows", "pairs", "softmax"] = "rows"
    in_place: Callable[..., Rows | None] | None = None
    per_row: Literal["norm", "beta"] | None = None
    penalty: Callable[..., Tensor] | None = None
    scale_free: bool = True
    by_proxy: Callable[..., Tensor] | None = None
    merge: Callable[..., Tensor] | None = None
    others_only: bool = False
    between: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    geometry_only: bool = False
    classes_only: bool = False
    label_sets: bool = False
    proxy_init: Literal["random", "class_mean"] = "random"
    both_ends: bool = False
    proxy_rate: float = 100.0
    any_proxies: bool = False
    weighted_by: str | None = None

    @property
    def parts(self) -> tuple[Callable[..., Any], ...]:
        """What has options of its own beside the loss function."""
        return (
            *([Boundary] if self.per_row == "beta" else []),
            *(part for part in (self.penalty, self.merge) if part is not None),
        )

    def reads_with(self, options: Mapping[str, Any]) -> Gives:
        """What the loss reads with these options."""
        return self.reads if self.weighted_by is None or options.get(self.weighted_by) is None else "magnitude"

    @property
    def needs_proxies(self) -> bool:
        """Whether the loss learns one proxy per class."""
        return "proxy" in (self.rows, self.keys)

    @property
    def needs_classes(self) -> bool:
        """Whether the loss takes target `classes` alone."""
        return self.needs_proxies or self.classes_only

    def check(self, loss: str, options: Mapping[str, Any]) -> None:
        """Raise a ValueError if an option's value is out of range."""
        for name, value in options.items():
            low, high = self.between.get(name, (0, math.inf) if name in POSITIVE else (-math.inf, math.inf))
            if isinstance(value, float | int) and not low < value < high:
                wanted = f"greater than {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
                raise ValueError(f"loss {loss!r}: {name} must be {wanted}, got {value}")
            if name in NOT_NEGATIVE and not value >= 0:
                raise ValueError(f"loss {loss!r}: {name} must not be below 0, got {value}")


def register_loss(name: str, **facts: Any) -> Callable[[Build], Build]:
    """Decorator that registers a loss with its `LossFacts`."""
    about = LossFacts(**facts)
    return LOSSES.register(name, parts=about.parts, facts=about)


_READS = {
    "same": "same/different",
    "order": "the order of label distances",
    "magnitude": "the value of label distances",
}
_GIVES = {"same": "only same or different", "order": "only ranks", "magnitude": "distances"}


def check_fit(loss: str, reads: str, target: str, gives: str, option: str | None = None) -> None:
    """Raise a ValueError, with the way out, if a loss cannot read what a target gives, unless `option` were set."""
    if reads == gives or (gives == "magnitude" and reads == "order") or (reads == "order" and gives == "same"):
        return
    if reads == "same":
        way_out = (
            f"equality of distances is not a class; wrap it: within({target!r}, radius=0.1) or nearest({target!r}, k=5)"
            f"{f', or give {option}=, with which {loss} reads distances' if option and gives == 'magnitude' else ''}"
        )
    else:
        way_out = (
            f"take a target with distances (euclidean, pose, circular, ...), or a loss that reads same/different: "
            f"{', '.join(n for n in LOSSES.names() if LOSSES[n].info['facts'].reads == 'same')}"
        )
    raise ValueError(f"{loss} reads {_READS[reads]}, but target {target!r} gives {_GIVES[gives]}; {way_out}")


def list_losses() -> list[str]:
    """Names of all registered losses."""
    return LOSSES.names()


from . import continuous, lifted, mean_field, moments, pairs, proxies, ranking, swapped, triplets, tuples  # noqa: F401  (they register themselves)
