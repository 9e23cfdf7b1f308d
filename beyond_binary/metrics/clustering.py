"""Clustering: do k-means clusters of the embeddings fall together with the classes?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from . import METRICS

RESTARTS = 5
"""Runs of k-means from other starting points, of which the tightest counts."""


@dataclass(frozen=True)
class Clustering:
    """Classes [n] and clusters [n] of the items, both integers."""

    classes: np.ndarray
    clusters: np.ndarray

    @cached_property
    def pairs(self) -> tuple[int, int, int]:
        """Pairs of items in one class and one cluster, in one class, in one cluster."""
        from sklearn.metrics.cluster import contingency_matrix

        table = contingency_matrix(self.classes, self.clusters, sparse=True, dtype=np.int64)
        counts = (table.data, np.asarray(table.sum(1)).ravel(), np.asarray(table.sum(0)).ravel())
        both, same_class, same_cluster = (int((n * (n - 1) // 2).sum()) for n in counts)
        return both, same_class, same_cluster

    @property
    def trivial(self) -> bool:
        """Whether there is a single class, or none has two items: then nothing can be told."""
        return len(np.unique(self.classes)) < 2 or not self.pairs[1]


def kmeans(z: Tensor, k: int, seed: int = 0) -> np.ndarray:
    """Cluster of each of `z` [n d], int64: k-means with `RESTARTS` starts over all of them, by faiss or else scikit-learn."""
    z = z.detach().cpu().to(torch.promote_types(z.dtype, torch.float32))
    z = z - z.mean(0)  # whose digits single precision would lose
    points = np.ascontiguousarray((z / z.abs().max().clamp_min(torch.finfo(z.dtype).tiny)).float().numpy())
    if find_spec("faiss"):
        import faiss

        found = faiss.Kmeans(
            points.shape[1],
            k,
            niter=25,
            nredo=RESTARTS,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),
        )
        found.train(points)
        return found.index.search(points, 1)[1][:, 0]
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=RESTARTS, random_state=seed).fit_predict(points).astype(np.int64)


@METRICS.register(reads="same", over="clusters")
def nmi(clustering: Clustering) -> float:
    """Normalised mutual information 2 I / (H_classes + H_clusters). Random clusters of small classes score high: see ami.

    Of as many k-means clusters as there are classes (Song et al., CVPR 2016).
    """
    from sklearn.metrics import normalized_mutual_info_score

    return (
        math.nan if clustering.trivial else float(normalized_mutual_info_score(clustering.classes, clustering.clusters))
    )


@METRICS.register(reads="same", over="clusters")
def ami(clustering: Clustering) -> float:
    """Mutual information less what chance gives, 0 for random clusters (Vinh, Epps and Bailey, JMLR 2010)."""
    from sklearn.metrics import adjusted_mutual_info_score

    return (
        math.nan if clustering.trivial else float(adjusted_mutual_info_score(clustering.classes, clustering.clusters))
    )


@METRICS.register(reads="same", over="clusters")
def pairwise_f1(clustering: Clustering) -> float:
    """2 (pairs in one class and one cluster) / (pairs in one class + pairs in one cluster), as in Song et al., CVPR 2016."""
    both, same_class, same_cluster = clustering.pairs
    return math.nan if clustering.trivial else 2 * both / (same_class + same_cluster)
