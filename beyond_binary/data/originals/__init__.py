"""Readers of well-known data sets in the files that their authors publish: `NAME:PATH` as `data.source`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import DataConfig
from ..readers import Rows
from . import captions, classes, faces, poses, rooms  # noqa: F401  (they register themselves)
from .common import ORIGINALS

__all__ = ["ORIGINALS", "is_original", "read_original", "repository_files"]


def is_original(source: str) -> bool:
    """Whether a source is `NAME:PATH` of a set that a reader here knows."""
    return source.partition(":")[0] in ORIGINALS.names() and ":" in source


def read_original(config: DataConfig) -> Rows:
    """Rows of the set that `config.source` names, with their labels, and the columns split and role.

    split is train, val or test; role is train (also for val), query or gallery. All test rows are queries, unless the set
    has a gallery of its own, or the option `queries` makes the first so many queries and the other test rows the gallery.

    `NAME:hub:USER/NAME` reads the files from a repository on the Hub, or `NAME:hub:USER/NAME/PATH` those at a path in it.

    Raises:
        FileNotFoundError: a file that the set consists of is missing; images too, unless `bad_images` is "skip".
        PermissionError: the Hub does not let this account read the repository.
        ValueError: an option or a file that does not fit.
    """
    name, _, path = config.source.partition(":")
    ORIGINALS.check_options(name, config.options, fixed=("path", "config"))
    ORIGINALS.check_values(name, config.options)
    if config.options.get("queries") is not None and config.role is None:
        raise ValueError(
            "data.options.queries divides the test rows by the column 'role'; set data.role to role as well"
        )
    folder, origin = (
        repository_files(path[4:], config.revision) if path.startswith("hub:") else (Path(path).expanduser(), None)
    )
    rows: Rows = ORIGINALS[name].build(folder, config, **config.options)
    return replace(rows, origin=origin)


def repository_files(source: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The local copy of "USER/NAME" on the Hub, all of it, or a path in it, and what it is: set, revision and commit."""
    from ...storage import hub_copy

    name, inside = "/".join(source.split("/")[:2]), source.split("/")[2:]
    folder = hub_copy(name, repo_type="dataset", revision=revision)
    origin = {"set": name, "revision": revision or "main", "commit": folder.name}
    return folder.joinpath(*inside), origin
