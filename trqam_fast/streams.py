"""Standard output and error, which may be closed, or refuse what is written to them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Literal

from trqam_fast.damage import reason_of

Name = Literal["stdout", "stderr"]


def open_closed() -> None:
    """Open those streams that a shell's ``>&-`` or a scheduler has closed, to nowhere.

    Their numbers would else be those of the next files, to which libraries and children then print.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            null = open(os.devnull, "w")
            os.set_inheritable(null.fileno(), True)
            setattr(sys, name, null)


def silence(name: Name) -> None:
    """Send nowhere what is printed from now on, and what waits to be."""
    null = open(os.devnull, "w")
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no file
        os.dup2(null.fileno(), getattr(sys, name).fileno())
    setattr(sys, name, null)


def say(text: str, name: Name = "stdout", write: Callable[..., object] = print) -> None:
    """Print a line at once; a stream that refuses it is silenced, and nothing ends for that.

    Args:
        text: The line.
        name: The stream.
        write: Prints it, as `print` does.
    """
    try:
        try:
            write(text, file=getattr(sys, name))
        except UnicodeEncodeError as error:  # of a stream of few characters
            write(
                text.encode(error.encoding, "backslashreplace").decode(error.encoding),
                file=getattr(sys, name),
            )
        getattr(sys, name).flush()
    except (AttributeError, OSError, ValueError) as error:
        silence(name)
        if name == "stdout":
            reason = reason_of(error)
            say(f"warning: nothing more is printed, as the output refuses it ({reason})", "stderr")
