"""Trunks that others published: "timm/hf-hub:USER/NAME" and "open_clip/hf-hub:USER/NAME", in these libraries' own layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from . import storage, trunks

PREFIX = "hf-hub:"


def create_hub_trunk(
    library: str,
    hub_id: str,
    *,
    pooling: str | None = None,
    image_size: int | Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The trunk with its weights, and what an embedder's config says of it, as `trunks.create_trunk`.

    The config holds the architecture with its arguments, so that a saved embedder does not need the repository again.

    Raises:
        FileNotFoundError: not to be had from the Hub.
        ValueError: no repository of this library with safetensors, or options that the architecture refuses.
    """
    folder = storage.find_folder(hub_id)
    name = storage.CONFIG_FILE if library == "timm" else storage.OPEN_CLIP_CONFIG_FILE
    for file in (name, storage.TRUNK_FILES[library]):
        if not (folder / file).is_file():
            raise ValueError(f"{hub_id} is no trunk of {library}: expected {file} there (pickled weights are not read)")
    make = _timm if library == "timm" else _open_clip
    model, config = make(folder, json.loads((folder / name).read_text()), pooling, image_size, dict(options or {}))
    return model, {"trunk": f"{library}/{PREFIX}{hub_id}", **config, "weights": f"{PREFIX}{hub_id}"}


def _timm(
    folder: Path, saved: dict[str, Any], pooling: str | None, image_size: Any, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """timm loads the weights itself, and fits positions and the classifier to what is asked for."""
    import timm.data

    source = saved.get("pretrained_cfg", saved)
    trunks.split_name(f"timm/{saved.get('architecture')}")
    trunks.check_timm_options(options)
    arguments = {**(saved.get("model_args") or {}), **options, "num_classes": 0}
    arguments = trunks.without_loading(arguments)
    if pooling is not None:
        arguments["global_pool"] = "" if pooling == "gem" else pooling
    image_size = options.get("img_size") if image_size is None else image_size
    if source.get("fixed_input_size") and not arguments.get("dynamic_img_size"):
        arguments["img_size"] = trunks.two(image_size or arguments.get("img_size") or source["input_size"][1:])
    model = trunks.build_trunk(f"timm/local-dir:{folder}", arguments, pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    mode = "squash" if data["crop_mode"] == "squash" else "shortest"
    preprocess = trunks.preprocess_config(data, image_size or data["input_size"][1:], mode)
    return model, {"trunk": f"timm/{saved['architecture']}", "model_args": arguments, "preprocess": preprocess}


def _open_clip(
    folder: Path, saved: dict[str, Any], pooling: str | None, image_size: Any, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    from open_clip.transform import PreprocessCfg

    trunks.check_open_clip_pooling(pooling)
    arguments = trunks.open_clip_arguments(deepcopy(saved["model_cfg"]), options, image_size)
    model: Any = trunks.build_trunk(f"open_clip/{folder}", arguments)
    storage.load_weights(model, folder / storage.TRUNK_FILES["open_clip"])
    data = {**vars(PreprocessCfg()), **(saved.get("preprocess_cfg") or {})}
    preprocess = trunks.preprocess_config(data, model.visual.image_size, data["resize_mode"])
    return model, {"model_args": arguments, "preprocess": preprocess}
