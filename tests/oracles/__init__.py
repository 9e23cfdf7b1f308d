"""Each registered loss as plain loops over Python floats, one module per family, with the cases it is tested with."""

from __future__ import annotations

from collections.abc import Callable

from . import continuous, mean_field, moments, pairs, proxies, ranking, triplets, tuples
from .common import Batch, Case, grades, some_classes, vectors

__all__ = ["CASES", "ORACLES", "Batch", "Case", "grades", "some_classes", "vectors"]

FAMILIES = (pairs, triplets, tuples, proxies, ranking, continuous, moments, mean_field)
ORACLES: dict[str, Callable[..., float]] = {oracle.__name__: oracle for f in FAMILIES for oracle in f.ORACLES}
CASES: list[Case] = [case for family in FAMILIES for case in family.CASES]
