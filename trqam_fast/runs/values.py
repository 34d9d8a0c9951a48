"""Values in the files of a run, which may be missing or odd: one odd value costs itself alone."""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trqam_fast.damage import reading
from trqam_fast.files import LARGEST_TEXT, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_COUNT = 2**53
"""Above it a float no longer tells whole numbers apart."""
Check = Callable[[Any], bool]


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


def load_toml(path: Path, largest: int = LARGEST_TEXT) -> dict[str, Any]:
    """Return what a TOML file of at most `largest` bytes holds.

    Raises:
        UsageError: it is no TOML.
        Unreadable: the system refuses.
    """
    with reading(path, "is not TOML", "mend that line"):
        return tomllib.loads(read_text(path, largest))


def number(value: Any) -> float:
    """Return a number, or the text of one, as float; NaN of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def count(value: Any) -> int | None:
    """Return a whole number from 0 on, or the text of one; None for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < 17 else None
    if type(value) is int and 0 <= value < LARGEST_COUNT:
        return value
    return None


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(number(value))


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on."""
    return type(value) is int and count(value) is not None


def is_seed(value: Any) -> bool:
    """Whether a value is a seed; see `TrainConfig`."""
    return type(value) is int and 0 <= value < 2**63


def is_amount(value: Any) -> bool:
    """Whether a value is a number of seconds, or of something in a second."""
    return is_number(value) and 0 <= value < LARGEST_COUNT


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def is_scalar(value: Any) -> bool:
    """Whether a value is nothing, a truth, a text or a finite number."""
    return value is None or isinstance(value, bool | str) or is_number(value)


def list_of(check: Check, value: Any) -> bool:
    """Whether a value is a list of what passes a check."""
    return isinstance(value, list) and all(map(check, value))


def dict_of(check: Check, value: Any) -> bool:
    """Whether a value gives each name what passes a check."""
    return isinstance(value, dict) and all(map(check, value.values()))


KINDS: dict[str, Check] = {
    "env_name": is_text,
    "algo": is_text,
    "seeds": functools.partial(list_of, is_seed),
    "bc_steps": is_count,
    "offline_steps": is_count,
    "online_steps": is_count,
    "kl_budget": is_number,
    "kl_budget_online": lambda value: value is None or is_number(value),
    "failures": functools.partial(dict_of, is_text),
    "seconds": functools.partial(dict_of, is_amount),
    "online_seconds": functools.partial(dict_of, is_amount),
    "updates_per_second": functools.partial(dict_of, is_amount),
    "later": functools.partial(list_of, functools.partial(dict_of, is_scalar)),
}
"""What the values that are reckoned with must be, in every JSON file of a run."""


def sound(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values that are what they should be, and the names of the others.

    Those that `KINDS` does not name are scalar, or lists of what is.
    """

    def fits(name: str, value: Any) -> bool:
        if name in KINDS:
            return KINDS[name](value)
        return is_scalar(value) or list_of(is_scalar, value)

    found = {name: value for name, value in values.items() if fits(name, value)}
    return found, [name for name in values if name not in found]
