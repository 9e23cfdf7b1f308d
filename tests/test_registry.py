"""Registries: names, specs, options and the errors that name the way out."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beyond_binary.data.embedded import SETS
from beyond_binary.geometry import GEOMETRIES
from beyond_binary.losses import LOSSES
from beyond_binary.metrics import METRICS
from beyond_binary.mining import MINERS
from beyond_binary.registry import Registry, options_of, parse_spec, suggest
from beyond_binary.sampling import SAMPLERS
from beyond_binary.targets import TARGETS

if TYPE_CHECKING:
    from decimal import Decimal


@pytest.fixture
def shapes() -> Registry:
    registry = Registry("shape")

    @registry.register(corners=0)
    def circle(radius: float = 1.0) -> tuple[str, float]:
        return "circle", radius

    @registry.register("box")
    class Box:
        def __init__(self, width: int, height: int = 2) -> None:
            self.size = width, height

    return registry


def test_names_entries_and_facts(shapes: Registry) -> None:
    assert shapes.names() == [*shapes] == ["box", "circle"]
    assert "box" in shapes
    assert "Box" not in shapes
    assert shapes["circle"].info == {"corners": 0}
    assert shapes["circle"].build(2) == ("circle", 2)
    with pytest.raises(ValueError, match="shape 'box' is registered twice"):
        shapes.register("box")(dict)
    assert shapes.names() == [*shapes] == ["box", "circle"]


def test_create(shapes: Registry) -> None:
    assert shapes.create("circle") == ("circle", 1.0)
    assert shapes.create("circle(radius=3)") == ("circle", 3)
    assert shapes.create(
        "circle(3)",
    ) == ("circle", 3)
    assert shapes.create("circle", radius=4) == ("circle", 4)
    assert shapes.create("circle(radius=3)", radius=4) == ("circle", 3)  # the spec wins
    assert shapes.create("box(width=5)").size == (5, 2)
    assert shapes.create("box(height=7)", 5).size == (5, 7)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cirle", "unknown shape 'cirle'; did you mean 'circle'\\?"),
        ("zzz", "unknown shape 'zzz'; known: box, circle"),
        ("circle(radios=1)", "shape 'circle' has no option radios; its options: radius"),
        ("circle(1, radius=1)", "multiple values"),
        ("box", "missing a required argument: 'width'"),
        ("circle(1, 2)", "too many positional"),
        ("circle(", "expected name or name"),
    ],
)
def test_create_errors(shapes: Registry, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes.create(spec)


def test_check_options(shapes: Registry) -> None:
    shapes.check_options("box", ["width", "height"])
    with pytest.raises(ValueError, match="has no option width; its options: height"):
        shapes.check_options("box", ["width"], fixed=["width"])
    assert options_of(shapes["circle"].build) == {"radius": 1.0}


@pytest.fixture
def typed() -> Registry:
    registry = Registry("loss")

    @registry.register()
    def triplet(
        x: Any,
        triplets: Literal["all", "semi_hard"] = "all",
        temperature: float = 0.1,
        k: int | None = None,
        soft: bool = False,
        name: str = "",
        joints: Sequence[int] = (),
    ) -> Any:
        return x

    @registry.register()
    def opaque(scale: Decimal = 1, k: int = 1) -> int:  # type: ignore[assignment]
        return k

    return registry


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"triplets": "foo"}, "loss 'triplet': triplets must be one of 'all', 'semi_hard', got 'foo'"),
        ({"temperature": "hot"}, "temperature must be a float, got 'hot'"),
        ({"temperature": True}, "temperature must be a float, got True"),
        ({"temperature": None}, "temperature must be a float, got None"),
        ({"k": 1.0}, "k must be an int or None, got 1.0"),
        ({"k": False}, "k must be an int or None, got False"),
        ({"soft": 1}, "soft must be True or False, got 1"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"joints": 3}, "joints must be a sequence whose items are each an int, got 3"),
        ({"joints": "12"}, "joints must be a sequence whose items are each an int, got '12'"),
        ({"joints": (1, 2.5)}, "got \\(1, 2.5\\)"),
    ],
)
def test_values_that_do_not_fit_their_annotation(typed: Registry, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed.check_values("triplet", options)
    with pytest.raises(ValueError, match=message):
        typed.create("triplet", 0, **options)


def test_values_that_fit(typed: Registry) -> None:
    for options in (
        {"x": object(), "triplets": "semi_hard", "temperature": 1, "k": None, "soft": True, "joints": [1, 2]},
        {"temperature": np.float32(0.5), "k": np.int64(3), "joints": (), "unknown": 1},
    ):
        typed.check_values("triplet", options)
    assert typed.create("opaque(k='not checked: Decimal is unknown at run time')")
    with pytest.raises(ValueError, match="triplets must be one of"):
        typed.create("triplet('x', 'foo')")


@pytest.mark.parametrize(
    "registry",
    [SETS, GEOMETRIES, LOSSES, METRICS, MINERS, SAMPLERS, TARGETS],
    ids=lambda registry: registry.kind,
)
def test_annotations_of_everything_registered_can_be_checked(registry: Registry) -> None:
    assert registry.names()
    for name in registry.names():
        inspect.signature(registry[name].build, eval_str=True)
        defaults = {k: v for k, v in options_of(registry[name].build).items() if v is not inspect.Parameter.empty}
        registry.check_values(name, defaults)


def test_suggest() -> None:
    assert suggest("tripet", ["triplet", "contrastive"]) == "; did you mean 'triplet'?"
    assert suggest("cosine", ["cosine_a", "cosine_b"]).startswith("; did you mean 'cosine_")
    assert suggest("x", ["b", "a"]) == "; known: a, b"
    assert suggest("x", []) == ""


def test_parse_spec() -> None:
    assert parse_spec("pose") == ("pose", (), {})
    assert parse_spec("class") == ("class", (), {})  # a likely slip: it should meet the near names
    assert parse_spec(" pose(scale=False, root=(2, 3)) ") == ("pose", (), {"scale": False, "root": (2, 3)})
    assert parse_spec("within('circular(period=24)', radius=-1e-3)") == (
        "within", ("circular(period=24)",), {"radius": -1e-3},
    )  # fmt: skip


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "a b",
        "a.b",
        "a.b()",
        "1",
        "'a'",
        "[a]",
        "a(b=c)",
        "a(print(1))",
        "a(*[1])",
        "a(**{'b': 1})",
        "a; b",
        "a()()",
        "class()",
    ],
)
def test_what_is_no_spec_is_refused_and_never_run(spec: str) -> None:
    with pytest.raises(ValueError, match="expected name or name"):
        parse_spec(spec)


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["a", "some_name", "name2", "Größe"])


@settings(max_examples=25)
@given(NAMES, st.lists(LITERALS, max_size=3), st.dictionaries(NAMES, LITERALS, max_size=3))
def test_specs_survive_writing_and_reading(name: str, positional: list[Any], keywords: dict[str, Any]) -> None:
    written = ", ".join([*map(repr, positional), *(f"{k}={v!r}" for k, v in keywords.items())])
    assert parse_spec(f"{name}({written})") == (name, tuple(positional), keywords)


FORKS = """
import importlib, os, sys, torch
for module in sys.argv[1:]:
    if os.fork() == 0:  # a process that has torch, and nothing of ours yet
        importlib.import_module("beyond_binary." + module)
        os._exit(0)
    assert os.wait()[1] == 0, module
"""


@pytest.mark.slow
def test_each_module_can_be_imported_first() -> None:
    modules = ["blocks", "walks", "softmax", "objective", "keys", "losses", "losses.in_place", "tiles"]
    done = subprocess.run([sys.executable, "-c", FORKS, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
