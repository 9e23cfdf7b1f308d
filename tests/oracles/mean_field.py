"""Mean-field losses as plain loops over Python floats, from their papers, and the cases they are tested with."""

from __future__ import annotations

from .common import Case

ORACLES = []
CASES: list[Case] = []
