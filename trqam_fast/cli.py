"""How commands begin and end: signals, exit statuses and one-sentence errors, the same for all."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from trqam_fast.damage import lacks_memory, reason_of
from trqam_fast.errors import FAILURE, INTERRUPTED, REQUEUE, RunError, Stopped, UsageError
from trqam_fast.streams import open_closed, say, silence
from trqam_fast.text import printable

HERE = Path(__file__).parent
INSTALLED = {"site-packages", "dist-packages", *map(sysconfig.get_path, ("stdlib", "platstdlib"))}
"""Folders of other people's modules: names, and whole paths."""
LONGEST = 2000
"""Characters of an error that are printed."""


def begin(*stopping: signal.Signals) -> None:
    """Let signals end a command that has not begun, or is over, quietly and at once.

    A command calls it before its imports, which take seconds and may not be interrupted by an
    exception. `run_command` takes over from there.

    Args:
        stopping: Signals besides Ctrl-C; the exit status is 75, as nothing is lost.
    """
    open_closed()
    try:
        check_words(sys.argv[1:])
    except UsageError as error:
        sys.exit(fail(error, error.status))
    statuses = {signal.SIGINT: INTERRUPTED} | dict.fromkeys(stopping, REQUEUE)

    def leave(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{own_line()}stopped by {name_of(number)}\n".encode())
        os._exit(statuses[signal.Signals(number)])

    for number in statuses:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def name_of(number: int) -> str:
    """Return what a user calls a signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def own_line() -> str:
    """Return what begins a new line after the ``^C`` that a terminal shows."""
    return "\n" if os.isatty(2) else ""


def run_command(main: Callable[[], int]) -> int:
    """Run `main`; print errors as one sentence and return the exit status."""
    # Of the simulators: no display is needed, and their action bounds are given in float64.
    warnings.filterwarnings("ignore", module="glfw")
    warnings.filterwarnings("ignore", message=".*Box (low|high)'s precision lowered")
    with interruptible():
        try:
            return main()
        except (UsageError, RunError) as error:
            return fail(error, error.status)
        except Stopped as stop:
            say(str(stop), "stderr")
            return stop.status
        except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
            silence("stdout")
            return FAILURE
        except KeyboardInterrupt:
            say(f"{own_line()}interrupted", "stderr")
            return INTERRUPTED
        except Exception as error:
            from trqam_fast.kernels import BackendError  # here: it imports torch

            if isinstance(error, BackendError):
                return fail(error, UsageError.status)
            return fail(in_words(error))


def check_words(words: list[str]) -> None:
    """Raise `UsageError` if one is empty: as a path, it would be the current folder."""
    for before, word in zip(["", *words], words, strict=False):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            name = word[:-1] or (before if before.startswith("--") else "an argument")
            raise UsageError(f"{name} is empty (a variable that is not set?); give it a value")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt`, unless it is ignored or somebody's own."""
    before = signal.getsignal(signal.SIGINT)
    ours = getattr(before, "__module__", None) == __name__
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def fail(error: object, status: int = FAILURE) -> int:
    """Print an error as one line; return the exit status."""
    say(f"error: {printable(error, LONGEST)}", "stderr")
    return status


def in_words(error: Exception) -> str:
    """Return an error in one sentence; the trace of one that nobody foresaw goes to a file."""
    if isinstance(error, UsageError | RunError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error}; what was saved before is untouched"
    if lacks_memory(error):
        return "too little memory; use smaller sizes, or a machine with more of it"
    return f"{type(error).__name__}: {reason_of(error)}; {trace_of(error)}"


def place_of(error: Exception) -> str | None:
    """Return where a user's environment, algorithm or data failed, None if this package did.

    Installed packages and Python's own modules are nobody's: who called them answers for them.
    """
    place = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(HERE):
            place = None
        elif is_users(file):
            place = f"{file}:{line}"
    return place


def class_of(error: Exception) -> str | None:
    """Return which class of a user's this package worked with when it failed, None if with none.

    It takes the innermost one: what it returned or declared may be the cause.
    """
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        if not Path(frame.f_code.co_filename).is_relative_to(HERE):
            continue
        for value in frame.f_locals.values():
            kind = value if isinstance(value, type) else type(value)
            file = getattr(sys.modules.get(kind.__module__), "__file__", None)
            if file is not None and is_users(Path(file)):
                return f"{kind.__module__}:{kind.__qualname__}"
    return None


def is_users(file: Path) -> bool:
    """Return whether a module's file is neither of this package, nor installed, nor Python's."""
    if not file.is_absolute() or file.is_relative_to(HERE):  # compiled or made while running; ours
        return False
    return not INSTALLED.intersection((*file.parts, *map(str, file.parents)))


def trace_of(error: Exception) -> str:
    """Write the trace of an error that nobody foresaw to a file; return whose it is, and where."""
    place, kind = place_of(error), class_of(error)
    try:
        number, path = tempfile.mkstemp(".log", "trqam_fast-")
        with open(number, "w", errors="backslashreplace") as file:
            file.write(f"{sys.argv}\n")
            traceback.print_exception(error, file=file)
    except OSError as problem:
        return f"its trace could not be written ({reason_of(problem)})"
    if place is not None:
        return f"it comes from {place}, which is not of trqam_fast; its trace is in {path}"
    if kind is not None:
        return (
            f"the cause may be in {kind}, which is not of trqam_fast: its trace is in {path}; "
            f"please report it if {kind} is as it must be"
        )
    return f"this is a mistake in trqam_fast, whose trace is in {path}; please report it"
