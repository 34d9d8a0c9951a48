"""How far a run is, by the files in its folder, whatever state they are in."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trqam_fast.agents import Declaration, declaration
from trqam_fast.files import open_file
from trqam_fast.runs.folder import KEYS, STAGES
from trqam_fast.runs.read import Row, fault_of, parse_row, read_sound
from trqam_fast.runs.values import count

TAIL = 64 * 1024
"""Bytes read from the end of a log."""
STEPS = dict(zip(STAGES, ("bc_steps", "offline_steps", "online_steps"), strict=True))


@dataclass(frozen=True)
class Progress:
    """What the files of a run tell.

    Attributes:
        config, declared, summary: The JSON files; empty where they cannot be read.
        ends: Step at which each of its stages ends.
        stage, step: Of the newest log row.
        rate: Updates per second in the newest interval.
        speeds: Steps per second by stage, evaluations apart.
        success, lam, path_kl: The newest values, means over the seeds.
        newest: Unix seconds of the last change of a log.
        problems: A sentence for every file that is damaged or cannot be read.
    """

    config: dict[str, Any]
    declared: dict[str, Any]
    summary: dict[str, Any]
    ends: dict[str, int]
    stage: str
    step: int
    rate: float | None
    speeds: dict[str, float]
    success: float | None
    lam: float | None
    path_kl: float | None
    newest: float
    problems: list[str]

    @property
    def algorithm(self) -> Declaration:
        """What its algorithm declares."""
        return declaration(str(self.config.get("algo", "")), self.declared)

    @property
    def failures(self) -> dict[str, str]:
        """Reason by seed that diverged, once the run has ended."""
        return self.summary.get("failures", {})

    @property
    def overhead(self) -> float | None:
        """How many times as long a finished run took as its updates alone."""
        seconds = self.summary.get("seconds", {})
        training = sum(seconds.get(stage, 0) for stage in STAGES)
        return sum(seconds.values()) / training if training > 0 else None


def newest_rows(path: Path, keys: tuple[str, ...], problems: list[str]) -> Iterator[Row]:
    """Yield the whole rows in the last 64 KiB of a log, newest first; none if it cannot be read.

    Args:
        path: The log.
        keys: Columns that it must have.
        problems: Takes a sentence if it cannot be read, or has damaged rows among those looked at.
    """
    try:
        with open_file(path) as file:
            head = file.readline(TAIL)
            start = max(len(head), file.seek(0, os.SEEK_END) - TAIL)
            file.seek(start)
            text = file.read(TAIL).decode(errors="replace")
    except FileNotFoundError:
        return
    except Exception as error:
        problems.append(f"{path.name} {fault_of(error)}")
        return
    if head and not head.endswith(b"\n"):
        problems.append(f"{path.name} is damaged (its first line has no end)")
    columns = head.decode(errors="replace").rstrip("\n").split(",")
    lines = text.split("\n")[start > len(head) : -1]  # the first and last may be parts of a row
    damaged = f"{path.name} has damaged rows"
    for line in reversed(lines):
        cells = line.split(",")
        row = None
        if len(cells) == len(columns):
            row = parse_row(dict(zip(columns, cells, strict=True)), keys)
        if row is not None:
            yield row
        elif damaged not in problems:
            problems.append(damaged)


def newest_group(rows: Iterable[Row], seeds: Iterable[str] = ()) -> list[Row]:
    """Return the rows of the newest step that has all of `seeds`, else of the newest."""
    newest: list[Row] = []
    for _, group in itertools.groupby(rows, lambda row: (row.stage, row.step)):
        found = list(group)
        if {row.seed for row in found}.issuperset(seeds):
            return found
        newest = newest or found
    return newest


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of the finite ones of some values, None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else None


def stage_ends(
    config: Mapping[str, Any], declared: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Return the step at which each stage of a configuration ends, empty stages left out.

    Args:
        config: The configuration.
        declared: What the run folder holds of the algorithm.
    """
    ends, end = {}, 0
    tuned = declaration(str(config.get("algo", "")), declared).fine_tunes
    for stage in STAGES if tuned else STAGES[:1]:
        steps = count(config.get(STEPS[stage]))
        if steps:
            end += steps
            ends[stage] = end
    return ends


def read_progress(folder: Path, planned: Mapping[str, Any] | None = None) -> Progress:
    """Read a run folder, whatever state it is in; `planned` is what it will be configured as."""
    problems: list[str] = []
    config, declared, summary = (
        read_sound(folder / name, problems) or {}
        for name in ("config.json", "algorithm.json", "summary.json")
    )
    if not stage_ends(config, declared) and planned is not None:
        config = dict(planned)
    ends = stage_ends(config, declared)
    last_of: dict[str, Row] = {}
    for row in newest_rows(folder / "timing.csv", ("stage", "step"), problems):
        last_of.setdefault(row.stage, row)
        if row.stage == next(iter(ends), ""):  # the first stage: others come later
            break
    speeds, begin = {}, 0
    for stage, end in ends.items():
        timed = last_of.get(stage)
        seconds = math.nan if timed is None else timed.values.get("seconds", math.nan)
        if timed is not None and 0 < seconds < math.inf and timed.step > begin:
            speeds[stage] = (timed.step - begin) / seconds
        begin = end
    group = newest_group(newest_rows(folder / "metrics.csv", KEYS, problems))
    evaluation = newest_group(
        newest_rows(folder / "eval.csv", KEYS, problems), [row.seed for row in group]
    )
    timing = list(last_of.values())[:1]
    last = max([*timing, *group[:1]], key=lambda row: row.step, default=None)
    return Progress(
        config=config,
        declared=declared,
        summary=summary,
        ends=ends,
        stage=next(iter(ends), "") if last is None else last.stage,
        step=0 if last is None else last.step,
        rate=mean(row.values.get("updates_per_second", math.nan) for row in timing),
        speeds=speeds,
        success=mean(row.success for row in evaluation),
        lam=mean(row.values.get("lam", math.nan) for row in group),
        path_kl=mean(row.values.get("path_kl", math.nan) for row in group),
        newest=newest_change(folder),
        problems=problems,
    )


def newest_change(folder: Path) -> float:
    """Return when a run's logs were last written, in Unix seconds; 0 if there are none."""
    newest = 0.0
    for name in ("config.json", "metrics.csv", "timing.csv", "eval.csv"):
        try:
            newest = max(newest, (folder / name).stat().st_mtime)
        except OSError:
            continue
    return newest
