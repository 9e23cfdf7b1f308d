"""Train, evaluate and publish embeddings from any kind of similarity: classes, continuous labels, distributions."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedder import Embedder as Embedder
    from .embedder import create_embedder as create_embedder
    from .evaluation import evaluate as evaluate
    from .hub_data import push_dataset as push_dataset
    from .keys import Proxies as Proxies
    from .losses import list_losses as list_losses
    from .metrics import list_metrics as list_metrics
    from .objective import Objective as Objective
    from .objective import create_objective as create_objective
    from .points import Points as Points
    from .targets import create_target as create_target
    from .targets import list_targets as list_targets

__version__ = "0.1.0"

_HOME = {
    "Embedder": "embedder",
    "create_embedder": "embedder",
    "evaluate": "evaluation",
    "push_dataset": "hub_data",
    "Proxies": "keys",
    "list_losses": "losses",
    "list_metrics": "metrics",
    "Objective": "objective",
    "create_objective": "objective",
    "Points": "points",
    "create_target": "targets",
    "list_targets": "targets",
}
__all__ = [*_HOME, "distributed"]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `import beyond_binary` stays quick."""
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    if name == "distributed":
        return importlib.import_module(".distributed", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
