"""Trunks: timm and open_clip networks made from a name and JSON-able arguments, with their config files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from beyond_binary.registry import suggest
from beyond_binary.storage import TOKENIZER_FILES, load_weights, tensor_names

POOLINGS = ("avg", "max", "avgmax", "catavgmax", "token", "map", "gem")

# options of open_clip.create_model, and the entries of the model config that they set
_OPEN_CLIP_FORCE = {
    "force_quick_gelu": "quick_gelu",
    "force_custom_text": "custom_text",
    "force_image_size": "vision_cfg.image_size",
    "force_patch_dropout": "vision_cfg.patch_dropout",
    "force_context_length": "text_cfg.context_length",
}


def create_trunk(
    trunk: str,
    *,
    pretrained: bool = False,
    weights: str | os.PathLike[str] | None = None,
    pooling: str | None = None,
    image_size: int | Sequence[int] | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A new trunk, and what an embedder's config says of it: trunk, weights, model_args, preprocess.

    `build_trunk` of that `trunk` and `model_args` makes the same network without its weights. The arguments
    and errors are those of `create_embedder`.
    """
    from .hub_trunks import PREFIX, create_hub_trunk

    library, name = split_name(trunk)
    file = _weights_file(weights)
    tag = None if weights is None or file else str(weights)
    pretrained = file is None and (pretrained or tag is not None)
    if name.startswith(PREFIX):
        if tag is not None:
            raise ValueError(f"{trunk} has weights of its own, got the tag weights={tag!r}; leave it out")
        hub_id = name.removeprefix(PREFIX)
        model, config = create_hub_trunk(library, hub_id, pooling=pooling, image_size=image_size, options=options)
    else:
        make = _create_timm if library == "timm" else _create_open_clip
        model, config = make(name, pretrained, tag, pooling, image_size, dict(options or {}))
    if file is not None:
        place = model if library == "timm" else _place(model, file)
        load_weights(place, file, _classifier_names(place) if hasattr(place, "pretrained_cfg") else ())
        config["weights"] = file.name
    return model, config


def split_name(trunk: str) -> tuple[str, str]:
    """`"timm/resnet18"` -> `("timm", "resnet18")`; `"timm/hf-hub:user/name"` -> `("timm", "hf-hub:user/name")`.

    Raises:
        ValueError: unknown library, architecture or timm tag; near names are suggested.
    """
    import open_clip
    import timm

    known = {"timm": timm.list_models(), "open_clip": open_clip.list_models()}
    library, _, name = trunk.partition("/")
    if library not in known:
        hint = _hint(trunk, [f"{kind}/{n}" for kind, names in known.items() for n in names], "timm")
        raise ValueError(f"expected a trunk 'timm/<architecture>' or 'open_clip/<architecture>', got {trunk!r}{hint}")
    if name.startswith("hf-hub:"):
        return library, name
    architecture, _, tag = name.partition(".") if library == "timm" else (name, "", "")
    if architecture not in known[library]:
        hint = _hint(architecture, known[library], library)
        raise ValueError(f"{library} has no architecture {architecture!r}{hint}")
    try:
        timm.models.get_pretrained_cfg(name if tag else architecture)
    except RuntimeError:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(f"timm has no weights {tag!r} for {architecture!r}{suggest(tag, tags)}") from None
    return library, name


def _hint(name: str, known: Sequence[str], library: str) -> str:
    hint = suggest(name, known)
    return hint if len(hint) < 300 else f"; {library}.list_models() lists the names"


def _weights_file(weights: str | os.PathLike[str] | None) -> Path | None:
    """The safetensors file that `weights` names, None if it is a pretrained tag (or nothing)."""
    if weights is None:
        return None
    path = Path(weights)
    looks_like_path = not isinstance(weights, str) or "/" in weights or path.suffix == ".safetensors"
    if not path.is_file() and not looks_like_path:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"weights={str(weights)!r}: no such file")
    if path.suffix != ".safetensors":
        raise ValueError(f"weights={str(weights)!r}: only .safetensors files are read")
    return path


def _create_timm(
    name: str,
    pretrained: bool,
    tag: str | None,
    pooling: str | None,
    image_size: Any,
    options: dict[str, Any],
) -> tuple[nn.Module, dict[str, Any]]:
    """Architectures of a fixed input size are built for `image_size`; timm resamples their positions."""
    import timm
    import timm.data

    if tag is not None:
        _, name = split_name(f"timm/{name.partition('.')[0]}.{tag}")
    check_timm_options(options)
    arguments = {"num_classes": 0, **options}
    if pooling is not None:
        arguments["global_pool"] = "" if pooling == "gem" else pooling  # timm pools nothing, we pool
    image_size = options.get("img_size") if image_size is None else image_size
    source = timm.models.get_pretrained_cfg(name)
    fixed = source is not None and source.fixed_input_size and not options.get("dynamic_img_size")
    if image_size is not None and fixed:
        arguments["img_size"] = two(image_size)
    model = build_trunk(f"timm/{name}", arguments, pretrained)
    if pretrained:
        loaded: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        tag = Path(loaded["file"]).name if loaded.get("file") else loaded["tag"]
    data = timm.data.resolve_model_data_config(model)
    mode = "squash" if data["crop_mode"] == "squash" else "shortest"
    preprocess = preprocess_config(data, image_size or data["input_size"][1:], mode)
    config = {"trunk": f"timm/{name}", "weights": tag, "model_args": without_loading(arguments)}
    return model, config | {"preprocess": preprocess}


