"""Run or read an experiment: python -m benchmarks.evidence e1 --out runs/e1 (see --help)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.evidence import e1, sweeps
from benchmarks.records import describe, save
from trqam_fast.cli import run_command


@dataclass(frozen=True)
class EvidenceArgs:
    """Run an experiment of docs/protocol.md, or go on with it, and write what it says as JSON.

    The same command goes on after an interruption; finished runs are skipped.
    """

    experiment: Annotated[Literal["e1", "e2", "e3"], tyro.conf.Positional]
    """e1: one setting for unequal problems; e2: long training; e3: the start."""
    out: Path = Path("runs/evidence")
    """Folder of the runs; each experiment has one of its own below it."""
    num_cpus: int | None = None
    """Cores to use; all by default."""
    read_only: bool = False
    """Do not run anything; read what is there."""
    json: Path | None = None
    """File for the result; benchmarks/results/<experiment>_cpu.json by default."""


def main(argv: list[str] | None = None) -> int:
    """Run, read, write; return the exit status."""
    args = tyro.cli(EvidenceArgs, args=argv, prog="python -m benchmarks.evidence")
    out = args.out / args.experiment
    flags = [] if args.num_cpus is None else ["--num-cpus", str(args.num_cpus)]
    if args.experiment == "e1":
        if not args.read_only:
            e1.run(out, flags)
        found = e1.analyse(out)
    else:
        if not args.read_only:
            sweeps.run(args.experiment, out, flags)
        found = (sweeps.analyse_e2 if args.experiment == "e2" else sweeps.analyse_e3)(out)
    path = args.json or Path("benchmarks/results") / f"{args.experiment}_cpu.json"
    save(path, describe(f"evidence {args.experiment}") | found)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
