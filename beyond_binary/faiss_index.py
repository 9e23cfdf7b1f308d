"""Indices of faiss over vectors: one recipe for all searches."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch

Kind = Literal["flat", "ivf", "hnsw"]
GPU_MOST = 2048  # neighbours or cells that a search by faiss on a GPU can list


def faiss_index(vectors: np.ndarray, kind: Kind, *, similarity: bool = False, beam: int = 128) -> Any:
    """An index that holds `vectors`, made the same way each time.

    Args:
        vectors: float32 [n d], contiguous.
        kind: "flat" searches all; "ivf" the nearest tenth of the cells of a k-means clustering, 2,048 at most; "hnsw"
            along a graph, which one thread builds, as many would build it differently each time.
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
        index.nprobe = max(1, min(cells // 10, GPU_MOST))
        index.train(vectors)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if kind == "hnsw" else threads)
    try:
        index.add(vectors)
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def check_faiss(kind: str, device: torch.device) -> None:
    """Raise what says why faiss cannot search with an index of this kind on this device, and what can be done.

    Raises:
        ImportError: faiss is not installed, or its build is for the CPU and `device` is not.
        ValueError: faiss has no such index for this device, or does not see the device.
    """
    if find_spec("faiss") is None:
        raise ImportError(f"kind {kind!r} needs faiss: pip install beyond_binary[faiss]; or take 'exact'")
    if device.type == "cpu":
        return
    if device.type != "cuda" or kind == "hnsw":
        raise ValueError(
            f"faiss has no index of kind {kind!r} for device {str(device)!r}; take 'exact', or device 'cpu'"
        )
    import faiss

    if not hasattr(faiss, "index_cpu_to_gpu"):
        raise ImportError(
            f"kind {kind!r} on device {str(device)!r} needs a faiss that is built for GPUs (such as faiss-gpu-cu12), and the "
            "one installed is for the CPU; take 'exact', or device 'cpu'"
        )
    if (device.index or 0) >= (there := faiss.get_num_gpus()):
        raise ValueError(f"faiss sees {there} GPUs, and device {str(device)!r} is none of them; take device 'cpu'")
