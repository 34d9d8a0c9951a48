"""CSV logs that are appended to row by row, cut at a step, and take new columns at any time."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trqam_fast.files import open_log, write_text


class CsvLog:
    """A CSV file, written row by row.

    Rows that the disk does not take are kept and tried again with the next ones.

    Args:
        path: The file; made with the first row.
        columns: Columns that come first, in this order, whenever they are there; a name that no
            row had before becomes a new column, after those known.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns = path, tuple(columns)
        self.waiting: list[dict[str, Any]] = []

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; a column that a row lacks stays empty.

        Raises:
            OSError: the disk refuses; the file is as before, and the rows wait.
        """
        self.waiting += rows
        if not self.waiting:
            return
        header = self._header()
        names = dict.fromkeys(name for row in self.waiting for name in row)
        if not set(names) <= set(header):
            header = self._order([*header, *names])
            write_text(self.path, csv_text(header, self.read(), head=True))
        size = self.path.stat().st_size
        try:
            with open(self.path, "a", newline="") as file:
                file.write(csv_text(header, self.waiting, head=False))
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise
        self.waiting = []

    def _header(self) -> list[str]:
        """Return the columns that the file has."""
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return next(csv.reader(file), [])

    def _order(self, names: Sequence[str]) -> list[str]:
        """Return names without repeats, those of `columns` first."""
        first = [name for name in self.columns if name in names]
        return list(dict.fromkeys([*first, *names]))

    def read(self) -> list[dict[str, str]]:
        """Return all rows; none if the file is not there yet."""
        if not self.path.exists():
            return []
        with open_log(self.path, "strict") as file:
            return list(csv.DictReader(file))

    def steps(self) -> list[tuple[int, dict[str, str]]]:
        """Return the rows that are whole, each with its step."""
        return [
            (int(row["step"]), row)
            for row in self.read()
            if None not in row and None not in row.values()
            if row.get("step", "").isdecimal()
        ]

    def truncate(self, step: int) -> None:
        """Drop a half-written row and the rows after `step`: a resumed run writes them again."""
        rows = [row for at, row in self.steps() if at <= step]
        if rows:
            write_text(self.path, csv_text(list(rows[0]), rows, head=True))
        else:
            self.path.unlink(missing_ok=True)


def csv_text(columns: Sequence[str], rows: Iterable[dict[str, Any]], *, head: bool) -> str:
    """Return rows as CSV, after their columns' names if `head`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
