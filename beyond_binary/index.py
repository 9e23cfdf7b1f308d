"""Search with a trained embedder: embeddings with names and columns, searched exactly or by faiss, kept in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .faiss_index import faiss_index
from .geometry import create_geometry
from .registry import suggest
from .storage import replacing, write_json

Kind = Literal["exact", "flat", "ivf", "hnsw"]
SPACES = ("cosine", "dot", "euclidean")
VECTORS, ITEMS, CONFIG, GRAPH = "embeddings.safetensors", "items.parquet", "index.json", "index.faiss"
FILES = (VECTORS, ITEMS, CONFIG, GRAPH)
FORMAT = 1
CHUNK = 1 << 25  # scores that are compared at once


@dataclass(frozen=True)
class Hits:
    """What a search found, best first.

    Attributes:
        places: positions of the items in the index, int64 [q k]; -1 where there is no further one.
        scores: similarities (cosine, dot) or distances (euclidean), float32 [q k]; NaN where there is no item.
    """

    places: Tensor
    scores: Tensor


class Index:
    """Embeddings of items, with what is known of the items, and a search among them.

    Args:
        embeddings: [n d], kept as float32.
        names: [n] name of each item, for example its file.
        columns: further facts of each item: a mapping of columns, or a pyarrow table, of n rows.
        geometry: "cosine", "dot" or "euclidean".
        kind: "exact" (torch, on `device`); or by faiss (extra `faiss`): "flat" (exact), "ivf" (cells, of which a tenth is
            searched) or "hnsw" (a graph). None: "flat" where faiss is installed, else "exact".
        device: where the search runs; a GPU needs a faiss that supports it, or kind "exact".

    Raises:
        ValueError: embeddings that are not [n d] and finite, names or columns of another length, unknown names.
        ImportError: a kind of faiss without faiss.
    """

    def __init__(
        self,
        embeddings: Any,
        names: Sequence[str] | None = None,
        columns: Any = None,
        *,
        geometry: str = "cosine",
        kind: Kind | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        import pyarrow as pa

        z = torch.as_tensor(embeddings).detach().float().cpu()
        if z.ndim != 2 or not len(z) or not z.shape[1]:
            raise ValueError(f"expected embeddings [n d] with at least one row, got {list(z.shape)}")
        if not (ok := z.isfinite().all(1)).all():
            raise ValueError(
                f"{int((~ok).sum())} of {len(z)} embeddings are not finite, the first in row {int((~ok).nonzero()[0])}"
            )
        if geometry not in SPACES:
            raise ValueError(
                f"an index takes geometry {', '.join(SPACES)}, got {geometry!r}{suggest(geometry, SPACES)}"
            )
        kind = kind or ("flat" if find_spec("faiss") else "exact")
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind of index {kind!r}{suggest(kind, get_args(Kind))}")
        self.names = [str(i) for i in range(len(z))] if names is None else list(names)
        self.columns = (
            pa.table(dict(columns) if isinstance(columns, dict) else columns) if columns is not None else None
        )
        for what, rows in (("names", self.names), ("columns", self.columns)):
            if rows is not None and len(rows) != len(z):
                raise ValueError(f"expected {len(z)} {what}, one for each embedding, got {len(rows)}")
        self.geometry, self.kind, self.device = geometry, kind, torch.device(device)
        self.embeddings: Tensor = create_geometry(geometry).prepare(z)

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.embeddings.shape[1]

    def search(self, queries: Any, k: int = 10) -> Hits:
        """The `k` items nearest to each query.

        Args:
            queries: embeddings [q d], or one [d]: from `embedder.encode(images)` or `embedder.encode_text(texts)`.
            k: how many; more than there are items means all.

        Raises:
            ValueError: queries of another width or not finite, or k below 1.
        """
        q = torch.as_tensor(queries).detach().float().cpu()
        q = q[None] if q.ndim == 1 else q
        if q.ndim != 2 or q.shape[1] != self.dim:
            raise ValueError(f"expected queries [q {self.dim}], as the items are, got {list(q.shape)}")
        if not q.isfinite().all():
            raise ValueError(f"{int((~q.isfinite().all(1)).sum())} of {len(q)} queries are not finite")
        if k < 1:
            raise ValueError(f"expected k of at least 1, got {k}")
        q, k = create_geometry(self.geometry).prepare(q), min(k, len(self))
        if self.kind == "exact":
            return self._exact(q, k)
        score, place = self._faiss.search(np.ascontiguousarray(q.numpy()), k)
        places, scores = torch.from_numpy(place), torch.from_numpy(score)
        if self.geometry == "euclidean":
            scores = scores.clamp_min(0).sqrt()
        return Hits(places, scores.masked_fill(places < 0, torch.nan))

    def _exact(self, q: Tensor, k: int) -> Hits:
        keys, found = self.embeddings.to(self.device), []
        for part in q.to(self.device).split(max(1, CHUNK // len(keys))):
            if self.geometry == "euclidean":
                found.append(create_geometry("euclidean").block(part, keys).topk(k, largest=False))
            else:
                found.append((part @ keys.T).topk(k))
        scores, places = (torch.cat([part[i] for part in found]).cpu() for i in (0, 1))
        return Hits(places, scores)

    @cached_property
    def _faiss(self) -> Any:
        """The index of faiss, built on first use; results do not depend on threads."""
        index = self._built()
        if self.device.type == "cuda":
            import faiss

            index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), self.device.index or 0, index)
        return index

    def _built(self) -> Any:
        vectors = np.ascontiguousarray(self.embeddings.numpy())
        try:
            return faiss_index(vectors, self.kind, similarity=self.geometry != "euclidean")  # type: ignore[arg-type]
        except ImportError as error:
            way_out = "pip install beyond_binary[faiss]; or take 'exact'"
            raise ImportError(f"kind {self.kind!r} needs faiss: {way_out}") from error

    def recall(self, k: int = 10, sample: int = 256) -> float:
        """Share of the true `k` nearest items that `search` finds, for a sample of the items, evenly spaced, as queries.

        An item found counts if it is not farther than the true k-th one, so that ties are no errors.
        """
        rows = torch.linspace(0, len(self) - 1, min(sample, len(self))).long()
        k = min(k, len(self))
        q = self.embeddings[rows]
        true, found = self._exact(q, k).scores[:, -1:], self.search(q, k).scores
        slack = 1e-5 * true.abs() + 1e-6
        near = found <= true + slack if self.geometry == "euclidean" else found >= true - slack
        return float(near.double().mean())

    def items(self, places: Any) -> list[dict[str, Any]]:
        """Name and columns of the items at `places` [k]."""
        places = [int(p) for p in torch.as_tensor(places).flatten() if p >= 0]
        rows = [{}] * len(places) if self.columns is None else self.columns.take(places).to_pylist()
        return [{"name": self.names[place], **row} for place, row in zip(places, rows, strict=True)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index to a folder: embeddings, names, columns, and the graph or cells of faiss. Whole or not at all.

        Raises:
            ValueError: the folder exists and holds something other than an index.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        from safetensors.torch import save_file

        folder = Path(folder).absolute()
        if folder.exists() and not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} exists and is no index; choose another folder or remove it")
        table = pa.table({"name": pa.array(self.names, pa.string())})
        columns: Any = self.columns
        for name in () if columns is None else columns.column_names:
            table = table.append_column(f"columns.{name}", columns[name])
        config = {"format_version": FORMAT, "geometry": self.geometry, "kind": self.kind}
        with replacing(folder, FILES) as part:
            save_file({"embeddings": self.embeddings.contiguous()}, part / VECTORS)
            pq.write_table(table, part / ITEMS)
            if self.kind in ("ivf", "hnsw"):
                import faiss

                faiss.write_index(self._built() if self.device.type == "cuda" else self._faiss, str(part / GRAPH))
            write_json(part / CONFIG, config | {"items": len(self), "dim": self.dim})

    @staticmethod
    def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Index:
        """Read an index from the folder that `save` wrote.

        Raises:
            FileNotFoundError: no index there.
            ValueError: an index of a newer format, or one whose files do not belong together.
            ImportError: it was built by faiss, which is not installed.
        """
        import pyarrow.parquet as pq
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder} holds no index ({CONFIG} is missing)")
        config = json.loads((folder / CONFIG).read_text())
        if config["format_version"] > FORMAT:
            raise ValueError(
                f"{folder} has format version {config['format_version']}, this beyond_binary reads up to {FORMAT}"
            )
        z, table = load_file(folder / VECTORS)["embeddings"], pq.read_table(folder / ITEMS)
        if list(z.shape) != [config["items"], config["dim"]] or len(table) != len(z):
            raise ValueError(
                f"{folder}: {len(z)} embeddings and {len(table)} items, expected {config['items']}; build it again"
            )
        names = table["name"].to_pylist()
        columns = {name.removeprefix("columns."): table[name] for name in table.column_names if name != "name"}
        index = Index(z, names, columns or None, geometry=config["geometry"], kind=config["kind"], device=device)
        index.embeddings = z  # prepared already: not a bit is changed
        if (folder / GRAPH).is_file() and config["kind"] in ("ivf", "hnsw"):
            import faiss

            read = faiss.read_index(str(folder / GRAPH))
            if (read.ntotal, read.d) != tuple(z.shape):
                raise ValueError(
                    f"{folder / GRAPH} holds {read.ntotal} vectors, expected {len(z)}; build the index again"
                )
            if index.device.type == "cpu":
                index.__dict__["_faiss"] = read
        return index
