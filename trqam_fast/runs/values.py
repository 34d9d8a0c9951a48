"""Values in the files of a run, which may be missing or odd: one odd value costs itself alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trqam_fast.damage import is_damage
from trqam_fast.files import read_text

LARGEST_COUNT = 2**53
"""Above it a float no longer tells whole numbers apart."""


def load_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's names and values.

    Raises:
        OSError: the system refuses.
        Exception: it is damaged; see `is_damage`.
    """
    values = json.loads(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("it holds no names")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's names and values, nothing if it cannot be read."""
    try:
        return load_json(path)
    except Exception as error:
        if isinstance(error, OSError | MemoryError) or is_damage(error):
            return {}
        raise


def number(value: Any) -> float:
    """Return a number, or the text of one, as float; NaN of anything else."""
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def numbers(value: Any) -> dict[str, float]:
    """Return the finite numbers of a JSON object by name, nothing if it is none."""
    found = {str(k): number(v) for k, v in value.items()} if isinstance(value, dict) else {}
    return {name: part for name, part in found.items() if math.isfinite(part)}


def count(value: Any) -> int | None:
    """Return a whole number from 0 on, or the text of one; None for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 17 else None
    if type(value) is int and 0 <= value < LARGEST_COUNT:
        return value
    return None
