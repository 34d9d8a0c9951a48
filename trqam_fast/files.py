"""Files that are whole or not there, files that are read without a wait, and a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from trqam_fast.damage import reason_of
from trqam_fast.errors import UsageError

PARTIAL = ".partial"
"""Suffix of a file that is being written."""

LARGEST_TEXT = 2**26
"""Bytes of a text file that are read at the most."""


LARGEST_LOG = 2**31
"""Bytes of a CSV log that are read at the most."""


def expanded(path: Path) -> Path:
    """Return a path with the home folder in place of ``~``.

    Raises:
        UsageError: nobody has the name after the ``~``.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path} names nobody's home; write the whole path") from None


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: the system refuses, or it is a pipe, a device or a folder, which nobody waits for.
    """
    # A pipe would block until somebody writes to it.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.ENXIO, "no regular file", str(path))
    return file


def open_log(path: Path, errors: str = "replace") -> TextIO:
    """Open a CSV log of at most `LARGEST_LOG` bytes; `errors` is for those that are no UTF-8.

    Raises:
        ValueError: it is larger.
        OSError: see `open_file`.
    """
    file = open_file(path)
    if os.fstat(file.fileno()).st_size > LARGEST_LOG:
        file.close()
        raise ValueError(f"it is larger than {LARGEST_LOG:,} bytes")
    return io.TextIOWrapper(file, newline="", errors=errors)


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the contents of a regular file of at most `largest` bytes.

    Raises:
        ValueError: it is larger.
        OSError: see `open_file`.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise ValueError(f"it is larger than {largest:,} bytes")
        return file.read()


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a regular file of at most `largest` bytes.

    Raises:
        ValueError: it is larger, or no UTF-8.
        OSError: see `open_file`.
    """
    return read_bytes(path, largest).decode()


def make_folder(folder: Path) -> None:
    """Make the folder of the results and see that it takes files, before hours of work.

    Raises:
        UsageError: it does not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"the results cannot be written to {folder} ({reason_of(error)}); name another folder "
            "with --out"
        ) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file's contents.

    Raises:
        OSError: see `open_file`.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that gets its name once it is complete and on disk.

    Raises:
        OSError: the disk refuses; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk's names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file, which stays; it ends with the process, however that ends.

    Args:
        path: The file.
        waiting: Is called when another process has the lock and this one has to wait.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
