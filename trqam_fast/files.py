"""Files that are whole or not there, and a lock between processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


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
