"""Modules of a user's own, which a flag names as ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from trqam_fast.cli import is_users
from trqam_fast.damage import reason_of
from trqam_fast.errors import UsageError


def import_own(flag: str, value: str) -> ModuleType:
    """Import what stands before the colon of a flag's value, from the current folder or installed.

    Raises:
        UsageError: it is a file's name, or importing it fails; the sentence names the file and the
            line at fault.
    """
    name, colon, attribute = value.partition(":")
    if name.endswith(".py") or name.startswith("."):
        module = Path(name).name.removesuffix(".py").lstrip(".")
        raise UsageError(
            f"{flag} is {value!r}; write {module}{colon}{attribute}, in the folder of {module}.py"
        )
    if os.getcwd() not in sys.path:  # as a console script leaves it
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        place = place_in_module(error)
        elsewhere = "start in its folder, set PYTHONPATH or name another module"
        remedy = elsewhere if place is None else "mend it"
        raise UsageError(
            f"{flag} is {value!r}, but importing {name} fails"
            f"{'' if place is None else f' at {place}'} ({type(error).__name__}: "
            f"{reason_of(error)}); {remedy}"
        ) from error


def place_in_module(error: Exception) -> str | None:
    """Return the file and line of a user's at which importing failed, None if it was not found."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, line) for frame, line in frames]
    if isinstance(error, SyntaxError):  # of a file that could not be run, and so has no frame
        places.append((error.filename or "", error.lineno or 0))
    own = [f"{file}:{line}" for file, line in places if is_users(Path(file))]
    return own[-1] if own else None
