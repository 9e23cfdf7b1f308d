"""Embedders for places without this package: ONNX files and programs of `torch.export`, for batches of any size."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import towers

if TYPE_CHECKING:
    from .embedder import Embedder

PIXELS, EMBEDDINGS = "pixels", "embeddings"
FACTS = "beyond_binary.json"  # the file in a program's archive that has the facts
LARGEST = 1.5e9  # bytes of weights in one ONNX file; its format ends at 2 GB


def facts(embedder: Embedder) -> dict[str, Any]:
    """What a user of the file must know: how pixels are made, and what comes out (JSON-able)."""
    return {
        "input": PIXELS,
        "output": EMBEDDINGS,
        "trunk": embedder.config["trunk"],
        "dim": embedder.dim,
        "normalize": embedder.normalize,
        "preprocess": embedder.preprocess,
    }


def program(embedder: Embedder) -> torch.export.ExportedProgram:
    """The embedder in evaluation mode as a graph on the CPU: float32 pixels [n 3 h w] -> embeddings [n dim], any n.

    Head and normalisation are in it, adapters of LoRA are added to the weights, and of an open_clip trunk the text
    tower is left out. The embedder itself stays as it is.
    """
    plain = copy.copy(embedder)
    plain.__dict__ = {name: value for name, value in embedder.__dict__.items() if name != "tokenizer"}
    plain._modules = {**embedder._modules, "trunk": towers.merged(embedder.trunk)}
    plain = copy.deepcopy(plain).cpu().float().eval()
    if plain.config["trunk"].startswith("open_clip/"):
        for name, parameter in plain.trunk.named_parameters():
            if not name.startswith("visual."):
                parameter.data = parameter.data.new_empty(0)
    pixels = torch.zeros(2, 3, *plain.preprocess["size"])
    with torch.no_grad():
        return torch.export.export(plain, (pixels,), dynamic_shapes=({0: torch.export.Dim("n")},))


def write_program(embedder: Embedder, path: str | os.PathLike[str]) -> None:
    """Write `program` with `torch.export.save`, and what `facts` says as the extra file `beyond_binary.json`.

    `torch.export.load` reads it where torch is installed. That may unpickle: load files of your own making only.

    Raises:
        ValueError: `path` does not end in .pt2.
    """
    path = _named(path, ".pt2")
    made = program(embedder)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        torch.export.save(made, part, extra_files={FACTS: json.dumps(facts(embedder))})
        part.replace(path)


def write_onnx(embedder: Embedder, path: str | os.PathLike[str]) -> None:
    """Write `program` as ONNX, input `pixels` and output `embeddings`; the facts are its metadata, each as JSON.

    Weights beyond 1.5 GB lie in a second file beside it, `path` with .data behind, to which it refers by name.

    Raises:
        ValueError: `path` does not end in .onnx.
        ImportError: onnx or onnxscript is not installed.
    """
    path = _named(path, ".onnx")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("writing ONNX needs onnx and onnxscript; pip install 'beyond_binary[onnx]'") from error
    made = program(embedder)
    graph = torch.onnx.export(made, dynamo=True, verbose=False, input_names=[PIXELS], output_names=[EMBEDDINGS])
    assert graph is not None
    _name_batch(graph.model.graph)
    graph.model.metadata_props.update({name: json.dumps(value) for name, value in facts(embedder).items()})
    size = sum(tensor.numel() * tensor.element_size() for tensor in made.state_dict.values())
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        graph.save(Path(folder) / path.name, external_data=size > LARGEST)
        for part in Path(folder).iterdir():
            part.replace(path.parent / part.name)


def _name_batch(graph: Any) -> None:
    """Call the free dimension of input and output `n`, whatever the exporter called it."""
    import onnx_ir as ir

    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(["n", *value.shape.dims[1:]])


def _named(path: str | os.PathLike[str], suffix: str) -> Path:
    path = Path(path).absolute()
    if path.suffix != suffix:
        raise ValueError(f"expected a file name that ends in {suffix}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
