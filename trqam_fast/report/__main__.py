"""Report on runs: python -m trqam_fast.report RUN... or DIR..."""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.errors import UsageError
from trqam_fast.files import expanded
from trqam_fast.report.comparison import Comparison
from trqam_fast.report.find import collect, is_run
from trqam_fast.report.page import write_comparison, write_report
from trqam_fast.report.table import LONGEST
from trqam_fast.runs.folder import check_out
from trqam_fast.runs.read import encodable, read_runs
from trqam_fast.text import printable


@dataclass(frozen=True)
class ReportArgs:
    """Write a page and pictures about runs: their curves overlaid, or a comparison of methods.

    Run folders are overlaid. A sweep's folder, or any other with run folders below it, becomes a
    comparison over seeds and tasks, also as CSV files and a LaTeX table. The page, index.html,
    holds everything it shows and needs no network and no other file.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders with runs somewhere below: sweeps', or the authors' own."""
    out: Path | None = None
    """Folder to write to; by default report in the folder named, or in the current one where
    several are."""


def main(argv: list[str] | None = None) -> int:
    """Write the report and print what is missing and where the page is."""
    args = tyro.cli(ReportArgs, args=argv, prog="python -m trqam_fast.report")
    if not args.runs:
        raise UsageError("no run is named; name run folders, or a folder with runs below it")
    args = ReportArgs(
        tuple(map(expanded, args.runs)), None if args.out is None else expanded(args.out)
    )
    out = args.out or (args.runs[0] / "report" if len(args.runs) == 1 else Path("report"))
    check_out(out)
    compare = any(path.is_dir() and not is_run(path) for path in args.runs)
    page = report_methods(args.runs, out) if compare else report_runs(args.runs, out)
    print(encodable(str(page)))
    return 0


def report_runs(folders: tuple[Path, ...], out: Path) -> Path:
    """Overlay runs, print what is missing, return the page."""
    runs = read_runs(list(folders))
    for run in runs:
        for problem in run.problems:
            print(printable(f"{run.name}: {problem}", LONGEST))
    return write_report(runs, out)


def report_methods(folders: tuple[Path, ...], out: Path) -> Path:
    """Compare methods over all runs below some folders, print what is missing, return the page."""
    results, notes = collect(list(folders))
    if all(result.method is None for result in results):
        raise UsageError(
            f"{folders[0]} holds no run of a method that could be read; "
            f"{notes[0] if notes else 'its plan is empty'}"
        )
    for note in notes:
        print(printable(note, LONGEST))
    states = collections.Counter(result.status for result in results)
    print(", ".join(f"{number} {state}" for state, number in states.most_common()))
    return write_comparison(Comparison(results), results, notes, out)


if __name__ == "__main__":
    sys.exit(run_command(main))
