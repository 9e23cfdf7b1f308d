"""What of a trunk is trained: its image and text tower, their layers, locks, checkpointing, low-rank adapters."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Tower = Literal["image", "text"]

PREVIOUS = (99999,)  # how timm's group matchers say: with the group before
IMAGE = {
    "stem": r"^(?:conv\d|bn\d|class_embedding|positional_embedding|ln_pre)",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^layer(\d)\.(\d+)", None), (r"^ln_post", PREVIOUS)],
}
TEXT = {
    "stem": r"^(?:token_embedding|positional_embedding|cls_emb|transformer\.\w*embed)",
    "blocks": [
        (r"^transformer\.(?:resblocks|(?:encoder\.)?(?:layers?|block))\.(\d+)", None),
        (r"^(?:ln_final|transformer\.(?:pooler|final))", PREVIOUS),
    ],
}
"""Layers of open_clip's own towers from the input to the output; what is not named (a projection) comes last."""

LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "targets": None}


def layers(trunk: nn.Module, library: str) -> dict[str, tuple[Tower, int]]:
    """The tower of each parameter and the number of its layer there, from 0 at the input.

    Layers are those of timm's group matcher for timm networks, also inside open_clip, where the projection is one more;
    for open_clip's own transformers the stem, each block, and the projection. Parameters that belong to neither tower
    (a temperature, a caption decoder) are left out.
    """
    if library == "timm":
        return {name: ("image", layer) for name, layer in _timm_layers(trunk).items()}
    visual: Any = trunk.visual
    found: dict[str, tuple[Tower, int]]
    if hasattr(visual, "trunk"):
        inner = _timm_layers(visual.trunk)
        top = max(inner.values()) + 1
        found = {f"visual.trunk.{name}": ("image", layer) for name, layer in inner.items()}
        found |= {f"visual.head.{name}": ("image", top) for name, _ in visual.head.named_parameters()}
    else:
        names = [name for name, _ in visual.named_parameters()]
        found = {f"visual.{name}": ("image", layer) for name, layer in _matched(names, IMAGE).items()}
    names = [name for name, _ in trunk.named_parameters() if name not in found]
    if hasattr(trunk, "text"):
        prefix, names = "text.", [name.removeprefix("text.") for name in names if name.startswith("text.")]
    else:
        prefix, names = "", [name for name in names if not re.match(r"logit_|text_decoder|visual\.", name)]
    return found | {f"{prefix}{name}": ("text", layer) for name, layer in _matched(names, TEXT).items()}


def _timm_layers(model: Any) -> dict[str, int]:
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"timm does not say what the layers of {type(model).__name__} are; leave its layers alike")
    return _matched([name for name, _ in model.named_parameters()], model.group_matcher())


def _matched(names: list[str], matcher: Any) -> dict[str, int]:
    from timm.models._manipulate import group_with_matcher

    found: dict[str, int] = group_with_matcher(((name, name) for name in names), matcher, reverse=True)
    return found


