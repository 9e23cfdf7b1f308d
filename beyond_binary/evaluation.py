"""Scores of an embedding: queries ranked against all references tile by tile, and metrics of the rankings."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .geometry import Geometry, create_geometry
from .metrics import create_metrics
from .metrics.clustering import Clustering, kmeans
from .metrics.ranking import Ranking
from .metrics.verification import Collector
from .points import Points
from .registry import suggest
from .targets import Target, create_target
from .targets.algebra import Sum
from .targets.vectors import Classes, as_tensor

PAIRS_PER_TILE = {"cpu": 1 << 21, "cuda": 1 << 25}
"""Pairs that are compared at once: the memory of an evaluation, at some tens of bytes a pair."""

Order = Callable[[slice, Tensor], Tensor]
"""(rows of the tile, label distances y [t k]) -> similarity x [t k]."""


@torch.no_grad()
def evaluate(
    embeddings: Any,
    labels: Any,
    *,
    target: str | Target = "classes",
    ks: int | Sequence[int] | None = None,
    ref_embeddings: Any = None,
    ref_labels: Any = None,
    ids: Any = None,
    ref_ids: Any = None,
    geometry: str | Geometry = "euclidean",
    metrics: Sequence[str] | None = None,
    ranking: str = "embedding",
    seed: int = 0,
) -> dict[str, float]:
    """Rank the references of each query and score the rankings.

    Exact: all references are ranked and R counts all of them. Memory is bounded: the [q k] matrix of all
    pairs never exists; error rates (eer, tar_at_far_x) keep the scores of all genuine pairs.

    Args:
        embeddings: queries [q d], tensor or array.
        labels: their labels [q ...], as the target wants them.
        target: what similar means, such as "classes", "euclidean" or "within('euclidean', radius=0.1)".
        ks: numbers of neighbours (or one number) of the `_at_k` metrics; None: 1, 2, 4, 8 for recall, 1, 10 for
            mean_label_distance, part_label_distance and knn_label_error, 10, 100 for ndcg. Larger than the number of
            references means all of them.
        ref_embeddings: references [k d]; None: the queries among themselves, each without itself.
        ref_labels: labels of the references [k ...].
        ids: identity of each query [q], integers. A reference with the query's id is never ranked for it.
        ref_ids: identity of each reference [k]. Without ids, queries and references have nothing in common.
        geometry: what near means, such as "euclidean" or "cosine".
        metrics: names, such as ["recall_at_1", "map_at_r"], with options if need be
            ("ndcg_at_100(label_scale=0.1)"); None: those over rows that fit the target. See `list_metrics()`. d_prime,
            eer and tar_at_far_0.001 judge all pairs by one threshold; nmi, ami and pairwise_f1 as many k-means clusters
            of the queries as they have classes.
        ranking: "embedding"; "random", a seeded random order; "oracle", the order of the label distance. The
            last two show what chance and the best possible embedding would score, whatever the embeddings are.
        seed: of the random ranking, and of k-means.

    Returns:
        Mean over queries of each metric, by name, and `queries`, how many queries had something to find (for
        same/different: a right reference; else: any reference), and `queries_without_match`, how many had not
        and are left out. A metric that is defined for no query is NaN.

    Raises:
        ValueError: labels that do not fit the target, metrics that do not fit it, unknown names, embeddings
            that are not finite or not of one shape, references without labels, ids on one side only, ids that are no
            integers, no metric at all, or ks that are not integers of at least 1.
    """
    target = create_target(target)
    chosen = create_metrics(metrics, target.gives, ks, target)
    geometry = create_geometry(geometry)
    query, refs = _sides(target, embeddings, labels, ids, ref_embeddings, ref_labels, ref_ids)
    over = {kind: [metric for metric in chosen if metric.over == kind] for kind in ("rows", "pairs", "clusters")}
    depth = max((m.k for m in over["rows"] if m.reads != "same"), default=1)
    tiles = partial(_tiles, target, query, refs, geometry, ranking, seed, depth)
    curve = any(metric.curve for metric in over["pairs"])
    pairs = Collector(curve) if over["pairs"] else None
    sums = torch.zeros(2, len(over["rows"]), dtype=torch.double)
    matched = 0
    for part, ranked in tiles():
        found = ranked.relevant if target.gives == "same" else ranked.references
        matched += int((found > 0).sum())
        for column, metric in enumerate(over["rows"]):
            value, count = metric.function(ranked)
            sums[0, column] += torch.where(count > 0, value, 0).sum().cpu()
            sums[1, column] += (count > 0).sum().cpu()
        if pairs is not None:
            pairs.add(*_once(ranked, part, query is refs))
    scores = {metric.name: mean for metric, mean in zip(over["rows"], (sums[0] / sums[1]).tolist(), strict=True)}
    if pairs is not None:
        if curve:
            pairs.place(_once(ranked, part, query is refs) for part, ranked in tiles())
        separation = pairs.result()
        scores |= {metric.name: metric.function(separation) for metric in over["pairs"]}
    if over["clusters"]:
        clustering = _clustering(target, query, geometry, ranking, seed)
        scores |= {metric.name: metric.function(clustering) for metric in over["clusters"]}
    ordered = {metric.name: scores[metric.name] for metric in chosen}
    return ordered | {"queries": float(matched), "queries_without_match": float(len(query) - matched)}


def _tiles(
    target: Target, query: Points, refs: Points, geometry: Geometry, ranking: str, seed: int, depth: int
) -> Iterator[tuple[slice, Ranking]]:
    """Some queries at a time, ranked against all references; the same each time."""
    order = _order(ranking, query, refs, geometry, seed)
    gap = _gap(geometry) if ranking == "embedding" else torch.neg
    tile = max(1, PAIRS_PER_TILE.get(query.z.device.type, 1 << 23) // len(refs))
    for start in range(0, len(query), tile):
        part = slice(start, start + tile)
        valid = query.id[part, None] != refs.id
        y = target.distance(query.code[part], refs.code, valid)
        sides = query.code[part], refs.code
        more = {
            "gap": gap,
            "mean_error": partial(_mean_error, target, *sides) if getattr(target, "mean", None) else None,
            "between": partial(_between, target, refs.code),
            "part": partial(target.part, *sides) if isinstance(target, Sum) else None,
        }
        yield part, Ranking.of(order(part, y), y, valid, target.gives, depth, **more)


def _once(ranked: Ranking, rows: slice, among: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Similarities of a tile, which pairs are right, and which count: among themselves, each pair only once."""
    if not among:
        return ranked.x, ranked.right, ranked.valid
    number = torch.arange(ranked.x.shape[1], device=ranked.x.device)
    return ranked.x, ranked.right, ranked.valid & (number > number[rows, None])


