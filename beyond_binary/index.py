"""Search with a trained embedder: embeddings with names and columns, searched exactly or by faiss, kept in a folder."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .faiss_index import GPU_MOST, check_faiss, faiss_index
from .geometry import create_geometry
from .preprocess import to_rgb
from .registry import suggest
from .storage import readable, replacing, write_json
from .targets.vectors import as_array, as_tensor
from .topk import largest

if TYPE_CHECKING:
    from .data import DataConfig
    from .data.readers import Rows
    from .embedder import Embedder

Kind = Literal["exact", "flat", "ivf", "hnsw"]
SPACES = ("cosine", "dot", "euclidean")
VECTORS, ITEMS, CONFIG, GRAPH = "embeddings.safetensors", "items.parquet", "index.json", "index.faiss"
FILES = (CONFIG, VECTORS, ITEMS, GRAPH)
THUMBNAIL = "thumbnail"  # the column of small pictures
COLUMN = "columns."  # before the names of columns in the file of the items
FORMAT = 1
CHUNK = 1 << 22  # scores that are compared at once
ROWS = 256  # queries that are


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
            searched) or "hnsw" (a graph). None: "flat" on the CPU where faiss is installed, else "exact".
        device: where the search runs. On a GPU "exact" needs torch alone; "flat" and "ivf" need a faiss that is built for
            it (and find at most 2,048 items a query), and "hnsw" is for the CPU alone.

    Raises:
        ValueError: embeddings that are not [n d] and finite, names or columns of another length, unknown names, a kind
            that does not run on the device.
        ImportError: a kind of faiss without faiss, or on a GPU with a faiss for the CPU.
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
        z = as_tensor(embeddings).detach().float().cpu()
        if z.ndim != 2 or not len(z) or not z.shape[1]:
            raise ValueError(f"expected embeddings [n d] with at least one row, got {list(z.shape)}")
        if not (ok := _measurable(z)).all():
            raise ValueError(
                f"{int((~ok).sum())} of {len(z)} embeddings are not finite, or too large to be compared in float32, the first "
                f"in row {int((~ok).nonzero()[0])}"
            )
        if geometry not in SPACES:
            raise ValueError(
                f"an index takes geometry {', '.join(SPACES)}, got {geometry!r}{suggest(geometry, SPACES)}"
            )
        device = torch.device(device)
        kind = kind or ("flat" if device.type == "cpu" and find_spec("faiss") else "exact")
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind of index {kind!r}{suggest(kind, get_args(Kind))}")
        if kind != "exact":
            check_faiss(kind, device)
        named = range(len(z)) if names is None else names.tolist() if isinstance(names, Tensor) else names
        self.names = [str(name) for name in named]
        self.columns = _as_table(columns)
        for what, rows in (("names", self.names), ("rows of columns", self.columns)):
            if rows is not None and len(rows) != len(z):
                raise ValueError(f"expected {len(z)} {what}, one for each embedding, got {len(rows)}")
        self.geometry, self.kind, self.device = geometry, kind, device
        self.embeddings: Tensor = create_geometry(geometry).prepare(z)

    @staticmethod
    def build(
        embedder: Embedder,
        source: str | DataConfig,
        *,
        split: str | None = None,
        geometry: str | None = None,
        kind: Kind | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        thumbnails: int = 0,
        progress: bool = False,
    ) -> Index:
        """Embed all images of a folder or data set, and index them with their names and plain columns.

        Columns of numbers, texts and dates are kept (classes by their names where they have some), lists and nested ones
        left out; a label of its own that a set has becomes the column "label" if it is one value.

        Args:
            embedder: encodes the images, on the device where it is.
            source: a folder, zip or table, "hub:USER/NAME", "embedded:NAME", a set in the files of its authors; or a
                `DataConfig`, which says more. With its `bad_images` "skip", images that cannot be read are left out.
            split: only the images with this value in the split column.
            geometry: unset: "cosine" for embeddings of length 1, else "euclidean".
            kind: as for `Index`.
            device: where the search runs.
            batch_size: images per forward pass.
            thumbnails: keep a JPEG of at most so many pixels on a side in the column "thumbnail"; 0: none.
            progress: show a progress bar.

        Raises:
            ValueError, OSError: what cannot be read, as for training, or an image that cannot be decoded (named).
        """
        import pyarrow as pa

        from .data import DataConfig
        from .data.splits import all_rows

        config = DataConfig(source=source) if isinstance(source, str) else source
        rows = all_rows(config, split)
        kept: list[int] = []
        pictures: list[bytes] = []

        def images() -> Iterator[Image.Image]:
            from tqdm import tqdm

            for place, name in enumerate(tqdm(rows.names, unit="image", disable=not progress)):
                try:
                    image: Image.Image = rows.images[place]
                    image.load()
                except Exception as error:  # a decoder may raise anything
                    if config.bad_images == "skip":
                        continue
                    way_out = "repair or remove it, or leave such images out with data.bad_images=skip"
                    raise ValueError(f"image {name!r} cannot be read ({error}); {way_out}") from error
                kept.append(place)
                if thumbnails:
                    pictures.append(thumbnail(image, thumbnails))
                yield image

        z = embedder.encode(images(), batch_size=batch_size)
        columns = plain_columns(rows)
        columns = columns.take(pa.array(kept, pa.int64())) if columns.column_names else columns
        if THUMBNAIL in columns.column_names:  # of the set's own
            names = columns.column_names
            columns = columns.rename_columns([f"{COLUMN}{name}" if name == THUMBNAIL else name for name in names])
        if thumbnails:
            columns = columns.append_column(THUMBNAIL, [pictures])
        geometry = geometry or ("cosine" if embedder.normalize else "euclidean")
        names = [rows.names[place] for place in kept]
        return Index(z, names, columns if columns.column_names else None, geometry=geometry, kind=kind, device=device)

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
            k: how many; more than there are items means all. More than 2,048 are searched for on the CPU where faiss
                searches on a GPU, which cannot list more.

        Raises:
            ValueError: queries of another width or not finite, or k below 1.
        """
        q = as_tensor(queries).detach().float().cpu()
        q = q[None] if q.ndim == 1 else q
        if q.ndim != 2 or q.shape[1] != self.dim:
            raise ValueError(f"expected queries [q {self.dim}], as the items are, got {list(q.shape)}")
        if not (ok := _measurable(q)).all():
            raise ValueError(
                f"{int((~ok).sum())} of {len(q)} queries are not finite, or too large to be compared in float32"
            )
        if k < 1:
            raise ValueError(f"expected k of at least 1, got {k}")
        q, k = create_geometry(self.geometry).prepare(q), min(k, len(self))
        if self.kind == "exact":
            return self._exact(q, k)
        index = self._faiss if k <= GPU_MOST else self._built
        score, place = index.search(np.ascontiguousarray(q.numpy()), k)
        places, scores = torch.from_numpy(place), torch.from_numpy(score)
        if self.geometry == "euclidean":
            scores = scores.clamp_min(0).sqrt()
        return Hits(places, scores.masked_fill(places < 0, torch.nan))

    def _exact(self, q: Tensor, k: int) -> Hits:
        """By tiles that stay in memory that is at hand: new memory costs as much as the products."""
        found, far = [], self.geometry == "euclidean"
        for part in q.to(self.device).split(ROWS):
            scores = part.new_empty(len(part), 0)
            places, step = scores.long(), CHUNK // max(1, len(part))
            for first in range(0, len(self), step):
                keys = self._keys[first : first + step]
                x = create_geometry("euclidean").block(part, keys).neg_() if far else part @ keys.T
                near, place = largest(x, min(k, len(keys)))
                scores, places = torch.cat([scores, near], 1), torch.cat([places, place + first], 1)
                scores, order = scores.topk(min(k, scores.shape[1]))
                places = places.gather(1, order)
            found.append((scores.neg() if far else scores, places))
        scores, places = (torch.cat([part[i] for part in found]).cpu() for i in (0, 1))
        return Hits(places, scores)

    @cached_property
    def _keys(self) -> Tensor:
        """The embeddings where the search runs: sent there once."""
        return self.embeddings.to(self.device)

    @cached_property
    def _built(self) -> Any:
        """The index of faiss on the CPU, built on first use; results do not depend on threads."""
        vectors = np.ascontiguousarray(self.embeddings.numpy())
        return faiss_index(vectors, self.kind, similarity=self.geometry != "euclidean")  # type: ignore[arg-type]

    @cached_property
    def _faiss(self) -> Any:
        """The index of faiss where the search runs."""
        if self.device.type == "cpu":
            return self._built
        import faiss

        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), self.device.index or 0, self._built)

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
        """Name and columns of the items at `places` [k]; a column that is itself called "name" is "columns.name"."""
        import pyarrow as pa

        places = [int(p) for p in torch.as_tensor(places).flatten() if p >= 0]
        rows: list[dict[str, Any]] = [{}] * len(places)
        if self.columns is not None:
            rows = self.columns.take(pa.array(places, pa.int64())).to_pylist()
        rows = [{f"{COLUMN}{key}" if key == "name" else key: value for key, value in row.items()} for row in rows]
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
        if folder.exists() and not _is_index(folder):
            raise ValueError(f"{folder} exists and is no index; choose another folder or remove it")
        table = pa.table({"name": pa.array(self.names, pa.string())})
        columns: Any = self.columns
        for name in () if columns is None else columns.column_names:
            table = table.append_column(f"{COLUMN}{name}", columns[name])
        config = {"format_version": FORMAT, "geometry": self.geometry, "kind": self.kind}
        with replacing(folder, FILES) as part:
            save_file({"embeddings": self.embeddings.contiguous()}, part / VECTORS)
            pq.write_table(table, part / ITEMS)
            if self.kind in ("ivf", "hnsw"):
                import faiss

                faiss.write_index(self._built, str(part / GRAPH))
            write_json(part / CONFIG, config | {"items": len(self), "dim": self.dim})

    @staticmethod
    def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Index:
        """Read an index from the folder that `save` wrote.

        Kind "flat", which finds what "exact" finds, becomes "exact" where faiss is missing or does not run on `device`.

        Raises:
            FileNotFoundError: no index there.
            ValueError: an index of a newer format, one whose files do not belong together, or of a kind that does not run
                on the device.
            ImportError: it was built by faiss, which is not installed, or not for a GPU.
        """
        import pyarrow.parquet as pq
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{folder} holds no index ({CONFIG} is missing)")
        config = json.loads((folder / CONFIG).read_text())
        if missing := {"format_version", "geometry", "kind", "items", "dim"} - set(config):
            raise ValueError(f"{folder / CONFIG} lacks {', '.join(sorted(missing))}; build the index again")
        if config["format_version"] > FORMAT:
            raise ValueError(
                f"{folder} has format version {config['format_version']}, this beyond_binary reads up to {FORMAT}"
            )
        with readable(folder / VECTORS):
            z, table = load_file(folder / VECTORS)["embeddings"], pq.read_table(folder / ITEMS)
        if list(z.shape) != [config["items"], config["dim"]] or len(table) != len(z):
            raise ValueError(
                f"{folder}: {len(z)} embeddings and {len(table)} items, expected {config['items']}; build it again"
            )
        names = table["name"].to_pylist()
        columns = {name.removeprefix(COLUMN): table[name] for name in table.column_names if name != "name"}
        kind = config["kind"]
        if kind == "flat":
            try:
                check_faiss(kind, torch.device(device))
            except (ImportError, ValueError):
                kind = "exact"
        index = Index(z, names, columns or None, geometry=config["geometry"], kind=kind, device=device)
        index.embeddings = z  # prepared already: not a bit is changed
        if (folder / GRAPH).is_file() and kind in ("ivf", "hnsw"):
            import faiss

            read = faiss.read_index(str(folder / GRAPH))
            if (read.ntotal, read.d) != tuple(z.shape):
                raise ValueError(
                    f"{folder / GRAPH} holds {read.ntotal} vectors, expected {len(z)}; build the index again"
                )
            index.__dict__["_built"] = read
        return index


