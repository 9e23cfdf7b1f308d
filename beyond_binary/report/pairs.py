"""Numbers behind a report's pictures: neighbours and pair distances of a seeded sample of held-out items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data import Items, Splits
from ..geometry import create_geometry
from ..metrics.verification import Separation, d_prime
from ..targets import Target

Pair = tuple[Tensor, Tensor | None]
"""Embeddings of queries [q d] and of the gallery [k d] (None: the queries are the gallery)."""

TILE_PAIRS = 1 << 21


@dataclass(frozen=True)
class Sample:
    """What s queries find in the whole gallery, and how far they are from c of its items.

    Attributes:
        rows: which queries, positions [s] in increasing order.
        neighbours: positions of the nearest items in the gallery [s k], by ranking ("before", "after", "random",
            "oracle"), nearest first.
        distances: label distances of these neighbours [s k]; NaN: the query has fewer than k references.
        matched: whether there is anything to find [s]: a right item for same/different, else any reference.
        x: embedding distances or similarities [s c] before and after training.
        y: label distances [s c]; NaN: not a pair (an item and itself) or unknown.
    """

    rows: np.ndarray
    neighbours: dict[str, Tensor]
    distances: dict[str, Tensor]
    matched: Tensor
    x: dict[str, Tensor]
    y: Tensor


@torch.no_grad()
def sample_pairs(
    splits: Splits,
    target: Target,
    geometry: str,
    before: Pair,
    after: Pair,
    *,
    k: int = 10,
    most: int = 2000,
    seed: int = 0,
) -> Sample:
    """Search the gallery for at most `most` queries; pair values are kept for at most `most` gallery items.

    Neighbours are exact: the whole gallery is searched, with the label distances that `evaluate` sees.
    """
    rng = np.random.default_rng(seed)
    query, gallery = splits.query, splits.query if splits.gallery is None else splits.gallery
    rows, columns = _some(len(query), most, rng), _some(len(gallery), most, rng)
    ids, ref_ids = torch.as_tensor(query.ids[rows]), torch.as_tensor(gallery.ids)
    code, ref_code = _codes(query, splits.gallery, target, after)
    code = code[torch.as_tensor(rows)]
    near = {name: _nearness(geometry, z, rows) for name, z in (("before", before), ("after", after))}
    sign = 1 if create_geometry(geometry).kind == "similarity" else -1
    noise = torch.Generator().manual_seed(seed)
    parts: list[Sample] = []
    for part in torch.arange(len(rows)).split(max(1, TILE_PAIRS // len(gallery))):
        valid = ids[part, None] != ref_ids
        y = target.distance(code[part], ref_code, valid).double().masked_fill(~valid, torch.nan)
        x = {name: value(part) for name, value in near.items()}
        order = {name: sign * value for name, value in x.items()}
        order |= {"random": torch.rand(y.shape, generator=noise), "oracle": -y}
        found = {name: _nearest(value, y, k) for name, value in order.items()}
        right = y == 0 if target.gives == "same" else ~y.isnan()
        kept = {name: value[:, torch.as_tensor(columns)] for name, value in x.items()}
        places, distances = ({name: pair[i] for name, pair in found.items()} for i in (0, 1))
        parts.append(Sample(rows, places, distances, right.any(1), kept, y[:, torch.as_tensor(columns)]))
    return _joined(rows, parts)


def spread(sample: Sample, count: int = 8) -> dict[int, str]:
    """Up to eight rows of the sample from best to worst, each with a word for its place.

    The order is that of the mean label distance of the first `count` neighbours after training (for
    same/different: the share of wrong ones); equal rows come in a seeded random order.
    """
    score = sample.distances["after"][:, :count].nanmean(1).masked_fill(~sample.matched, torch.nan).numpy()
    usable = np.flatnonzero(~np.isnan(score))
    shuffled = np.random.default_rng(0).permutation(usable)
    order = shuffled[np.argsort(score[shuffled], kind="stable")]
    n = len(order)
    places = [(0, "best"), (n - 1, "worst"), (n // 2, "median"), (1, "2nd best"), (n - 2, "2nd worst")]
    places += [(n // 4, "better quarter"), (3 * n // 4, "worse quarter"), (n - 3, "3rd worst")]
    words: dict[int, str] = {}
    for place, word in places:
        if 0 <= place < n:
            words.setdefault(place, word)
    return {int(order[place]): words[place] for place in sorted(words)}


def separation(x: Tensor, y: Tensor, geometry: str) -> float:
    """The metric d_prime of genuine (y = 0) and impostor pairs, whether `x` are similarities or distances."""
    sign = 1 if create_geometry(geometry).kind == "similarity" else -1
    known = ~y.isnan()
    return d_prime(Separation.of(sign * x[known].double(), y[known] == 0))


def _some(n: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted positions of at most `most` of n items."""
    return np.sort(rng.choice(n, min(n, most), replace=False))


def _codes(query: Items, gallery: Items | None, target: Target, z: Pair) -> tuple[Tensor, Tensor]:
    code = target.encode(query.labels, z[0])
    return code, code if gallery is None else target.encode(gallery.labels, z[1])


def _nearness(geometry: str, z: Pair, rows: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Embedding distance or similarity [t k] of some of the sampled queries to the whole gallery."""
    made = create_geometry(geometry)
    q, k = (made.prepare(side.float()) for side in (z[0], z[0] if z[1] is None else z[1]))
    q = q[torch.as_tensor(rows)]
    if made.shift_invariant:
        q, k = q - k.mean(0), k - k.mean(0)
    return lambda part: made.block(q[part], k)


def _nearest(order: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions [t k] of the largest `order` among known pairs, and their label distances."""
    place = order.masked_fill(y.isnan(), -torch.inf).topk(min(k, y.shape[1]), dim=1).indices
    return place, y.gather(1, place)


def _joined(rows: np.ndarray, parts: list[Sample]) -> Sample:
    def rejoin(name: str) -> dict[str, Tensor]:
        return {key: torch.cat([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    matched, y = torch.cat([part.matched for part in parts]), torch.cat([part.y for part in parts])
    return Sample(rows, rejoin("neighbours"), rejoin("distances"), matched, rejoin("x"), y)
