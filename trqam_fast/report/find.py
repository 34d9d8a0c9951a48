"""Finds sweeps, run folders and the authors' run folders below a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from trqam_fast.errors import UsageError
from trqam_fast.report.authors import is_authors, read_authors, read_flags
from trqam_fast.report.collect import Result, collect_loose, collect_sweep
from trqam_fast.report.settings import tell_apart
from trqam_fast.runs.read import FILES


@dataclass
class Found:
    """What lies below some folders."""

    sweeps: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    authors: list[Path] = field(default_factory=list)


def is_run(path: Path) -> bool:
    """Whether a folder itself is a run of this project."""
    return any((path / file).exists() for file in FILES) and not is_authors(path)


def find(root: Path) -> Found:
    """Return what lies in a folder or below it, in the order of the names.

    Raises:
        UsageError: there is no such folder, or nothing of a run below it.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; name a run folder, or a folder with runs below it")
    found = Found()
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders.sort()
        if "plan.json" in files:
            found.sweeps.append(folder)
        elif "eval.csv" in files or ("flags.json" in files and read_flags(folder, [])[1]):
            (found.authors if is_authors(folder) else found.runs).append(folder)
        elif "metrics.csv" in files or {"config.json", "versions.json"} <= set(files):
            found.runs.append(folder)
        else:
            continue
        folders.clear()
    if not (found.sweeps or found.runs or found.authors):
        raise UsageError(
            f"{root} holds neither a sweep (plan.json) nor a run (config.json, eval.csv), and none "
            "lies below it; name another folder"
        )
    return found


def collect(roots: list[Path]) -> tuple[list[Result], list[str]]:
    """Return the results of everything below some folders, and a note for each thing lacking.

    Of several runs of one method, task and seed the last one counts that is done.

    Raises:
        UsageError: a folder holds no run.
    """
    results: list[Result] = []
    notes: list[str] = []
    for root in roots:
        found = find(root)
        for sweep in found.sweeps:
            try:
                results += collect_sweep(sweep, notes)
            except UsageError as error:  # of its plan; the other sweeps have their own
                notes.append(str(error))
        results += collect_loose(found.runs, root, notes)
        theirs = [read_authors(folder, notes) for folder in found.authors]
        results += [result for result in theirs if result is not None]
    tell_apart(results, notes)
    results = without_repeats(results, notes)
    notes += different_starts(results)
    return [*results, *missing(results)], notes


def without_repeats(results: list[Result], notes: list[str]) -> list[Result]:
    """Return one result for each method, task and seed, and note the others."""
    kept: dict[tuple[str | None, str, str], Result] = {}
    for result in results:
        key = (result.method, result.task, result.seed)
        before = kept.get(key)
        if before is None:
            kept[key] = result
            continue
        keep, leave = (before, result) if before.status == "done" != result.status else (
            result, before,
        )  # fmt: skip
        kept[key] = keep
        note = (
            f"{leave.folder}: {keep.folder} is the same method, task and seed "
            f"({keep.method or 'pretraining'}, {keep.task}, {keep.seed}) and counts instead"
        )
        if None not in (keep.start, leave.start) and keep.start != leave.start:
            note += f", though its start differs ({keep.start:g} and not {leave.start:g})"
        notes.append(note)
    return list(kept.values())


def different_starts(results: list[Result]) -> list[str]:
    """Return a note for each task on which methods do not start with the same success."""
    starts: dict[str, dict[str, dict[float, list[str]]]] = {}
    for result in results:
        if result.start is not None:
            seeds = starts.setdefault(result.task, {})
            methods = seeds.setdefault(result.seed, {}).setdefault(result.start, [])
            methods.append(result.method or "pretraining")
    notes = []
    for task, seeds in starts.items():
        differ = {seed: values for seed, values in seeds.items() if len(values) > 1}
        if differ:
            seed, values = next(iter(differ.items()))
            words = "; ".join(f"{100 * v:.1f} %: {', '.join(names)}" for v, names in values.items())
            notes.append(
                f"{task}, seeds {' '.join(differ)}: the methods do not start with the same "
                f"success, so not from the same pretrained policy or not evaluated alike (seed "
                f"{seed}: {words})"
            )
    return notes


def missing(results: list[Result]) -> list[Result]:
    """Return a result for each task that other methods have runs of and a method has none of."""
    methods = {result.method: result.algo for result in results if result.method is not None}
    have = {(result.method, result.task) for result in results}
    tasks = dict.fromkeys(result.task for result in results if result.method is not None)
    return [
        Result(method, algo, task, "", "missing", "there is no run, other methods have some")
        for method, algo in methods.items()
        for task in tasks
        if (method, task) not in have
    ]
