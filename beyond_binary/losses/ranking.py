"""Losses of ranks and histograms."""

from __future__ import annotations
