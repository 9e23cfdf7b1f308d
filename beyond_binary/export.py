"""For places without this package: embedders as ONNX files and programs of `torch.export`, embeddings as tables."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import towers
from .targets.vectors import as_array, as_tensor

if TYPE_CHECKING:
    from .embedder import Embedder
    from .index import Index

Tower = Literal["image", "text"]
INPUTS: dict[Tower, str] = {"image": "pixels", "text": "tokens"}
OUTPUT = "embeddings"
FACTS = "beyond_binary.json"  # the file in a program's archive that has the facts
NOT_OF_NPZ = ("geometry", "k", "file", "allow_pickle")  # facts, and the names that numpy.savez takes itself
LARGEST = 1.5e9  # bytes of weights in one ONNX file; its format ends at 2 GB


class _Texts(nn.Module):
    """The text tower: tokens [n length] -> embeddings [n dim]."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedder.embed_tokens(tokens)


def facts(embedder: Embedder, tower: Tower = "image") -> dict[str, Any]:
    """What a user of the file must know: how pixels (or tokens) are made, and what comes out (JSON-able)."""
    text = {"context_length": embedder.trunk.context_length} if tower == "text" else None
    return {
        "input": INPUTS[tower],
        "output": OUTPUT,
        "trunk": embedder.config["trunk"],
        "dim": embedder.dim,
        "normalize": embedder.normalize,
        **(text or {"preprocess": embedder.preprocess}),
    }


def program(embedder: Embedder, tower: Tower = "image") -> torch.export.ExportedProgram:
    """One tower of the embedder in evaluation mode as a graph on the CPU, for any n.

    `image`: float32 pixels [n 3 h w] -> embeddings [n dim]. Head and normalisation are in it, adapters of LoRA are added to the
    weights, and of an open_clip trunk the text tower is left out. `text`: int64 tokens [n length], as
    `embedder.tokenizer(texts)` gives them, -> embeddings [n dim], without the image tower. The embedder itself stays as it is.

    Raises:
        ValueError: another tower, or `text` of an embedder that embeds no texts.
    """
    if tower not in INPUTS:
        raise ValueError(f"tower must be 'image' or 'text', got {tower!r}")
    if tower == "text":
        embedder.check_text()
    plain = copy.copy(embedder)
    plain.__dict__ = {name: value for name, value in embedder.__dict__.items() if name != "tokenizer"}
    plain._modules = {**embedder._modules, "trunk": towers.merged(embedder.trunk)}
    plain = copy.deepcopy(plain).cpu().float().eval()
    if plain.config["trunk"].startswith("open_clip/"):
        for name, parameter in plain.trunk.named_parameters():
            if name.startswith("visual.") == (tower == "text"):
                parameter.data = parameter.data.new_empty(0)
    if tower == "text":
        module: nn.Module = _Texts(plain)
        example = plain.tokenizer(["", ""])
    else:
        module, example = plain, torch.zeros(2, 3, *plain.preprocess["size"])
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))


def write_program(embedder: Embedder, path: str | os.PathLike[str], tower: Tower = "image") -> None:
    """Write `program` with `torch.export.save`, and what `facts` says as the extra file `beyond_binary.json`.

    `torch.export.load` reads it where torch is installed. That may unpickle: load files of your own making only.

    Raises:
        ValueError: `path` does not end in .pt2, or as `program`.
    """
    path = _named(path, ".pt2")
    made = program(embedder, tower)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        torch.export.save(made, part, extra_files={FACTS: json.dumps(facts(embedder, tower))})
        part.replace(path)


def write_onnx(embedder: Embedder, path: str | os.PathLike[str], tower: Tower = "image") -> None:
    """Write `program` as ONNX, input `pixels` (`tokens`) and output `embeddings`; the facts are its metadata, each as JSON.

    Weights beyond 1.5 GB lie in a second file beside it, `path` with .data behind, to which it refers by name; one that is there
    from an earlier export and not needed now is removed.

    Raises:
        ValueError: `path` does not end in .onnx, or as `program`.
        ImportError: onnx or onnxscript is not installed.
    """
    path = _named(path, ".onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx and onnxscript; pip install 'beyond_binary[onnx]'") from error
    made = program(embedder, tower)
    graph = torch.onnx.export(made, dynamo=True, verbose=False, input_names=[INPUTS[tower]], output_names=[OUTPUT])
    assert graph is not None
    _name_batch(graph.model.graph)
    graph.model.metadata_props.update({name: json.dumps(value) for name, value in facts(embedder, tower).items()})
    size = sum(tensor.numel() * tensor.element_size() for tensor in made.state_dict.values())
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        graph.save(Path(folder) / path.name, external_data=size > LARGEST)
        data = path.with_name(f"{path.name}.data")
        if beside := (Path(folder) / data.name).exists():
            (Path(folder) / data.name).replace(data)  # first, so that no graph lies there without its weights
        (Path(folder) / path.name).replace(path)
        if not beside:
            data.unlink(missing_ok=True)  # of a larger embedder under this name


def _name_batch(graph: Any) -> None:
    """Call the free dimension of input and output `n`, whatever the exporter called it."""
    import onnx_ir as ir

    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(["n", *value.shape.dims[1:]])


