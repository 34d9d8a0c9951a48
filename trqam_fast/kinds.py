"""Values of flags, as files and Python give them, against the type hints of their fields."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType, UnionType
from typing import Any, Literal, get_args, get_origin

import numpy as np

from trqam_fast.errors import UsageError
from trqam_fast.text import printable

SEVERAL = {int: "whole numbers, as [0, 1]", str: 'texts, as ["a", "b"]'}
"""What lists hold, in words."""


def plain(value: Any) -> Any:
    """Return a value as a file would give it.

    Numbers and lists take the place of NumPy's, a list that of a range, ``MODULE:NAME`` that of a
    class or function.
    """
    if isinstance(value, type | FunctionType):
        return f"{value.__module__}:{value.__qualname__}"
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, range):
        return list(value)
    if isinstance(value, list | tuple):
        items = map(plain, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is what a type hint says; whole numbers serve as float."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        return isinstance(value, list | tuple) and all(is_a(item, element) for item in value)
    if isinstance(kind, UnionType):  # optional flags; none is leaving them out
        return any(is_a(value, option) for option in get_args(kind))
    if kind is Path:
        return isinstance(value, str | Path) and "\0" not in str(value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    kind = get_origin(kind) or kind  # an algorithm of one's own may have hints of any kind
    if not isinstance(kind, type):
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def kind_in_words(kind: Any) -> str:
    """Return a type hint in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        return f"a list of {SEVERAL.get(element, kind_in_words(element))}"
    if isinstance(kind, UnionType):
        return kind_in_words(get_args(kind)[0])
    return {
        bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes",
        Path: "a path in quotes",
    }.get(kind, str(kind))  # fmt: skip


def check_kind(name: str, value: Any, kind: Any) -> None:
    """Raise `UsageError` unless the value of a flag is what its type hint says."""
    if not is_a(value, kind):
        flag = name.replace("_", "-")
        raise UsageError(f"--{flag} is {printable(repr(value))}; give {kind_in_words(kind)}")
