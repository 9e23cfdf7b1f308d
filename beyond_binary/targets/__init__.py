"""Targets say what "similar" means: they encode labels per item and give label distances per pair.

A label distance `y` is 0 for "the same", larger for "less similar", NaN for an unknown pair. Everything downstream
(losses, miners, samplers, metrics, pictures) reads `y` and nothing else of the label.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from ..registry import Registry, options_of, parse_spec

Gives = Literal["same", "order", "magnitude"]

TARGETS = Registry("target")


class LabelError(ValueError):
    """A label that a target cannot read; `row` says whose it is."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@runtime_checkable
class Target(Protocol):
    """What a target offers. `gives` says how much of `y` means something: equality, ranks, or the value.

    A target whose distance of a pair depends on which other keys are there says so by an attribute `relative = True`.
    A target that is an `nn.Module` learns: what it encodes changes with the embeddings. A target that is made from another
    has it as `target`, one that is made from several has them as `targets`. Where there is one, `mean(weight, code)` gives the
    codes of weighted means, and `neighbours(code, k, ids, progress)` is a search quicker than comparing all pairs.
    """

    @property
    def gives(self) -> Gives:
        """How much of the label distance is meaningful."""

    def encode(self, labels: Any, z: Tensor | None = None) -> Tensor:
        """Labels [n ...] to codes [n ...], one row per item. Raises ValueError when the labels do not fit."""

    def distance(self, code_q: Tensor, code_k: Tensor, valid: Tensor | None = None) -> Tensor:
        """Label distances [q k]: bool (True = different) or floating. `valid` [q k] marks the pairs that count."""


def create_target(spec: str | Target, **known: Any) -> Target:
    """Build a target from a spec such as `classes`, `circular(period=360)` or `within('euclidean', radius=0.1)`.

    Args:
        spec: name or name(options), or a target, which is returned as it is.
        **known: values for options that the spec leaves out, used where the target, or one inside it, has them (None:
            unknown).

    Raises:
        ValueError: unknown name or option (near names are suggested), a value of the wrong type, or neither a spec
            nor a target.
    """
    if isinstance(spec, Target):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"expected a target or a spec such as 'euclidean', got {spec!r}")
    name, positional, options = parse_spec(spec)
    own = options_of(TARGETS[name].build)
    fill = {key: value for key, value in known.items() if key in own and key not in options and value is not None}
    if "target" in own and positional:
        positional = (create_target(positional[0], **known), *positional[1:])
    elif "target" in own and "target" in options:
        options["target"] = create_target(options["target"], **known)
    target: Target = TARGETS.build(name, positional, {**fill, **options})
    return target


def reads_classes(spec: str | Target) -> bool:
    """Whether a spec is of a target that numbers its classes from 0, and so wants them renumbered where they are not."""
    return isinstance(spec, str) and (parse_spec(spec)[0] == "classes" or estimates(spec))


def estimates(spec: Any) -> bool:
    """Whether a spec is of the target `estimated`, or of one made from it such as `scaled('estimated', factor=2.0)`."""
    if not isinstance(spec, str):
        return False
    name, positional, options = parse_spec(spec)
    inner = positional[0] if positional else options.get("target")
    return name == "estimated" or ("target" in options_of(TARGETS[name].build) and estimates(inner))


def innermost(target: Any) -> Any:
    """What a target such as `scaled` or `within` is made from: the target that is not made from another one."""
    while isinstance(inner := getattr(target, "target", None), Target):
        target = inner
    return target


def list_targets() -> list[str]:
    """Names of all registered targets."""
    return TARGETS.names()


from . import algebra, captions, distributions, layout, pose, sets, tables, vectors  # noqa: F401  (they register themselves)
