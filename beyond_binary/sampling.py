"""Batch samplers: which items make up each batch, as a pure function of (seed, epoch)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry import Geometry
from .offline import Find, Snapshot, check_mining, mine_offline
from .registry import Registry, options_of, parse_spec
from .targets import Target, create_target

SAMPLERS = Registry("sampler")
DATA = ("items_count", "classes", "neighbours", "labels", "target", "geometry")  # what a sampler may read


@dataclass(frozen=True)
class Plan:
    """The batches of any epoch: what a registered sampler function returns.

    `epoch(rng)` yields `length` index arrays of the global batch size; only without `drop_last` may the last
    one be smaller. With a `snapshot`, they also depend on what was mined last.
    """

    epoch: Callable[[np.random.Generator], Iterator[np.ndarray]]
    length: int
    drop_last: bool = True
    snapshot: Snapshot | None = None


class BatchSampler:
    """Iterates over one epoch of a plan and yields this rank's part of each batch as a list of int.

    The batches depend on `seed` and the epoch alone. Every rank draws the same global batches and keeps a
    contiguous part, so the parts of rank 0, 1, ... joined give the global batch; their sizes differ by at
    most one. (A last batch of fewer than `world_size` items leaves parts empty: all ranks see equally many
    batches.)

    Goes to a `DataLoader` as `batch_sampler`; `batch_size` is the global one. `len` is that of a whole epoch.
    A sampler that mines has a `snapshot`, which the training loop renews when it is due, and whose state it keeps in
    its checkpoints; else `snapshot` is None.
    """

    def __init__(self, plan: Plan, *, batch_size: int, seed: int, world_size: int = 1, rank: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank={rank} and world_size={world_size}")
        if batch_size < world_size:
            raise ValueError(
                f"batch_size={batch_size} is the global batch and cannot feed {world_size} processes; "
                f"raise it to at least {world_size}"
            )
        self.plan, self.seed, self.world_size, self.rank = plan, seed, world_size, rank
        self.batch_size, self.drop_last, self.snapshot = batch_size, plan.drop_last, plan.snapshot
        self.epoch = self._batch = 0
        self._resume = False

    def __len__(self) -> int:
        return self.plan.length

    def __iter__(self) -> Iterator[list[int]]:
        self._batch, self._resume = self._batch if self._resume else 0, False
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(self.epoch,))))
        for batch in islice(self.plan.epoch(rng), self._batch, None):
            self._batch += 1
            yield batch[self._bound(len(batch), self.rank) : self._bound(len(batch), self.rank + 1)].tolist()

    def _bound(self, count: int, rank: int) -> int:
        return count * rank // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; a loaded position is kept if it is in this epoch."""
        if epoch != self.epoch:
            self.epoch, self._batch, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were handed out.

        A `DataLoader` with workers asks for batches ahead of their use; then save
        `{"epoch": epoch, "batch": batches trained on}` instead.
        """
        return {"epoch": self.epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next pass after `state["batch"]` batches of `state["epoch"]`; later passes are whole."""
        self.epoch, self._batch, self._resume = state["epoch"], state["batch"], True


def create_sampler(
    spec: str,
    *,
    items_count: int,
    batch_size: int,
    seed: int,
    classes: Any = None,
    neighbours: Any = None,
    labels: Any = None,
    target: str | Target = "classes",
    geometry: str | Geometry = "cosine",
    world_size: int = 1,
    rank: int = 0,
    **options: Any,
) -> BatchSampler:
    """Build a sampler by name: "random", "classes(samples_per_class=4)", "dense_triplet(k=5)", "offline_hard".

    Args:
        spec: a name of `list_samplers()`, with options in it or as keywords.
        items_count: number of training items, n.
        batch_size: items in a batch of all processes together.
        seed: the batches depend on this and the epoch alone; not negative.
        classes: [n] integers or strings; read by "classes".
        neighbours: [n >=k] indices of each item's label-nearest items, nearest first, -1 for none (as
            `label_neighbours` gives them), or a function k -> such a table, called only when it is needed;
            read by "dense_triplet".
        labels: [n ...] what the target encodes; read by "offline_hard".
        target: what similar means; read by "offline_hard".
        geometry: how embeddings are compared, best as the loss does it; read by "offline_hard".
        world_size: number of processes.
        rank: which of them this is.
        options: the sampler's own options.

    Raises:
        ValueError: unknown name or option, missing or ill-fitting data, or a batch that cannot be filled.
    """
    name, _, keywords = parse_spec(spec)
    reads = [field for field in DATA if field in options_of(SAMPLERS[name].build)]
    SAMPLERS.check_options(name, [*keywords, *options], fixed=(*DATA, "batch_size"))
    given = {"items_count": items_count, "classes": classes, "neighbours": neighbours}
    given |= {"labels": labels, "target": target, "geometry": geometry}
    for field in reads:
        if given[field] is None:
            raise ValueError(
                f"sampler {name!r} reads {field}, which this data set does not give; "
                f"pass {field}= or use another sampler: {', '.join(n for n in list_samplers() if n != name)}"
            )
    _check_positive(items_count=items_count, batch_size=batch_size)
    plan = SAMPLERS.create(spec, batch_size=batch_size, **{f: given[f] for f in reads}, **options)
    return BatchSampler(plan, batch_size=batch_size, seed=seed, world_size=world_size, rank=rank)


