"""The table of metrics: pure functions, found by flat lower-case names.

Most are means over queries and read a `Ranking`. Those registered as `over="pairs"` read the scores of all pairs (a
`Separation`), those `over="clusters"` a `Clustering` of the embeddings.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

from ..registry import Entry, Registry, parse_spec, suggest

METRICS = Registry("metric")

COUNTS = ("queries", "queries_without_match")
"""What `evaluate` gives beside metrics."""

MAIN = (
    "text_to_image_recall_at_10",
    "image_to_text_recall_at_10",
    "recall_at_1",
    "map_at_r",
    "mean_label_distance_at_10",
    "ndcg_at_10",
    "spearman",
)
"""What reports and cards show first, where it was measured."""

READABLE = {"same": ("same", "order"), "order": ("order",), "magnitude": ("order", "magnitude")}
"""What a metric may read of a label distance whose target gives "same", "order" or "magnitude"."""

USUAL = {"same": ("same",), "order": ("order",), "magnitude": ("order", "magnitude")}
"""What is computed when nobody asks for particular metrics."""


IMAGE_TEXT = re.compile(r"(?:text_to_image|image_to_text)_recall_at_(\d+|k)|zero_shot_accuracy")
"""Names of the scores between images and texts, which `beyond_binary.clip` computes and not `evaluate`."""


@dataclass(frozen=True)
class Metric:
    """A metric with its options bound.

    Attributes:
        name: as the user wrote it, `recall_at_4` or `ndcg_at_100(label_scale=0.1)`.
        function: over rows `Ranking -> (value [q], count [q])`, count 0 leaving a query out; else `Separation -> float`
            or `Clustering -> float`.
        reads: "same", "order" or "magnitude": how much of the label distance it needs.
        k: positions it reads, 0 if it needs none but those of the right references.
        over: "rows", "pairs" or "clusters", see above.
        curve: over pairs, whether it needs the error rates at all thresholds.
    """

    name: str
    function: Callable[[Any], Any]
    reads: str
    k: int = 0
    over: str = "rows"
    curve: bool = False


def list_metrics() -> list[str]:
    """Names of all registered metrics; `_at_k` stands for any number, as in `recall_at_4`, `_x` for a rate."""
    return METRICS.names()


def create_metrics(
    specs: Iterable[str] | None, gives: str, ks: int | Sequence[int] | None = None, target: Any = None
) -> list[Metric]:
    """Bind the metrics called `specs`.

    A name that ends in `_at_k` stands for one metric for each of `ks`; when `ks` is None, for each of the
    metric's usual ones. `recall_at_4` is one metric, whatever `ks` says.

    Args:
        specs: names, with options if need be; None: of those over rows, all that read same/different for classes,
            all that read the order or the value of label distances for magnitudes.
        gives: what the target gives: "same", "order" or "magnitude".
        ks: numbers of neighbours, or one number, for the `_at_k` metrics.
        target: the target, for the metrics that need more of it than its distances.

    Raises:
        ValueError: no name, unknown name or option, ks that are not integers of at least 1, or a metric that reads
            what the target does not give.
    """
    if isinstance(specs, str):
        raise ValueError(f"expected a list of metric names, got the string {specs!r}; write [{specs!r}]")
    if specs is None:
        usual = [n for n in list_metrics() if METRICS[n].info["reads"] in USUAL[gives] and _over(n) == "rows"]
        specs = [n for n in usual if _offers(target, n) and n != "part_label_distance_at_k"]
        if "ndcg_at_k" in specs:
            specs.insert(specs.index("ndcg_at_k") + 1, "ndcg_at_k(label_scale='nearest')")
        if _offers(target, "part_label_distance_at_k") and "part_label_distance_at_k" in usual:
            specs += [f"part_label_distance_at_k(part={i})" for i in range(len(target.targets))]
    counts = None if ks is None else _counts(ks)
    metrics = [metric for spec in specs for metric in _bind(spec, counts)]
    if not metrics:
        raise ValueError("expected at least one metric, got an empty list; None means those that fit the target")
    for metric in metrics:
        _check_fit(metric, gives)
        _check_offer(metric, target)
    return metrics


def higher_is_better(name: str) -> bool:
    """Whether larger values of the metric called `name` (as in the result of `evaluate`) are better."""
    if IMAGE_TEXT.fullmatch(name):
        return True
    rate = _rate(name)
    entry = METRICS[rate[0]] if rate else _find(parse_spec(name)[0])[0]
    return bool(entry.info.get("higher_is_better", True))


def _find(name: str) -> tuple[Entry, re.Match[str] | None]:
    """The registered metric behind a name, and the two parts (`recall_at_`, `4`) of a name with a number."""
    if name in METRICS and not name.endswith("_at_k"):
        return METRICS[name], None
    at = re.fullmatch(r"(.+_at_)(\d+|k)", name)
    if at and at[1] + "k" in METRICS:
        return METRICS[at[1] + "k"], at
    written = [n[:-1] + (at[2] if at else "10") if n.endswith("_at_k") else n for n in list_metrics()]
    raise ValueError(f"unknown metric {name!r}{suggest(name, written)}")


def _counts(ks: Any) -> list[int]:
    """Numbers of neighbours as a list."""
    counts = list(ks) if isinstance(ks, Iterable) else [ks]
    if not counts or not all(isinstance(k, Integral) and not isinstance(k, bool) and int(k) >= 1 for k in counts):
        raise ValueError(f"ks must be integers of at least 1 (numbers of neighbours), got {ks!r}")
    return [int(k) for k in counts]


def _rate(spec: str) -> tuple[str, float] | None:
    """The metric and the rate of a name such as `tar_at_far_0.001`."""
    written = re.fullmatch(r"(\w+_)(\d.*)", spec.strip())
    if written is None or written[1] + "x" not in METRICS:
        return None
    try:
        rate = float(written[2])
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1:
        raise ValueError(f"metric {spec!r}: expected a rate above 0 and at most 1, such as {written[1]}0.001")
    return written[1] + "x", rate


def _over(name: str) -> str:
    over: str = METRICS[name].info.get("over", "rows")
    return over


def _bind(spec: str, ks: Sequence[int] | None) -> list[Metric]:
    if rate := _rate(spec):
        entry = METRICS[rate[0]]
        bound = partial(entry.build, **{list(inspect.signature(entry.build).parameters)[1]: rate[1]})
        return [Metric(spec.strip(), bound, entry.info["reads"], over=_over(entry.name), curve=True)]
    name, positional, options = parse_spec(spec)
    entry, at = _find(name)
    if entry.name.endswith("_x"):
        raise ValueError(f"metric {spec!r}: write the rate in place of x, such as {entry.name[:-1]}0.001")
    known = list(inspect.signature(entry.build).parameters)[1:]
    if positional or not options.keys() <= {*known} - {"k"}:
        known = [option for option in known if option != "k"]
        raise ValueError(f"metric {spec!r}: options are key=value pairs; known: {', '.join(known) or 'none'}")
    METRICS.check_values(entry.name, options)
    reads = entry.info["reads"]
    if at is None:
        bound = partial(entry.build, **options)
        return [Metric(spec, bound, reads, over=_over(entry.name), curve=entry.info.get("curve", False))]
    counts = [int(at[2])] if at[2] != "k" else list(entry.info["ks"] if ks is None else ks)
    if min(counts) < 1:
        raise ValueError(f"metric {name!r} needs a number of neighbours of at least 1, got {counts[0]}")
    rest = spec.strip().removeprefix(name)
    return [Metric(f"{at[1]}{k}{rest}", partial(entry.build, k=k, **options), reads, k) for k in counts]


MEANT = {"same": "same/different", "order": "the order of label distances", "magnitude": "label distances"}
WAY_OUT = {
    "same": "make classes of them with within('<target>', radius=...) or nearest('<target>', k=...)",
    "magnitude": "choose a target whose label distances are values, such as 'euclidean'",
}


def _check_fit(metric: Metric, gives: str) -> None:
    if metric.reads not in READABLE[gives]:
        fitting = [n for n in list_metrics() if METRICS[n].info["reads"] in READABLE[gives]]
        raise ValueError(
            f"metric {metric.name!r} reads {MEANT[metric.reads]}, but the target gives {MEANT[gives]} only; "
            f"{WAY_OUT[metric.reads]}, or take one of: {', '.join(fitting)}"
        )


NEEDS = {
    "distance": "a target",
    "part": "the target 'sum'",
    "regions": "the target 'layout'",
}
"""What a metric may need of a target beyond distances: an attribute, and in words."""


def _offers(target: Any, name: str) -> bool:
    needed = METRICS[name].info.get("needs")
    return needed is None or getattr(target, needed, None) is not None


def _check_offer(metric: Metric, target: Any) -> None:
    if _rate(metric.name):
        return
    name = _find(parse_spec(metric.name)[0])[0].name
    if not _offers(target, name):
        raise ValueError(f"metric {metric.name!r} needs {NEEDS[METRICS[name].info['needs']]}, not {target}")


from . import clustering, continuous, retrieval, verification  # noqa: F401  (they register themselves)
