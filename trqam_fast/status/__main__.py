"""Watch a sweep or runs: python -m trqam_fast.status DIR [--watch]."""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.errors import FAILURE, UsageError
from trqam_fast.files import expanded
from trqam_fast.status.lines import ENDED, Line, read_lines
from trqam_fast.status.table import render

DAY = 86_400
CLEAR = "\033[H\033[2J"


@dataclass(frozen=True)
class StatusArgs:
    """Show what became of a sweep's jobs, or of all runs in a folder, one line for each.

    The exit status is 1 if a job failed.
    """

    dir: Annotated[Path, tyro.conf.Positional]
    """Folder of a sweep, of a run, or with runs somewhere below it."""
    watch: bool = False
    """Show it again and again until everything has ended, or Ctrl-C."""
    interval: float = 5.0
    """Seconds between two looks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", expanded(self.dir))
        if not 0 < self.interval <= DAY:
            raise UsageError(
                f"--interval is {self.interval}; use a positive number of seconds, {DAY} at most"
            )


def main(argv: list[str] | None = None) -> int:
    """Print the table, once or until everything has ended; return 1 if a job failed."""
    args = tyro.cli(StatusArgs, args=argv, prog="python -m trqam_fast.status")
    if not args.watch:
        lines, runs = read_lines(args.dir)
        print(render(lines, runs, terminal()[0]))
        return status(lines)
    try:
        return watch(args.dir, args.interval)
    except KeyboardInterrupt:
        print()
        return 0


def watch(folder: Path, interval: float) -> int:
    """Show the table until everything has ended: redrawn on a terminal, else where it changes."""
    before = None
    while True:
        lines, runs = read_lines(folder)
        table = render(lines, runs, *terminal())
        if sys.stdout.isatty():
            clock = time.strftime("%H:%M:%S")
            print(f"{CLEAR}{table}\n{clock}, every {interval:g} s; Ctrl-C leaves", flush=True)
        elif table != before:
            print(table, end="\n\n", flush=True)
        if all(line.kind in ENDED for line in lines):
            return status(lines)
        before = table
        time.sleep(interval)


def terminal() -> tuple[int, int] | tuple[None, None]:
    """Return the columns and rows of the terminal, None if the output is no terminal."""
    return shutil.get_terminal_size() if sys.stdout.isatty() else (None, None)


def status(lines: list[Line]) -> int:
    """Return the exit status."""
    return FAILURE if any(line.kind == "failed" for line in lines) else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