def list_samplers() -> list[str]:
    """All registered sampler names, sorted."""
    return SAMPLERS.names()


# ----------------------------------------------------------------------------------------------------


@SAMPLERS.register("random")
def random_batches(items_count: int, batch_size: int, drop_last: bool = False) -> Plan:
    """Every item once per epoch, in random order.

    Args:
        items_count: number of items, n.
        batch_size: items per batch.
        drop_last: leave out a last batch that is not full.

    Raises:
        ValueError: `drop_last` would leave no batch at all.
    """
    if drop_last and batch_size > items_count:
        raise ValueError(
            f"batch_size={batch_size} exceeds the {items_count} items, so drop_last leaves no batch; "
            f"lower batch_size to at most {items_count} or set drop_last=False"
        )
    stop = items_count - items_count % batch_size if drop_last else items_count

    def epoch(rng: np.random.Generator) -> Iterator[np.ndarray]:
        order = rng.permutation(items_count)[:stop]
        return (order[first : first + batch_size] for first in range(0, stop, batch_size))

    return Plan(epoch, length=-(-stop // batch_size), drop_last=drop_last)


@SAMPLERS.register("classes")
def class_batches(
    items_count: int,
    classes: Any,
    batch_size: int,
    samples_per_class: int = 4,
    batches_per_epoch: int | None = None,
) -> Plan:
    """P distinct classes x M samples of each, M neighbouring places in the batch per class.

    Within an epoch a class comes again only after all other classes had their turn, and an image only after
    all others of its class. So classes are used evenly, whatever their sizes, and so are the images within
    a class. A class of fewer than M images fills its places with as few repeats as possible; repeats share
    an id and form no pair, so a class of one image serves as a negative only.

    Args:
        items_count: number of items, n.
        classes: [n] class of each item, integers or strings.
        batch_size: P x M.
        samples_per_class: M.
        batches_per_epoch: default n // batch_size, at least 1.

    Raises:
        ValueError: `classes` does not fit, `batch_size` is no multiple of M, or fewer than P classes.

    Warns:
        UserWarning: M > 1, but fewer than P classes have two images: some classes of each batch form no pair.
    """
    _check_positive(samples_per_class=samples_per_class)
    classes = np.asarray(classes)
    if classes.shape != (items_count,) or classes.dtype.kind not in "biuUSO":
        raise ValueError(
            f"sampler 'classes' expects {items_count} integer or string classes, one per item, got "
            f"{classes.dtype} {list(classes.shape)}; for other labels use 'dense_triplet' or 'random'"
        )
    _, member, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1])
    classes_per_batch = _classes_per_batch(batch_size, samples_per_class, sizes)
    length = _length(batches_per_epoch, default=max(1, items_count // batch_size))

    def epoch(rng: np.random.Generator) -> Iterator[np.ndarray]:
        deck = _Deck(np.arange(len(members)), rng)
        decks = [_Deck(m, rng) for m in members]
        for _ in range(length):
            yield np.concatenate([decks[c].draw(samples_per_class) for c in deck.draw(classes_per_batch)])

    return Plan(epoch, length)


@SAMPLERS.register("dense_triplet")
def dense_triplet_batches(
    items_count: int,
    neighbours: Any,
    batch_size: int,
    anchors: int = 1,
    k: int = 5,
    pool: int | None = None,
    batches_per_epoch: int | None = None,
) -> Plan:
    """Anchors, the `k` label-nearest items of each, and random others: dense triplet batches.

    The batches of dense triplet mining (Kim et al., "Deep Metric Learning Beyond Binary Supervision", CVPR
    2019), whose form is `anchors=1`, `k=5`. A batch lists its anchors, then their neighbours, then the
    random items, all distinct: where neighbourhoods overlap, or hold -1, random items take the free places.
    Each item is an anchor once per epoch (the last batch may have fewer anchors), or, if
    `batches_per_epoch` is given, once before any is one again in that epoch.

    With a `pool`, the `k` are drawn anew from the `pool` nearest, and the others of the pool come only where nothing
    else is left: batches of that paper's M(Binary) are `k=5`, `pool=30`, for an objective whose target is the 30
    nearest of the whole set (`Listed`; in the trainer `objective.nearest`).

    Args:
        items_count: number of items, n.
        neighbours: [n >=k] table, or a function k -> table, see `create_sampler`.
        batch_size: items per batch, all distinct.
        anchors: anchors per batch.
        k: neighbours per anchor.
        pool: how many of the nearest these are drawn from; None: they are the nearest.
        batches_per_epoch: default ceil(n / anchors).

    Raises:
        ValueError: the table does not fit, `pool` is below `k`, or the batch cannot hold the anchors and neighbours, or
            exceeds n.
    """
    _check_positive(anchors=anchors, k=k)
    width = k if pool is None else pool
    if width < k:
        raise ValueError(f"cannot draw k={k} neighbours from the pool={pool} nearest; raise pool or lower k")
    if batch_size > items_count:
        raise ValueError(
            f"batch_size={batch_size} exceeds the {items_count} training items; lower it to at most {items_count}"
        )
    if anchors * (1 + k) > batch_size:
        raise ValueError(
            f"anchors={anchors} with k={k} neighbours each need {anchors * (1 + k)} places, more than "
            f"batch_size={batch_size}; raise batch_size, or lower anchors or k"
        )
    table = np.asarray(neighbours(width) if callable(neighbours) else neighbours)
    if table.ndim != 2 or len(table) != items_count or table.shape[1] < width or table.dtype.kind not in "iu":
        raise ValueError(
            f"expected a neighbour table of integers [{items_count}, {width} or more], got {table.dtype} "
            f"{list(table.shape)}; make it with label_neighbours(target, code, k={width})"
        )
    places = items_count if batches_per_epoch is None else batches_per_epoch * anchors
    length = _length(batches_per_epoch, default=-(-items_count // anchors))

    def epoch(rng: np.random.Generator) -> Iterator[np.ndarray]:
        deck = _Deck(np.arange(items_count), rng)
        for done in range(0, places, anchors):
            chosen = deck.draw(min(anchors, places - done))
            near, others = table[chosen, :k], table[:0]
            if pool is not None:
                near, others = _drawn(table[chosen, :pool], k, rng)
            near, others = near[near >= 0], others[others >= 0]
            anyone = rng.choice(
                items_count, min(batch_size + len(others), items_count), replace=False
            )  # enough for all
            anyone = anyone[~np.isin(anyone, others)]
            distinct = dict.fromkeys(np.concatenate([chosen, near, anyone, others]).tolist())
            yield np.array(list(distinct)[:batch_size])

    return Plan(epoch, length)


@SAMPLERS.register("offline_hard")
def offline_hard_batches(
    items_count: int,
    labels: Any,
    target: str | Target,
    geometry: str | Geometry,
    batch_size: int,
    positives: int = 1,
    negatives: int = 4,
    hard_positives: bool = False,
    refresh: int = 1,
    skip: int = 0,
    radius: float = 0.0,
    k: int = 32,
    batches_per_epoch: int | None = None,
) -> Plan:
    """Anchors, each with positives and the hardest negatives of the whole training set (see `mine_offline`).

    What Schroff et al. (FaceNet, CVPR 2015, section 3.2) call generating triplets offline, over all items.
    The negatives are those nearest to the anchor in a snapshot of all embeddings, which the training loop takes every
    `refresh` epochs:

        if sampler.snapshot.due(epoch):
            sampler.snapshot.renew(embeddings_of_all_items, epoch)  # in evaluation mode, the same on every process

    An anchor stands before its positives and its negatives. All items of a batch are distinct: where groups overlap, or
    an anchor has fewer partners, random items take the free places, as they do the places left over. An item is an
    anchor again only after all others had their turn. For steps instead of epochs, set `batches_per_epoch`.

    Args:
        items_count: number of items, n.
        labels: [n ...] what the target encodes.
        target: what similar means. Pairs at an unknown label distance are no partners.
        geometry: how embeddings are compared.
        batch_size: items per batch, all distinct.
        positives: of each anchor; 0: none.
        negatives: hard ones of each anchor.
        hard_positives: take the farthest of the snapshot instead of random ones (it costs a second search).
        refresh: epochs between two snapshots.
        skip: so many of the hardest are left out (on both sides), for labels that are not to be trusted.
        radius: label distance up to which two items are the same, for targets that give distances (0: equal labels).
        k: neighbours that faiss looks at first; a matter of speed alone.
        batches_per_epoch: default n // batch_size, at least 1.

    Raises:
        ValueError: labels do not fit, or the batch cannot hold an anchor with its partners, or exceeds n.
    """
    _check_positive(refresh=refresh)
    meaning = create_target(target)
    check_mining(meaning, negatives, skip, radius, k)
    anchors = batch_size // (1 + max(positives, 0) + negatives)
    if positives < 0 or anchors < 1 or batch_size > items_count:
        raise ValueError(
            f"an anchor with positives={positives} and negatives={negatives} takes {1 + positives + negatives} places of "
            f"batch_size={batch_size}, which may not exceed the {items_count} training items"
        )
    code = meaning.encode(labels)
    if len(code) != items_count:
        raise ValueError(f"expected {items_count} labels, one per item, got {len(code)}")
    mine = partial(mine_offline, labels=labels, target=meaning, geometry=geometry, skip=skip, radius=radius, k=k)
    finds: dict[Find, int] = {"negatives": negatives}
    if hard_positives and positives:
        finds["positives"] = positives
    snapshot = Snapshot(lambda z: {find: mine(z, find=find, count=count) for find, count in finds.items()}, refresh)
    length = _length(batches_per_epoch, default=max(1, items_count // batch_size))

    def epoch(rng: np.random.Generator) -> Iterator[np.ndarray]:
        deck, hard = _Deck(np.arange(items_count), rng), snapshot["negatives"].numpy()
        for _ in range(length):
            chosen = deck.draw(anchors)
            if "positives" in finds:
                same = list(snapshot["positives"].numpy()[chosen])
            else:
                same = _same(meaning, code, chosen, radius, positives, rng)
            groups = zip(chosen[:, None], same, hard[chosen], strict=True)
            partners = np.concatenate([part for group in groups for part in group])
            anyone = rng.choice(items_count, batch_size, replace=False)  # enough, whoever is in the batch
            distinct = dict.fromkeys(np.concatenate([partners[partners >= 0], anyone]).tolist())
            yield np.array(list(distinct)[:batch_size])

    return Plan(epoch, length, snapshot=snapshot)


def _drawn(near: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`k` random neighbours of each row [n pool], those that are -1 last, and the others [n pool-k]."""
    order = np.where(near < 0, 1, rng.random(near.shape)).argsort(1)
    shuffled = np.take_along_axis(near, order, 1)
    return shuffled[:, :k], shuffled[:, k:]


def _same(
    target: Target, code: Tensor, chosen: np.ndarray, radius: float, count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Up to `count` random items of the same label for each of the chosen."""
    rows = torch.from_numpy(chosen)
    valid = rows[:, None] != torch.arange(len(code))
    same = valid & (target.distance(code[rows], code, valid) <= radius)
    return [rng.permutation(np.flatnonzero(row))[:count] for row in same.numpy()]


# ----------------------------------------------------------------------------------------------------


class _Deck:
    """Deals items at random: each once before any comes twice, and no repeats in a draw where possible."""

    def __init__(self, items: np.ndarray, rng: np.random.Generator) -> None:
        self.items, self.rng, self.rest = items, rng, items[:0]

    def draw(self, count: int) -> np.ndarray:
        """`count` items; more than there are come as whole shuffles and a remainder."""
        whole, part = divmod(count, len(self.items))
        dealt, self.rest = self.rest[:part], self.rest[part:]
        if (missing := part - len(dealt)) > 0:
            fresh = self.rng.permutation(self.items)
            free = np.flatnonzero(~np.isin(fresh, dealt))[:missing]
            dealt, self.rest = np.concatenate([dealt, fresh[free]]), np.delete(fresh, free)
        return np.concatenate([*(self.rng.permutation(self.items) for _ in range(whole)), dealt])


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"expected {name} to be at least 1, got {value}")


def _length(batches_per_epoch: int | None, default: int) -> int:
    if batches_per_epoch is None:
        return default
    _check_positive(batches_per_epoch=batches_per_epoch)
    return batches_per_epoch


def _classes_per_batch(batch_size: int, samples_per_class: int, sizes: np.ndarray) -> int:
    """P, after checking that the classes of the given sizes can fill a batch."""
    needed, left_over = divmod(batch_size, samples_per_class)
    if left_over:
        near = f"{needed * samples_per_class} or " if needed else ""
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of samples_per_class={samples_per_class}; "
            f"use batch_size={near}{(needed + 1) * samples_per_class}"
        )
    if needed > len(sizes):
        raise ValueError(
            f"batch_size={batch_size} with samples_per_class={samples_per_class} needs {needed} classes, "
            f"the training items have {len(sizes)}; lower batch_size to at most "
            f"{len(sizes) * samples_per_class} or raise samples_per_class"
        )
    if samples_per_class > 1 and (paired := int((sizes > 1).sum())) < needed:
        warnings.warn(
            f"only {paired} classes have two items or more and each batch takes {needed} classes: "
            "some classes of every batch form no positive pair",
            stacklevel=2,
        )
    return needed
