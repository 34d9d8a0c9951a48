"""Damage, and failure to read: two things, which every reader tells apart here.

A file is damaged if its contents are not what was written. Another copy helps, and a reader may
take an older file in its place. A file cannot be read if the system refuses: permission, device,
network, too many open files, too little memory. Its contents may be whole, so nobody deletes,
renames, replaces or passes over it for that.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import lzma
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from trqam_fast.errors import FAILURE, USAGE, RunError, UsageError
from trqam_fast.text import printable

DAMAGE = (
    ValueError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError, struct.error,
    SyntaxError, tokenize.TokenError,  # numpy reads a header as a piece of Python
    RuntimeError,  # of torch and of zipfile; RecursionError too
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, pickle.UnpicklingError, csv.Error,
)  # fmt: skip
"""What readers raise at damaged contents. `is_damage` has the exceptions to it."""

NO_MEMORY = ("allocate memory", "out of memory")
"""What torch says in a `RuntimeError` where memory is lacking."""

NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that leads to no regular file."""


class Damaged(UsageError):
    """A file whose contents are not what was written."""


class Unreadable(RunError):
    """A file that the system does not let us read, or that is none."""

    def __init__(self, path: Path, error: BaseException) -> None:
        where = printable(getattr(error, "filename", None) or path, 400)
        none = getattr(error, "errno", None) in NO_FILE
        advice = "check the path" if none else "it may be whole, so keep it and see to the cause"
        super().__init__(f"{where} cannot be read ({reason_of(error)}); {advice}")
        self.status = USAGE if none else FAILURE


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is lacking."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
    return said or isinstance(error, MemoryError)


def is_damage(error: BaseException) -> bool:
    """Return whether an error of a reader is due to the file's contents.

    Not if the system refused (`OSError` with its number) or memory was lacking (`MemoryError`,
    torch's `RuntimeError`), nor where something else went wrong. Damage are the two kinds of
    `OSError` that contents lead to: without a number (bz2), or EINVAL (zipfile looks before a
    file's beginning).
    """
    if isinstance(error, OSError):
        return error.errno in (None, errno.EINVAL)
    return isinstance(error, DAMAGE) and not lacks_memory(error)


def reason_of(error: BaseException) -> str:
    """Return in a few words, fit for a terminal, what an error says."""
    if isinstance(error, KeyError):
        return f"{printable(error)} is missing"
    if lacks_memory(error):
        return "too little memory"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable((text.strip() or "?").splitlines()[0])


@contextlib.contextmanager
def reading(path: Path, complaint: str, remedy: str) -> Iterator[None]:
    """Turn what a reader raises inside into one sentence.

    Args:
        path: What is read.
        complaint: What is said of it if it is damaged, e.g. "is no checkpoint".
        remedy: What to do then, e.g. "take the one before".

    Raises:
        Damaged: "PATH COMPLAINT (REASON); REMEDY".
        Unreadable: it could not be read.
    """
    try:
        yield
    except (UsageError, RunError):
        raise
    except Exception as error:
        if is_damage(error):
            raise Damaged(f"{path} {complaint} ({reason_of(error)}); {remedy}") from None
        if isinstance(error, (OSError, MemoryError, RuntimeError)):
            raise Unreadable(path, error) from None
        raise
