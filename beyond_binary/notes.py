"""What works in a run, but is hardly what was meant: of its settings, and of the embeddings it makes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .config import Config
from .data import Items
from .objective import Objective
from .targets.vectors import Classes

FEW_PAIRS = 10
"""Fewer pairs of the same class than that in a batch on average are worth a note."""
ALIKE = 1e-4
"""Embeddings that vary by less than this share of their mean squared length are worth a note."""


def notes(config: Config, train: Items, objective: Objective) -> list[str]:
    """What runs, but is hardly what was meant."""
    found, size, loss = [], config.sampler.batch_size, config.objective.loss
    if objective.facts.per_row == "norm" and config.embedder.normalize:
        found.append(f"{loss} reads the length of embeddings, and all have length 1; give --embedder.normalize false")
    if config.optimizer.proxy_lr is not None and not any(p.requires_grad for p in objective.parameters()):
        found.append(f"optimizer.proxy_lr is for nothing: {loss} learns nothing of its own")
    if config.optimizer.head_lr is not None and config.embedder.head == "none" and config.embedder.pooling != "gem":
        found.append("optimizer.head_lr is for nothing: embedder.head is none")
    between_items = objective.facts.keys == objective.facts.rows == "item"
    drawn = isinstance(objective.target, Classes) and config.sampler.name.startswith("random") and len(train) > 1
    if between_items and drawn and objective.memory is None:
        each = np.unique(train.labels, return_counts=True)[1]
        pairs = size * (size - 1) / 2 * float((each * (each - 1)).sum()) / (len(train) * (len(train) - 1))
        if pairs < FEW_PAIRS:
            found.append(
                f"random batches of {size} have {pairs:.1f} pairs of the same class, all that {loss} can draw together; "
                "give --sampler.name 'classes(samples_per_class=4)'"
            )
    if loss == "soft_contrastive":
        some = np.random.default_rng(0).permutation(len(train))[:64]
        code = objective.target.encode(train.labels[some])
        y = objective.target.distance(code, code).double()
        y = y[y > 0]  # of different labels, and known
        middle, sigma = float(y.square().median()) if len(y) else None, objective.config["options"]["sigma"]
        if middle is not None and not 0.05 < middle / sigma < 20:
            found.append(
                f"sigma {sigma:g} is far from the squared label distances, whose median is {middle:.3g}: all pairs are "
                f"different, or all the same; give --objective.options '{{sigma: {middle / 3:.2g}}}'"
            )
    return found


def all_alike(z: Tensor) -> str | None:
    """What to say of embeddings [n d] that are all (nearly) the same, so that any ranking by them is chance."""
    z = z.double()
    varies = float(z.var(0, correction=0).sum() / z.square().sum(1).mean())  # nan where all are zero
    if len(z) < 2 or varies >= ALIKE:
        return None
    return (
        "all embeddings have become (nearly) the same, so that their ranking is chance; "
        "try a lower optimizer.lr, optimizer.proxy_lr or both"
    )