def param_groups(
    embedder: nn.Module,
    library: str,
    lr: float,
    *,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters of an embedder as optimizer groups; none is empty.

    They are called trunk, text (the text tower), head, and each of them with _no_decay; with a layer decay
    trunk_layer0, trunk_layer0_no_decay and so on.

    Args:
        embedder: with the trunk as its child `trunk`.
        library: "timm" or "open_clip", the trunk's.
        lr: learning rate of the last layer of trunk and text tower.
        head_lr: learning rate of the head, to which learned pooling belongs; default: `lr`.
        weight_decay: of matrices; one-dimensional parameters (biases, norms) and scalars are not decayed.
        layer_decay: factor on the learning rate from each layer to the one below (see `layers`).
    """
    groups: dict[str, dict[str, Any]] = {}
    places = layers(embedder.get_submodule("trunk"), library) if layer_decay != 1 else {}
    tops = {tower: max(n for t, n in places.values() if t == tower) for tower in {t for t, _ in places.values()}}
    for parameter_name, parameter in embedder.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = parameter_name.removeprefix("trunk.")
        of_text = library == "open_clip" and not inner.startswith("visual.")
        part = "head" if inner == parameter_name else "text" if of_text else "trunk"
        rate = head_lr if part == "head" and head_lr is not None else lr
        name = part
        if inner in places and part != "head":
            tower, layer = places[inner]
            name, rate = f"{part}_layer{layer}", lr * layer_decay ** (tops[tower] - layer)
        decayed = parameter.ndim > 1
        name = name if decayed else f"{name}_no_decay"
        group = {"name": name, "params": [], "lr": rate, "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault(name, group)["params"].append(parameter)
    return list(groups.values())


def lock(trunk: nn.Module, library: str, unlocked: int) -> None:
    """Let only the last `unlocked` layers of the image tower be trained; raises ValueError if it has fewer."""
    own = {name: layer for name, (tower, layer) in layers(trunk, library).items() if tower == "image"}
    count = max(own.values()) + 1
    if not 0 <= unlocked <= count:
        raise ValueError(
            f"expected embedder.unlocked from 0 (the image tower is locked) to {count} (the number of its layers), "
            f"got {unlocked}"
        )
    for name, parameter in trunk.named_parameters():
        if own.get(name, count) < count - unlocked:
            parameter.requires_grad_(False)


def train_text(trunk: nn.Module) -> None:
    """Let the text tower of an open_clip model be trained too."""
    own = {name for name, (tower, _) in layers(trunk, "open_clip").items() if tower == "text"}
    for name, parameter in trunk.named_parameters():
        if name in own:
            parameter.requires_grad_(True)


def checkpoint(trunk: Any, text: bool) -> None:
    """Keep the activations of a few layers only, the others are computed again for the gradient; `text`: of the text tower too.

    Raises:
        ValueError: no tower that is trained can do that.
    """
    tower = getattr(trunk, "visual", trunk)  # of open_clip, or timm's network
    inner = getattr(tower, "trunk", tower)  # timm's in open_clip, which only logs that it refuses
    able = False
    with suppress(AssertionError, AttributeError):
        trunk.set_grad_checkpointing(True)
        inner.set_grad_checkpointing(True)
        able = tower is trunk or any(getattr(module, "grad_checkpointing", False) for module in tower.modules())
    if able or not any(p.requires_grad for p in tower.parameters()):
        return
    told = f"{type(inner).__name__} has no gradient checkpointing"
    if not text:
        raise ValueError(f"{told}; leave embedder.grad_checkpointing out")
    warnings.warn(f"{told}: the image tower keeps its activations", stacklevel=3)


def add_lora(trunk: nn.Module, options: dict[str, Any], run: Callable[[], object]) -> None:
    """Add low-rank adapters (Hu et al., "LoRA", ICLR 2022) to what is trained; the weights themselves are locked.

    peft adds an attention's adapter to its weights for each forward pass and takes it off again, so that these locked
    weights change by rounding. A layer whose weight the network reads without calling the layer (the qkv of timm's BEiT and
    SwinV2, the attention pooling of CLIP's ResNets) gets no adapter, which would do nothing.

    Args:
        trunk: of timm or open_clip; it is changed in place.
        options: any of r (rank), alpha (the product of both factors is scaled by alpha / r), dropout, and targets: names
            of modules, or ends of them such as "qkv" or "c_fc"; without it all linear layers and attentions.
        run: computes embeddings with all towers that are trained.

    Warns:
        UserWarning: some layers get none, for they are not called.

    Raises:
        ValueError: an unknown option, or targets of which nothing that is trained and called has the name.
        ImportError: peft is not installed.
    """
    if unknown := sorted(options.keys() - LORA.keys()):
        raise ValueError(f"embedder.lora has no option {', '.join(unknown)}; it has {', '.join(LORA)}")
    chosen = {**LORA, **options}
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("embedder.lora needs peft; pip install 'beyond_binary[lora]'") from error
    if isinstance(chosen["targets"], str):
        chosen["targets"] = [chosen["targets"]]
    names = _lora_targets(trunk, chosen["targets"])
    if not names:
        raise ValueError(
            "embedder.lora: no layer that is trained "
            + ("is linear" if chosen["targets"] is None else f"has the name {chosen['targets']}")
        )
    called = _called(trunk, names, run)
    if missed := [name for name in names if name not in called]:
        told = f"the network reads the weights of {', '.join(missed[:3])}{' ...' * (len(missed) > 3)} without calling the layers"
        if not called:
            raise ValueError(
                f"embedder.lora: adapters would do nothing, for {told}; name other targets, such as convolutions, or train the weights"
            )
        warnings.warn(f"embedder.lora: {len(missed)} of {len(names)} layers have no adapter, for {told}", stacklevel=3)
    names = called
    try:
        config = LoraConfig(
            r=chosen["r"], lora_alpha=chosen["alpha"], lora_dropout=chosen["dropout"], target_modules=names
        )
        inject_adapter_in_model(config, trunk)
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft refuses embedder.lora {options}: {error}") from error


def _lora_targets(trunk: nn.Module, ends: list[str] | None) -> list[str]:
    """Names of the linear layers and attentions with weights that are trained; peft takes no attention to other widths."""
    within = tuple(f"{name}." for name, m in trunk.named_modules() if isinstance(m, nn.MultiheadAttention))
    kinds = (nn.Linear, nn.MultiheadAttention) if ends is None else (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    return [
        name
        for name, module in trunk.named_modules()
        if isinstance(module, kinds)
        and not (within and name.startswith(within))  # an attention's own output layer is part of it
        and any(p.requires_grad for p in module.parameters())
        and (ends is not None or getattr(module, "_qkv_same_embed_dim", True))
        and (ends is None or any(name == end or name.endswith(f".{end}") for end in ends))
    ]


def _called(trunk: nn.Module, names: list[str], run: Callable[[], object]) -> list[str]:
    """Those of some modules that are called as it runs."""
    found: set[str] = set()
    hooks = [trunk.get_submodule(name).register_forward_hook(lambda *_, name=name: found.add(name)) for name in names]
    try:
        with evaluating(trunk):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in names if name in found]


def has_lora(trunk: nn.Module) -> bool:
    """Whether there are adapters."""
    return any(".lora_A." in name for name, _ in trunk.named_parameters())


def merged(trunk: nn.Module) -> nn.Module:
    """The trunk without adapters, these added to the weights: a copy if there are any, else the trunk itself."""
    if not has_lora(trunk):
        return trunk
    trunk.state_dict()  # peft holds weights of attentions as part of the graph until they are asked for
    trunk = deepcopy(trunk)
    for name in [name for name, _ in trunk.named_modules()]:
        try:
            module: Any = trunk.get_submodule(name)
        except AttributeError:  # part of a module that was replaced
            continue
        if hasattr(module, "unload_and_optionally_merge_module"):
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif hasattr(module, "base_layer") and hasattr(module, "merge"):
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        else:
            continue
        parent, _, own = name.rpartition(".")
        setattr(trunk.get_submodule(parent), own, plain)
    return trunk


@contextmanager
def batch_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers that would in training read the statistics of the batch also in evaluation mode."""
    modes = [(m, m.training) for m in module.modules()]
    module.train()
    live = [m for m, _ in modes if isinstance(m, _BatchNorm) and m.training]
    for m, training in modes:
        m.training = training
    kept = [(m, m.running_mean, m.running_var) for m in live]
    for m in live:
        m.running_mean = m.running_var = None
    try:
        yield
    finally:
        for m, mean, variance in kept:
            m.running_mean, m.running_var = mean, variance


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule gets back the mode that it had."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True
