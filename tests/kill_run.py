"""Kill a run at random moments, resume it each time, and compare it with an undisturbed one.

    python -m tests.kill_run --kills 20

trains with the smoke preset, sends SIGKILL at a random moment after every start until there have
been that many, in all three stages, and checks that weights, moments, dual variables, random
states and CSV files are bit for bit those of the undisturbed run. The exit status is 1 if not.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import STAGES
from trqam_fast.training.config import TrainConfig

LOGS = ("metrics.csv", "first_updates.csv", "eval.csv", "episodes.csv")
WALL_CLOCK = ("seconds",)


@dataclass(frozen=True)
class KillArgs:
    """Kill a run at random moments and compare it with an undisturbed one."""

    kills: int = 20
    """SIGKILLs in all; a run that ends before is followed by another, with the next seed."""
    seed: int = 0
    """Seed of the run and of the moments."""
    flags: tuple[str, ...] = (
        "--preset", "smoke", "--bc-steps", "2000", "--eval-episodes", "2", "--save-interval", "25",
    )  # fmt: skip
    """Flags of python -m trqam_fast.train."""


def start(flags: list[str], stderr: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Start a training process; its standard output is a pipe."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "trqam_fast.train", *flags],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_line(process: subprocess.Popen, beginning: str) -> bool:
    """Read lines until one begins with `beginning`; False if the process ends first."""
    return any(line.startswith(beginning) for line in process.stdout)


def kill_after(process: subprocess.Popen, seconds: float) -> bool:
    """SIGKILL the process unless it ends within `seconds`; return whether it was killed."""
    try:
        process.communicate(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def reached(folder: Path) -> str:
    """Return the stage that was under way when the last row of the log had been written."""
    values = json.loads((folder / "config.json").read_text())
    log = folder / "timing.csv"
    rows = log.read_text().splitlines()[1:] if log.exists() else []
    step = int(rows[-1].split(",")[1]) if rows else 0
    ends = TrainConfig.from_dict(values).stage_ends
    return next((stage for stage, end in ends.items() if step < end), "online")


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the parts in which two checkpoints differ, wall-clock times left out."""
    if isinstance(one, dict) and isinstance(other, dict):
        if set(one) != set(other):
            return [name or "keys"]
        inner = [k for k in one if k not in WALL_CLOCK]
        return [d for k in inner for d in differences(one[k], other[k], f"{name}/{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, f"{name}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = one == other
    return [] if same else [name]


def compare_runs(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ: parts of the last checkpoint, CSV files."""
    last = [checkpoint.newest(run / "checkpoints") for run in (one, other)]
    if None in last or last[0].name != last[1].name:
        return ["the newest checkpoints are of different steps"]
    found = differences(*map(checkpoint.load, last))
    for name in LOGS:
        texts = [
            (run / name).read_bytes() if (run / name).exists() else None for run in (one, other)
        ]
        found += [name] if texts[0] != texts[1] else []
    return found


def main() -> int:
    """Kill, resume, compare."""
    args = tyro.cli(KillArgs)
    moments = random.Random(args.seed)
    stages: Counter[str] = Counter()
    seed, bad = args.seed, False
    while sum(stages.values()) < args.kills:
        with tempfile.TemporaryDirectory() as name:
            whole, cut = Path(name) / "whole", Path(name) / "cut"
            flags = [*args.flags, "--seeds", str(seed)]
            process = start([*flags, "--run-dir", str(whole)])
            wait_for_line(process, "run folder")
            began = time.monotonic()
            process.communicate()
            duration = time.monotonic() - began
            killed, tries = True, 0
            while killed:
                process = start([*flags, "--run-dir", str(cut), "--resume", "auto"])
                wait_for_line(process, "run folder")
                enough = sum(stages.values()) >= args.kills
                pause = 600.0 if enough else moments.uniform(0, 4.0 * duration / args.kills)
                killed = kill_after(process, pause)
                tries += 1
                if killed:
                    stages[reached(cut)] += 1
            found = compare_runs(whole, cut)
            bad |= bool(found) or process.returncode != 0
            print(
                f"seed {seed}: {tries - 1} kills, exit status {process.returncode}, "
                + (f"DIFFERENT in {', '.join(found)}" if found else "identical"),
                flush=True,
            )
            seed += 1
    print("kills by stage: " + ", ".join(f"{stage} {count}" for stage, count in stages.items()))
    missing = [stage for stage in STAGES if stages[stage] == 0]
    if missing and args.kills >= 10:
        bad = True
        print(f"no kill in {', '.join(missing)}; use more --kills or another --seed")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