def write_items(
    path: str | os.PathLike[str],
    embeddings: Any,
    *,
    labels: Any = None,
    ids: Any = None,
    names: Sequence[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    k: int = 10,
    geometry: str = "cosine",
) -> None:
    """Write embeddings with labels and nearest neighbours as a table, one row an item: Parquet or .npz.

    Columns of a Parquet file (arrays of an .npz file [n ...]): `id` int64, `name` text, `embedding` d numbers float32,
    `label` what was given, `neighbour_ids` k ids int64 of the nearest other items, best first, `neighbour_scores` k
    numbers float32 (similarities of `cosine` and `dot`, else distances), and `columns` under their names. Facts of the
    file are `geometry` and `k`: metadata of the Parquet schema, arrays of the .npz file.

    Args:
        path: ends in .parquet or .npz.
        embeddings: [n d].
        labels: [n ...], left out if None.
        ids: integers [n], all different; default 0 to n - 1.
        names: [n], for example the images' files; default the ids.
        columns: further facts of each item.
        k: how many neighbours; fewer if there are fewer items, 0: none.
        geometry: how embeddings are compared: cosine, dot or euclidean.

    Raises:
        ValueError: another file name, lengths that do not fit, ids that repeat, embeddings that are not [n d] and finite,
            or a column named like one of these (in an .npz file also geometry, k, file or allow_pickle).
    """
    path = _named(path, ".parquet", ".npz")
    from .index import Index

    if k < 0:
        raise ValueError(f"expected k of at least 0, got {k}")
    z = as_tensor(embeddings).detach().float().cpu()
    index = Index(z, geometry=geometry)
    ids = np.arange(len(z)) if ids is None else as_array(ids)
    if ids.shape != (len(z),) or ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(ids):
        raise ValueError(f"expected {len(z)} different integer ids, got {ids.dtype} {list(ids.shape)}")
    if (most := int(ids.max())) > np.iinfo(np.int64).max:
        raise ValueError(f"expected ids that int64 holds, got {most}; number the items anew")
    places, scores = _others(index, min(k, len(z) - 1))
    table: dict[str, Any] = {
        "id": ids.astype(np.int64),
        "name": np.asarray([str(name) for name in (ids if names is None else as_array(names))]),
        "embedding": z.numpy(),
        "neighbour_ids": ids.astype(np.int64)[places],
        "neighbour_scores": scores,
    }
    table |= {} if labels is None else {"label": _column("labels", labels)}
    taken = {*table, *(NOT_OF_NPZ if path.suffix == ".npz" else ())}
    if clash := sorted(taken & (columns or {}).keys()):
        raise ValueError(f"columns {', '.join(clash)}: names that {path.suffix} needs itself; give yours other names")
    table |= {name: _column(name, column) for name, column in (columns or {}).items()}
    for name, column in table.items():
        if len(column) != len(z):
            raise ValueError(f"expected {len(z)} values of {name!r}, one for each embedding, got {len(column)}")
    about = {"geometry": geometry, "k": str(places.shape[1])}
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        (_write_parquet if path.suffix == ".parquet" else _write_npz)(part, table, about)
        part.replace(path)


def _column(name: str, values: Any) -> np.ndarray[Any, Any]:
    """One value of each item [n ...], objects where they are lists of different lengths."""
    try:
        found = as_array(values)
    except ValueError:
        found = np.empty(len(values), object)
        for place, value in enumerate(values):
            found[place] = value
    if found.ndim == 0:
        raise ValueError(f"expected one value of {name!r} for each embedding, got {values!r}")
    return found


def _others(index: Index, k: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Places and scores [n k] of each item's nearest others; an item is left out by its place, not as the first."""
    if k < 1:
        return np.zeros((len(index), 0), np.int64), np.zeros((len(index), 0), np.float32)
    hits = index.search(index.embeddings, k + 1)
    own = hits.places == torch.arange(len(index))[:, None]
    own[~own.any(1), -1] = True  # among many equal items it may not have found itself
    places, scores = (x[~own].reshape(len(index), k).numpy() for x in (hits.places, hits.scores))
    return places, scores


def _write_parquet(path: Path, table: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, column in table.items():
        if column.ndim == 1:
            arrays[name] = pa.array(column)
        elif column.ndim == 2 and column.dtype.kind in "iuf" and column.shape[1]:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), column.shape[1])
        else:
            plain = pa.list_(pa.from_numpy_dtype(column.dtype)) if column.size == 0 else None
            arrays[name] = pa.array(column.tolist(), plain)
    pq.write_table(pa.table(arrays).replace_schema_metadata({"beyond_binary": json.dumps(dict(facts))}), path)


def _write_npz(path: Path, table: Mapping[str, np.ndarray[Any, Any]], facts: Mapping[str, str]) -> None:
    if odd := [name for name, column in table.items() if column.dtype.kind == "O"]:
        raise ValueError(f"{', '.join(odd)}: an .npz file holds numbers and texts of one shape; write .parquet")
    arrays: dict[str, Any] = {**table, **facts}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _named(path: str | os.PathLike[str], *suffixes: str) -> Path:
    path = Path(path).absolute()
    if path.suffix not in suffixes:
        raise ValueError(f"expected a file name that ends in {' or '.join(suffixes)}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
