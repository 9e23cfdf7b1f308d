"""Pieces of HTML that the sections of a report share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from pathlib import PureWindowsPath


def number(value: float | None, digits: int = 4) -> str:
    """A value in few characters; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.{digits}g}"


def short_name(name: object) -> str:
    """An item's name; of a path from the root, which tells of this machine alone, the last part."""
    text = str(name)
    return PureWindowsPath(text).name if re.match(r"[/\\~]|[A-Za-z]:[\\/]", text) else text


def section(title: str, body: str, note: str = "") -> str:
    """A titled part of the page; nothing if it would be empty."""
    lead = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>"


def chart(svg: str, words: str) -> str:
    """A drawing, and what a screen reader says of it."""
    return f'<figure class="chart" role="img" aria-label="{escape(words)}">{svg}</figure>'


def key(words: Mapping[str, str]) -> str:
    """Legend: the line of each colour and what it stands for."""
    lines = (f'<i class="dash {colour}" style="--c:var(--{colour})"></i>{word}' for colour, word in words.items())
    return f'<p class="key">{" ".join(lines)}</p>'