def _create_open_clip(
    name: str,
    pretrained: bool,
    tag: str | None,
    pooling: str | None,
    image_size: Any,
    options: dict[str, Any],
) -> tuple[nn.Module, dict[str, Any]]:
    """Weights that were trained with QuickGELU get a network with QuickGELU, whatever `name` says."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    check_open_clip_pooling(pooling)
    tag = _open_clip_tag(name, tag) if pretrained else None
    source = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if source.get("quick_gelu"):
        options.setdefault("quick_gelu", True)
    arguments = open_clip_arguments(deepcopy(open_clip.get_model_config(name)), options, image_size)
    model = build_trunk(f"open_clip/{name}", arguments)
    if tag is not None:
        open_clip.load_checkpoint(model, open_clip.download_pretrained(source))
    data = {**vars(PreprocessCfg()), **source}
    preprocess = preprocess_config(data, model.visual.image_size, data["resize_mode"])  # type: ignore[union-attr]
    config = {"trunk": f"open_clip/{name}", "weights": tag, "model_args": arguments}
    return model, config | {"preprocess": preprocess}


def _open_clip_tag(name: str, tag: str | None) -> str:
    """The pretrained tag to load: `tag`, or the only one there is."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is None and len(tags) == 1:
        return tags[0]
    if tag is None:
        listed = f"choose one with weights=: {', '.join(tags)}" if tags else "leave out pretrained=True"
        raise ValueError(f"open_clip has {len(tags)} sets of weights for {name!r}; {listed}")
    if not open_clip.get_pretrained_cfg(name, tag):
        raise ValueError(f"open_clip has no weights {tag!r} for {name!r}{suggest(tag, tags)}")
    return tag


def check_timm_options(options: dict[str, Any]) -> None:
    """Raise a ValueError for options that have an argument of their own."""
    if reserved := sorted({"num_classes", "global_pool", "pretrained", "checkpoint_path"} & set(options)):
        raise ValueError(f"trunk_options may not hold {', '.join(reserved)}; use pooling, pretrained, weights")


def check_open_clip_pooling(pooling: str | None) -> None:
    """Raise a ValueError if a pooling is asked for."""
    if pooling is not None:
        raise ValueError(f"open_clip trunks pool by themselves, got pooling={pooling!r}; leave it out")


def open_clip_arguments(arguments: dict[str, Any], options: dict[str, Any], image_size: Any) -> dict[str, Any]:
    """open_clip's model config `arguments`, with other entries or `force_*` options merged in, and the image size."""
    if image_size is not None:
        height, width = two(image_size)
        options = {**options, "force_image_size": height if height == width else [height, width]}
    for key, value in options.items():
        section, _, entry = _OPEN_CLIP_FORCE.get(key, key).rpartition(".")
        place = arguments[section] if section else arguments
        place[entry] = {**place.get(entry, {}), **value} if isinstance(value, dict) else value
    if "hf_model_name" in arguments["text_cfg"]:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    return arguments


def preprocess_config(source: dict[str, Any], size: Any, resize_mode: str) -> dict[str, Any]:
    """Evaluation preprocessing, without timm's `crop_pct` on purpose: nothing is cut off a square image."""
    return {
        "size": two(size),
        "mean": [float(m) for m in source["mean"]],
        "std": [float(s) for s in source["std"]],
        "interpolation": source["interpolation"],
        "resize_mode": resize_mode,
    }


def two(size: Any) -> list[int]:
    """`96` or `(64, 96)` -> [h, w]."""
    height, width = (size, size) if isinstance(size, int) else size
    return [int(height), int(width)]


LOADING = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments with which timm reads weights from files, pickles too."""


def without_loading(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trunk, such as somebody else's, without those that load weights."""
    return {key: value for key, value in arguments.items() if key not in LOADING}


def build_trunk(trunk: str, arguments: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """The network: a timm model, or a whole open_clip model; random unless timm downloads its weights.

    Raises:
        ValueError: the library refuses the arguments (for example a pooling that the architecture has not).
    """
    library, name = trunk.split("/", 1)
    try:
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=pretrained, **arguments)
        return _build_open_clip(deepcopy(arguments))
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        given = {k: v for k, v in arguments.items() if k != "num_classes"}
        raise ValueError(f"{library} cannot build {name!r} with {given}: {error}") from error


