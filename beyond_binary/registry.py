"""Names to builders: one table per kind of thing, filled by decorators, read by specs such as `pose(scale=False)`."""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

Built = TypeVar("Built", bound=Callable[..., Any])


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown `name`: the nearest known names, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; known: " + ", ".join(known) if known else ""


def check_choice(what: str, value: str | None, choices: Sequence[str]) -> None:
    """Raise a ValueError if `value` is none of the choices (None passes)."""
    if value is not None and value not in choices:
        raise ValueError(f"unknown {what} {value!r}{suggest(value, choices)}; choices: {', '.join(choices)}")


def parse_spec(spec: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Split `name` or `name(literal, key=literal, ...)` into name, positional and keyword arguments.

    Only Python literals are allowed as arguments, so that a spec from a config file never runs code.

    Raises:
        ValueError: `spec` is neither of the two forms.
    """
    if spec.strip().isidentifier():
        return spec.strip(), (), {}
    expected = f"expected name or name(key=literal, ...), got {spec!r}"
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(expected) from None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(expected)
    try:
        positional = tuple(ast.literal_eval(a) for a in node.args)
        keywords = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
    except ValueError:
        raise ValueError(expected + " (arguments must be literals)") from None
    if len(keywords) != len(node.keywords):
        raise ValueError(expected)
    return node.func.id, positional, keywords


def options_of(build: Callable[..., Any]) -> dict[str, Any]:
    """Keyword options of a function or class with their defaults (`inspect.Parameter.empty` where required)."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: p.default for p in inspect.signature(build).parameters.values() if p.kind in kinds}


_PLAIN: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "an int"),
    float: (Real, "a float"),
    str: (str, "a string"),
    NoneType: (NoneType, "None"),
}
"""Annotations that are checked: which values fit (numpy's numbers too), and how an error names them."""


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` fits an annotation of plain types, literals, sequences and unions; others fit anything."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(v, parts[0]) for v in value)
    if hint not in _PLAIN:
        return True
    return isinstance(value, _PLAIN[hint][0]) and (hint is bool or not isinstance(value, bool))


def _wanted(hint: Any) -> str:
    """What fits an annotation, in words."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_wanted, parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is Sequence:
        return f"a sequence whose items are each {_wanted(parts[0])}"
    return _PLAIN[hint][1] if hint in _PLAIN else str(hint)


@dataclass(frozen=True)
class Entry:
    """One registered thing: its name, the function or class, and what its registration said about it.

    `parts` are further functions whose options are options of the thing.
    """

    name: str
    build: Callable[..., Any]
    info: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Callable[..., Any], ...] = ()


class Registry:
    """A table of names for one kind of thing (`Registry("loss")`).

    Registering is a decorator; looking up an unknown name raises a ValueError that suggests near names.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(
        self, name: str | None = None, *, parts: Iterable[Callable[..., Any]] = (), **info: Any
    ) -> Callable[[Built], Built]:
        """Decorator: enter a function or class under `name` (default: its own name), with free-form facts."""

        def enter(build: Built) -> Built:
            key = name or build.__name__
            if key in self._entries:
                raise ValueError(f"{self.kind} {key!r} is registered twice")
            self._entries[key] = Entry(key, build, info, tuple(parts))
            return build

        return enter

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}{suggest(name, self._entries)}")
        return self._entries[name]

    def check_options(self, name: str, options: Iterable[str], fixed: Iterable[str] = ()) -> None:
        """Raise a ValueError if the thing called `name` has no such options (`fixed` ones are not options)."""
        entry = self[name]
        known = [o for f in (entry.build, *entry.parts) for o in options_of(f) if o not in set(fixed)]
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(
                f"{self.kind} {name!r} has no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}"
            )

    def check_values(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise a ValueError if a value does not fit the annotation of the thing called `name`.

        Checked are bool, int, float (an int fits, a bool does not), str, None, `Literal`, and sequences and unions
        of these. Options that are unknown or annotated otherwise, or whose annotation cannot be resolved, pass.
        """
        entry = self[name]
        parameters: dict[str, inspect.Parameter] = {}
        for function in (*entry.parts, entry.build):
            try:
                parameters |= inspect.signature(function, eval_str=True).parameters
            except NameError:  # an annotation imported for type checkers only
                continue
        for option, value in options.items():
            if option in parameters and not _fits(value, hint := parameters[option].annotation):
                raise ValueError(f"{self.kind} {name!r}: {option} must be {_wanted(hint)}, got {value!r}")

    def create(self, spec: str, *args: Any, **defaults: Any) -> Any:
        """Call what `spec` names, with the spec's own arguments over `defaults`.

        Raises:
            ValueError: unknown name, unknown option, a value that does not fit, or a spec that cannot be read.
        """
        name, positional, keywords = parse_spec(spec)
        return self.build(name, (*args, *positional), {**defaults, **keywords})

    def build(self, name: str, positional: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Call the thing called `name`, with the same errors as `create`."""
        entry = self[name]
        self.check_options(name, options)
        try:
            bound = inspect.signature(entry.build).bind(*positional, **options)
        except TypeError as error:
            raise ValueError(f"{self.kind} {name!r}: {error}") from None
        self.check_values(name, bound.arguments)
        return entry.build(*positional, **options)


def bind(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The function with those of the options that are its own."""
    own = set(options_of(function))
    return functools.partial(function, **{name: value for name, value in options.items() if name in own})
