"""Experiment trackers of Accelerate: checked before training, opened with the run's settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .config import Config
from .registry import suggest
from .runs import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


def tracker_installed(name: str) -> bool:
    """Whether Accelerate can log to this tracker here. Raises ValueError for a name it does not know."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"unknown tracker {name!r}{suggest(name, LOGGER_TYPE_TO_CLASS)}")
    return name in [str(t) for t in get_available_trackers()]


def track(config: Config, run: Run, accelerator: Accelerator, step: int) -> None:
    """Open the experiment trackers, with the settings; a continued run overwrites what came after its checkpoint."""
    from accelerate.tracking import filter_trackers

    if config.trackers:
        accelerator.project_configuration.set_directories(str(run.folder))
        accelerator.log_with = filter_trackers([*config.trackers], str(run.folder))
        own = {"tensorboard": {"purge_step": step + 1 if step else None}}
        settings = {name: str(value) for name, value in flat(asdict(config)).items()}
        accelerator.init_trackers("tensorboard", config=settings, init_kwargs=own)


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields
