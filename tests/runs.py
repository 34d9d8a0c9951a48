"""Runs of the trainer in this process, and their logs."""

from __future__ import annotations

import csv
from pathlib import Path

from trqam_fast import train
from trqam_fast.cli import run_command


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(flags, folder, *more) -> int:
    return run_command(lambda: train.main([*flags, "--run-dir", str(folder), *more]))
