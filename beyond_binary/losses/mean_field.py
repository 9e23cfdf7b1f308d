"""Mean-field losses: one learned mean field per class stands for its items."""

from __future__ import annotations
