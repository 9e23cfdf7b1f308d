"""The optimizer of a run, its groups of parameters, and the schedule of its learning rates."""

from __future__ import annotations

import math

import torch

from .config import OptimizerConfig
from .embedder import Embedder
from .objective import Objective
from .registry import suggest


def make_optimizer(config: OptimizerConfig, embedder: Embedder, objective: Objective) -> torch.optim.Optimizer:
    """An optimizer over the groups trunk, head and proxies, each with its own learning rate."""
    import timm.optim

    known = [str(name) for name in timm.optim.list_optimizers()]
    if config.name not in known:
        raise ValueError(f"unknown optimizer {config.name!r}{suggest(config.name, known)}")
    groups = embedder.param_groups(
        config.lr, head_lr=config.head_lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    if learned := list(objective.parameters()):
        rate = objective.facts.proxy_rate * config.lr if config.proxy_lr is None else config.proxy_lr
        groups.append({"name": "proxies", "params": learned, "lr": rate, "weight_decay": 0.0})
    if not groups:
        raise ValueError(
            "nothing is trained: the trunk is locked and there is no head, text tower or proxy; see embedder"
        )
    for group in groups:
        group["base_lr"] = group["lr"]
    try:
        made: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            groups, opt=config.name, lr=config.lr, **config.options
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"optimizer {config.name!r} with options {config.options}: {error}") from error
    return made


def learning_rate(config: OptimizerConfig, progress: float) -> float:
    """Factor on the learning rates after a share `progress` (0 to 1) of all updates."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = min((progress - config.warmup) / max(1 - config.warmup, 1e-12), 1.0)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}[config.schedule]