def _clustering(target: Target, query: Points, geometry: Geometry, ranking: str, seed: int) -> Clustering:
    """Classes of the queries, and as many clusters of their embeddings (by chance or the classes, as `ranking` says)."""
    if not isinstance(target, Classes):
        raise ValueError(
            f"nmi, ami and pairwise_f1 compare clusters with classes: they need the target 'classes', not {target}"
        )
    classes = query.code.cpu().numpy()
    k = len(np.unique(classes))
    if ranking == "embedding":
        return Clustering(classes, kmeans(geometry.prepare(query.z), k, seed))
    return Clustering(
        classes, classes if ranking == "oracle" else np.random.default_rng(seed).integers(k, size=len(classes))
    )


def _sides(
    target: Target, z: Any, labels: Any, ids: Any, ref_z: Any, ref_labels: Any, ref_ids: Any
) -> tuple[Points, Points]:
    """Queries and references; the same object when the queries are searched among themselves."""
    if ref_z is None:
        if ref_labels is not None or ref_ids is not None:
            raise ValueError("ref_labels and ref_ids belong to references: give ref_embeddings too")
        query = _points(target, z, labels, ids, "embeddings")
        return query, query
    if ref_labels is None:
        raise ValueError("ref_embeddings were given without ref_labels")
    if (ids is None) != (ref_ids is None):
        raise ValueError("give ids for queries and references alike, or for neither; one side has none")
    query = _points(target, z, labels, ids, "embeddings")
    refs = _points(target, ref_z, ref_labels, ref_ids, "ref_embeddings")
    if query.z.shape[1] != refs.z.shape[1]:
        raise ValueError(f"queries have {query.z.shape[1]} dimensions, references {refs.z.shape[1]}")
    if ids is None:
        refs = Points(refs.z, refs.code, refs.id + len(query))
    return query, refs


