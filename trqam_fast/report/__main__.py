"""Report on runs: python -m trqam_fast.report RUN..."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.cli import run_command
from trqam_fast.errors import UsageError
from trqam_fast.report.page import write_report
from trqam_fast.report.runs import printable, read_runs


@dataclass(frozen=True)
class ReportArgs:
    """Write a page and pictures about one run or several, overlaid.

    The page, index.html, holds everything it shows and needs no network and no other file.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path | None = None
    """Folder to write to; by default report in the run's folder, or in the current one where there
    are several runs."""


def main(argv: list[str] | None = None) -> int:
    """Write the report and print what is missing and where the page is."""
    args = tyro.cli(ReportArgs, args=argv, prog="python -m trqam_fast.report")
    if not args.runs:
        raise UsageError("no run is named; name one or more run folders")
    runs = read_runs(list(args.runs))
    out = args.out or (args.runs[0] / "report" if len(runs) == 1 else Path("report"))
    for run in runs:
        for problem in run.problems:
            print(f"{run.name}: {problem}")
    print(printable(str(write_report(runs, out))))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
