"""Train, interrupt, resume, evaluate, report, compare bit for bit, for as long as is asked.

python -m tests.soak --minutes 60
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.kill_run import compare_runs, start, wait_for_line

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
"""What interrupts a run, and the exit status that it then has."""
PATIENCE = 600.0


@dataclass(frozen=True)
class SoakArgs:
    """Run rounds until the time is over, at least one; the exit status is 1 if anything differs."""

    minutes: float = 60.0
    """Begin no round after so many."""
    seed: int = 0
    """Of the first round's run and interruptions."""
    interruptions: int = 3
    """Of a round, at random moments by random signals."""
    flags: tuple[str, ...] = (
        "--preset", "smoke", "--bc-steps", "300", "--offline-steps", "200", "--online-steps", "300",
        "--eval-episodes", "1", "--save-interval", "25",
    )  # fmt: skip
    """Flags of python -m trqam_fast.train."""


def command(*words: object) -> None:
    """Run a command of the package.

    Raises:
        RuntimeError: its exit status is not 0.
    """
    line = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(line)}: exit status {done.returncode}: {done.stderr}")


def interrupted(flags: list[str], folder: Path, moments: random.Random, count: int, seconds: float):
    """Train with interruptions, each within `seconds` of the first line about the run.

    Returns:
        The names of the signals.

    Raises:
        RuntimeError: a process ends with a status that is not documented.
    """
    sent = []
    while True:
        process = start([*flags, "--run-dir", str(folder), "--resume", "auto"])
        wait_for_line(process, "run folder")
        number = moments.choice(list(SIGNALS)) if len(sent) < count else None
        try:
            process.communicate(timeout=moments.uniform(0, seconds) if number else PATIENCE)
        except subprocess.TimeoutExpired:
            if number is None:
                process.kill()
                raise RuntimeError("a run does not end") from None
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
            sent.append(number.name)
            if process.returncode not in (SIGNALS[number], 0):
                raise RuntimeError(f"{number.name}: exit status {process.returncode}") from None
            continue
        if process.returncode != 0:
            raise RuntimeError(f"exit status {process.returncode}")
        return sent


def round_of(folder: Path, seed: int, args: SoakArgs) -> tuple[list[str], list[str]]:
    """Do one round; return the signals, and in what the interrupted run differs."""
    flags = [*args.flags, "--seeds", str(seed)]
    whole, cut = folder / "whole", folder / "cut"
    began = time.monotonic()
    command("trqam_fast.train", *flags, "--run-dir", whole)
    seconds = time.monotonic() - began
    sent = interrupted(flags, cut, random.Random(seed), args.interruptions, seconds)
    found = compare_runs(whole, cut)
    for run in (whole, cut):
        command("trqam_fast.evaluate", run, "--episodes", 2, "--out", folder / f"of_{run.name}")
    if len({(folder / f"of_{run.name}/episodes.csv").read_bytes() for run in (whole, cut)}) > 1:
        found.append("episodes.csv of evaluate")
    command("trqam_fast.report", folder, "--out", folder / "page")
    command("trqam_fast.report", whole, cut, "--out", folder / "page")
    command("trqam_fast.status", folder)
    return sent, found


def main(argv: list[str] | None = None) -> int:
    """Do rounds until the time is over; return 1 at the first difference or failure."""
    args = tyro.cli(SoakArgs, args=argv, prog="python -m tests.soak")
    end, seed = time.monotonic() + 60 * args.minutes, args.seed
    while True:
        with tempfile.TemporaryDirectory() as name:
            try:
                sent, found = round_of(Path(name), seed, args)
            except RuntimeError as error:
                print(f"seed {seed}: FAILED: {error}", flush=True)
                return 1
        result = f"DIFFERENT in {', '.join(found)}" if found else "identical"
        print(f"seed {seed}: {' '.join(sent) or 'nothing sent'}: {result}", flush=True)
        if found:
            return 1
        seed += 1
        if time.monotonic() >= end:
            return 0


if __name__ == "__main__":
    sys.exit(main())