def _points(target: Target, z: Any, labels: Any, ids: Any, name: str) -> Points:
    """Checked embeddings (float32 at least) with codes and ids on their device."""
    z = as_tensor(z)
    if z.ndim != 2 or not len(z):
        raise ValueError(f"expected {name} [n d] with at least one row, got shape {list(z.shape)}")
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    finite = (2 * z).square().sum(1).isfinite()
    if not finite.all():
        raise ValueError(
            f"{name} hold NaN, infinite or (for {z.dtype}) too large values, first in row "
            f"{int((~finite).nonzero()[0])} ({int((~finite).sum())} of {len(z)} rows)"
        )
    identity = torch.arange(len(z)) if ids is None else _ids(ids, name.replace("embeddings", "ids"))
    return Points(z, target.encode(labels, z).to(z.device), identity.to(z.device))


def _ids(ids: Any, name: str) -> Tensor:
    """Identities as int64."""
    try:
        identity = as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        identity = None
    if identity is None or identity.dtype.is_floating_point or identity.dtype.is_complex:
        got = reprlib.repr(ids) if identity is None else identity.dtype
        raise ValueError(
            f"{name} must be integers [n], got {got}; map names to numbers, for example "
            "np.unique(names, return_inverse=True)[1]"
        )
    return identity.long()


def _gap(geometry: Geometry) -> Callable[[Tensor], Tensor] | None:
    """From a similarity, as tiles are ranked by it, to the distance; None where there is none."""
    if geometry.kind == "distance":
        return torch.neg
    if getattr(geometry, "normalize", False):  # cosine: the distance of the unit vectors
        return lambda x: (2 - 2 * x).clamp_min(0).sqrt()
    return None


def _mean_error(target: Any, code_q: Tensor, code_k: Tensor, weight: Tensor) -> Tensor:
    """Label distance [q] between each query's label and the references' weighted mean."""
    pairs = zip(code_q.split(256), target.mean(weight, code_k).split(256), strict=True)
    return torch.cat([target.distance(own, mean).diagonal() for own, mean in pairs])


def _between(target: Target, code: Tensor, rows: Tensor) -> Tensor:
    """Label distances of some references from each other."""
    return target.distance(code[rows], code[rows])


def _order(ranking: str, query: Points, refs: Points, geometry: Geometry, seed: int) -> Order:
    """The similarity that `ranking` means, as a function of a tile; tiles are asked for in order."""
    if ranking == "oracle":
        return lambda rows, y: -y.to(torch.promote_types(y.dtype, torch.float32))
    if ranking == "random":
        noise = torch.Generator().manual_seed(seed)
        return lambda rows, y: torch.rand(y.shape, generator=noise).neg_().to(y.device)
    if ranking != "embedding":
        raise ValueError(f"unknown ranking {ranking!r}{suggest(ranking, ['embedding', 'random', 'oracle'])}")
    dtype = torch.promote_types(query.z.dtype, refs.z.dtype)
    q, k = geometry.prepare(query.z.to(dtype)), geometry.prepare(refs.z.to(dtype))
    if geometry.shift_invariant:
        # One of the points as origin: sets far from 0 keep their precision, equal distances stay equal.
        origin = k[(k - k.mean(0)).square().sum(1).argmin()]
        q, k = q - origin, k - origin
    if geometry.kind == "similarity":
        return lambda rows, y: geometry.block(q[rows], k)
    return lambda rows, y: geometry.block(q[rows], k).neg_()
