"""Run or read an experiment: python -m benchmarks.evidence e1 --out runs/evidence (see --help)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.evidence import e1, sweeps
from benchmarks.evidence.estimate import estimate_lines
from benchmarks.evidence.figures import drawing
from benchmarks.evidence.tables import LINES
from benchmarks.records import ROOT, describe, save
from trqam_fast.cli import run_command
from trqam_fast.files import write_text

ANALYSES = {
    "e1": e1.analyse, "e2": sweeps.analyse_e2, "e3": sweeps.analyse_e3, "e4": sweeps.analyse_e4,
}  # fmt: skip


@dataclass(frozen=True)
class EvidenceArgs:
    """Run an experiment of docs/protocol.md, or go on with it, and say what it shows.

    The same command goes on after an interruption; finished runs are skipped. With --read-only it
    prints what there is so far, marked as partial until every planned run is over.
    """

    experiment: Annotated[Literal["e1", "e2", "e3", "e4"], tyro.conf.Positional]
    """e1: one setting for unequal problems; e2: long training; e3: the start; e4: one
    larger run."""
    out: Path = Path("runs/evidence")
    """Folder of the runs; each experiment has one of its own below it."""
    num_cpus: int | None = None
    """Cores to use; all by default."""
    estimate: bool = False
    """Print how long what is left takes on this machine, and run nothing."""
    read_only: bool = False
    """Do not run anything; read what is there."""
    json: Path | None = None
    """File for the result; by default benchmarks/results/<experiment>_cpu.json, or result.json in
    the experiment's folder while that is partial."""
    figure: Path | None = None
    """SVG file for the figure; by default docs/plots/evidence/<experiment>.svg, or figure.svg in
    the experiment's folder while that is partial."""


def main(argv: list[str] | None = None) -> int:
    """Run, read, print, draw, write; return the exit status."""
    args = tyro.cli(EvidenceArgs, args=argv, prog="python -m benchmarks.evidence")
    name, out = args.experiment, args.out / args.experiment
    if args.estimate:
        plans = e1.plans(out) if name == "e1" else sweeps.plans(name, out)
        print("\n".join(estimate_lines(plans, args.num_cpus)))
        return 0
    flags = [] if args.num_cpus is None else ["--num-cpus", str(args.num_cpus)]
    if not args.read_only and name == "e1":
        e1.run(out, flags)
    elif not args.read_only:
        sweeps.run(name, out, flags)
    found = ANALYSES[name](out)
    print("\n".join(LINES[name](found)))
    path, figure = out / "result.json", out / "figure.svg"
    if found["complete"]:
        path = ROOT / "benchmarks" / "results" / f"{name}_cpu.json"
        figure = ROOT / "docs" / "plots" / "evidence" / f"{name}.svg"
    path, figure = args.json or path, args.figure or figure
    save(path, describe(f"evidence {name}") | found)
    figure.parent.mkdir(parents=True, exist_ok=True)
    write_text(figure, drawing(name, found))
    print(f"\nwrote {path} and {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
