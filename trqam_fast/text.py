"""Times and counts in words, and foreign text fit for a terminal."""

from __future__ import annotations

import time
from typing import Any


def duration(seconds: float) -> str:
    """Return a time roughly, as estimates are: 4 s, 2 min, 1.5 h, 2.3 d."""
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def exact_duration(seconds: float) -> str:
    """Return a measured time: 4.2 s, 2 min 33 s, 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def time_since(moment: float) -> str:
    """Return the time since a moment in Unix seconds, in minutes at least."""
    seconds = time.time() - moment
    return duration(seconds) if seconds >= 60 else "under 1 min"


def short_count(number: Any) -> str:
    """Return a count as 1M, 12.5k or 700; nothing for what is no whole number."""
    if not isinstance(number, int) or abs(number) >= 2**53:
        return ""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def count_of(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """Return a text in one line, fit for a terminal."""
    return printable(" ".join(text.split()), 2000)


def printable(value: Any, limit: int = 120) -> str:
    """Return what a file or a host names, fit for a terminal and one line.

    Characters that move a cursor, change colours or turn the direction of writing are spelled out,
    as a Python literal spells them; what is longer than `limit` ends in an ellipsis.
    """
    try:
        text = str(value)
    except (ValueError, RecursionError):  # an integer of 5,000 digits, say
        text = f"an unusual {type(value).__name__}"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
