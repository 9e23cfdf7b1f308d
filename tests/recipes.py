"""Scripts of the repository as modules, and the smallest training that they are tested with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TINY = [
    "--config", str(ROOT / "recipes" / "configs" / "digits.yaml"), "--data.rows", "[96, 40]",
    "--embedder.trunk", "timm/test_byobnet", "--embedder.dim", "8", "--sampler.batch_size", "16",
    "--optimizer.epochs", "2", "--progress", "false", "--report", "false", "--trackers", "[]", "--cpu", "true",
]  # fmt: skip


def load(path: str) -> ModuleType:
    """The script at a path below the repository, as a module of a name of its own."""
    name = "script_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