def _build_open_clip(config: dict[str, Any]) -> nn.Module:
    """The class that the model config asks for, as open_clip chooses it.

    The text tower and the logit scale take no part in embedding images: they get no gradient, so that
    data-parallel training finds no unused parameter (`towers.train_text` gives the text tower its own back).
    """
    import open_clip

    for part, library in (("vision_cfg", "timm"), ("text_cfg", "hf")):
        if f"{library}_model_name" in config[part]:
            config[part][f"{library}_model_pretrained"] = False  # weights are loaded afterwards
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    custom_kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    model: nn.Module = (custom_kind if custom else open_clip.CLIP)(**config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.startswith("visual."))
    return model


def _place(model: nn.Module, file: Path) -> nn.Module:
    """What of an open_clip model a file's names fit best: all of it, its image tower, or the timm network in that."""
    visual: Any = model.visual
    places = [model, visual, *([visual.trunk] if hasattr(visual, "trunk") else [])]
    names = tensor_names(file)
    known = [set(place.state_dict()) for place in places]
    return max(zip(places, known, strict=True), key=lambda pair: len(names & pair[1]) / len(pair[1]))[0]


def _classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of a timm model's classifier, whose weights a trunk does not need."""
    names = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    return (names,) if isinstance(names, str) else tuple(names)


def base_model(config: Mapping[str, Any]) -> str | None:
    """The Hub repository of the pretrained weights that an embedder with this config started from, if one is known."""
    library, name = config["trunk"].split("/", 1)
    if not (weights := config.get("weights")):
        return None
    if weights.startswith("hf-hub:"):
        return str(weights.removeprefix("hf-hub:"))
    if library == "open_clip":
        import open_clip

        found = open_clip.get_pretrained_cfg(name, weights).get("hf_hub") or ""
        return "/".join(found.split("/")[:2]) or None  # a file's name may follow
    import timm

    try:
        known = timm.models.get_pretrained_cfg(f"{name.partition('.')[0]}.{weights}")
    except RuntimeError:  # weights of a file
        return None
    return known.hf_hub_id if known else None


def timm_config(model: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """timm's `config.json` for the trunk of an embedder with this config."""
    source: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept = ("tag", "license", "classifier", "first_conv", "fixed_input_size")
    pool = getattr(getattr(model, "head", None), "global_pool", None) or getattr(model, "global_pool", "")
    preprocess = config["preprocess"]
    built = getattr(getattr(model, "patch_embed", None), "img_size", None) if source.get("fixed_input_size") else None
    return {
        "architecture": source["architecture"],
        "num_classes": 0,
        "num_features": model.num_features,
        "global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", ""),
        "model_args": {**config["model_args"], **({"img_size": list(built)} if built else {})},
        "pretrained_cfg": {
            **{key: source[key] for key in kept if key in source},
            "num_classes": 0,
            "input_size": [3, *preprocess["size"]],
            "mean": preprocess["mean"],
            "std": preprocess["std"],
            "interpolation": preprocess["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": "squash" if preprocess["resize_mode"] == "squash" else "center",
        },
    }


def open_clip_config(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's `open_clip_config.json` for the trunk of an embedder with this config."""
    return {"model_cfg": config["model_args"], "preprocess_cfg": config["preprocess"]}


def tokenizer(config: dict[str, Any], folder: Path | None = None) -> Callable[[list[str]], Tensor]:
    """Texts -> token ids [n length] for the open_clip trunk of an embedder with this config, saved in `folder`.

    A tokenizer of transformers is read from the folder where it lies there, else from the Hub; code that comes with one is
    never run.

    Raises:
        ValueError: a config or a tokenizer that asks for its own code.
    """
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    name, text = config["trunk"].split("/", 1)[1], config["model_args"]["text_cfg"]
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs", {})
    if "trust_remote_code" in options:
        raise ValueError("tokenizer_kwargs may not hold trust_remote_code: code that comes with a model is not run")
    made: Callable[[list[str]], Tensor]
    if source := text.get("hf_tokenizer_name"):
        saved = folder is not None and (folder / TOKENIZER_FILES[0]).is_file()
        mode = text.get("tokenizer_mode")
        made = HFTokenizer(
            str(folder) if saved else source,
            context_length=length,
            tokenizer_mode=mode,
            trust_remote_code=False,
            **options,
        )
    elif name in open_clip.list_models():
        made = open_clip.get_tokenizer(name, context_length=length)
    else:
        made = open_clip.SimpleTokenizer(context_length=length, **options)
    return made


def save_tokenizer(made: Callable[[], Any], config: dict[str, Any], folder: Path) -> None:
    """Write a tokenizer of transformers into the folder; where it is not to be had, a warning says so."""
    if not config["model_args"]["text_cfg"].get("hf_tokenizer_name"):
        return
    try:
        made().save_pretrained(str(folder))
    except (OSError, ImportError) as error:
        warnings.warn(f"the tokenizer is not saved with the embedder, texts will need the Hub: {error}", stacklevel=3)
