"""Errors that a command reports in one sentence, without a traceback."""

from __future__ import annotations

USAGE, FAILURE, REQUEUE = 2, 1, 75


class UsageError(Exception):
    """A flag, file or combination that cannot work; commands exit with status 2."""

    status = USAGE


class RunError(Exception):
    """Something failed while running; commands exit with status 1."""

    status = FAILURE


class Stopped(BaseException):
    """A scheduler asked the run to stop; commands exit with status 75, to be run again.

    Not an `Exception`, so that nothing takes it for a failure of its own.
    """

    status = REQUEUE