def _measurable(z: Tensor) -> Tensor:
    """Rows [n] that are finite, and of which squared distances are."""
    return (2 * z).square().sum(1).isfinite()


def _as_table(columns: Any) -> Any:
    """Columns as a table of pyarrow; None if there are none."""
    import pyarrow as pa

    if columns is None or (isinstance(columns, Mapping) and not columns):
        return None
    if hasattr(columns, "to_dict") and hasattr(columns, "iloc"):
        return pa.Table.from_pandas(columns, preserve_index=False)
    if isinstance(columns, Mapping):
        return pa.table({name: _as_column(column) for name, column in columns.items()})
    return pa.table(columns)


def _as_column(column: Any) -> Any:
    """What pyarrow takes: of tensors arrays, of tables of numbers their rows."""
    column = as_array(column) if isinstance(column, Tensor) else column
    return list(column) if isinstance(column, np.ndarray) and column.ndim > 1 else column


def _is_index(folder: Path) -> bool:
    """Whether a folder holds an index, not just a file that is called as its settings are."""
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"format_version", "geometry"} <= config.keys()


def thumbnail(image: Image.Image, side: int = 160) -> bytes:
    """A JPEG of the image, at most `side` pixels high and wide."""
    small, file = to_rgb(image).copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def plain_columns(rows: Rows) -> Any:
    """The columns of rows that hold one number, text or date each, and "label" for labels of the set's own, as a table."""
    import pyarrow as pa
    from pyarrow import types

    table = rows.columns
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    left_out = [f.name for f in table.schema if any(is_such(f.type) for is_such in (types.is_nested, *binary))]
    table = table.drop_columns(left_out)
    if rows.labels is not None and rows.labels.ndim == 1 and "label" not in rows.columns.column_names:
        table = table.append_column("label", [pa.array(rows.labels.tolist())])
    for name, classes in rows.class_names.items():
        if name in table.column_names and types.is_integer(table[name].type):
            named = [classes[c] if c is not None and 0 <= c < len(classes) else None for c in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, [pa.array(named, pa.string())])
    return table
