"""Indices of faiss over vectors: one recipe for all searches."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

Kind = Literal["flat", "ivf", "hnsw"]


def faiss_index(vectors: np.ndarray, kind: Kind, *, similarity: bool = False, beam: int = 128) -> Any:
    """An index that holds `vectors`, made the same way each time.

    Args:
        vectors: float32 [n d], contiguous.
        kind: "flat" searches all; "ivf" the nearest tenth of the cells of a k-means clustering; "hnsw" along a graph,
            which one thread builds, as many would build it differently each time.
        similarity: search by inner product, largest first; else by squared Euclidean distance.
        beam: candidates that a search along a graph keeps.

    Raises:
        ImportError: faiss is not installed.
    """
    import faiss

    n, d = vectors.shape
    metric = faiss.METRIC_INNER_PRODUCT if similarity else faiss.METRIC_L2
    index: Any = faiss.IndexFlat(d, metric)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(d, 32, metric)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, beam
    elif kind == "ivf":
        cells = max(1, min(4 * round(n**0.5), n // 39))
        index = faiss.IndexIVFFlat(index, d, cells, metric)
        index.nprobe = max(1, cells // 10)
        index.train(vectors)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if kind == "hnsw" else threads)
    try:
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    return index
