"""Errors that a command reports in one sentence, without a traceback."""

from __future__ import annotations

USAGE, FAILURE, REQUEUE, INTERRUPTED = 2, 1, 75, 130


class UsageError(Exception):
    """A flag, file or combination that cannot work; commands exit with status 2."""

    status = USAGE


class RunError(Exception):
    """Something failed while running; commands exit with status 1."""

    status = FAILURE


class Stopped(BaseException):
    """A scheduler or the user asked a run to stop.

    Not an `Exception`, so that nothing takes it for a failure of its own.

    Args:
        text: What is printed.
        status: Exit status: 75 to be run again, 130 after Ctrl-C.
    """

    def __init__(self, text: str, status: int = REQUEUE) -> None:
        super().__init__(text)
        self.status = status
