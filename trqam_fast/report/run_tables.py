"""The tables of the page of one run or of several: what ran, what came of it, what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trqam_fast.report.table import Cell, Column, Part, Table, bad, cell, small, words
from trqam_fast.runs.read import Run
from trqam_fast.text import exact_duration

SEEDS_SHOWN = 8

# Settings that tell runs apart but say nothing about them.
NO_SETTINGS = {"run_dir"}
NOTHING = "–"


def runs(found: list[Run]) -> Table:
    """What ran, success after each stage, time, state."""
    stages = list(dict.fromkeys(stage for run in found for stage in run.stages))

    def setting(name: str) -> Callable[[Run], Cell]:
        return lambda run: cell(text_of(run.config.get(name)))

    def settled(name: str) -> Callable[[Run], Cell]:
        return lambda run: cell(text_of(run.summary.get(name, run.config.get(name))))

    def version(*names: str) -> Callable[[Run], Cell]:
        return lambda run: cell(
            text_of(next((run.versions[name] for name in names if name in run.versions), None))
        )

    columns: list[tuple[str, Callable[[Run], Cell], bool]] = [
        ("state", lambda run: cell(state(run)), False),
        *((f"after {stage}", lambda run, stage=stage: success(run, stage), True)
          for stage in stages),
        ("time", time, True),
        ("updates/s", rates, False),
        ("time by part", parts, False),
        ("of the online stage", shares, False),
        ("task", setting("env_name"), False),
        ("algorithm", setting("algo"), False),
        ("seeds", lambda run: cell(text_of(run.seeds)), False),
        ("KL budget", budget, True),
        ("backend", settled("backend"), False),
        ("precision", settled("precision"), False),
        ("trqam_fast", version("trqam_fast"), False),
        ("torch", version("torch"), False),
        ("machine", version("gpu", "cpu"), False),
        ("folder", lambda run: cell(text_of(run.path)), False),
    ]  # fmt: skip
    filled = [Column(name, [fill(run) for run in found], numeric=number)
              for name, fill, number in columns]  # fmt: skip
    return Table([words("run", [run.name for run in found]), *filled])


def text_of(value: Any) -> str:
    """A value as text; lists without brackets, a dash for nothing."""
    if isinstance(value, (list, tuple)):
        value = " ".join(str(item) for item in value)
    if value is None or value == "":
        return NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def state(run: Run) -> Part | str:
    """Whether the run has ended well."""
    if run.summary.get("failures"):
        return bad(f"{len(run.summary['failures'])} of {len(run.seeds)} seeds failed")
    if not run.summary:
        return bad("not finished")
    return bad("finished, see above") if run.problems else "finished"


def success(run: Run, stage: str) -> Cell:
    """Success after a stage with its interval, and the seeds it lacks."""
    found = run.success_after(stage)
    if found is None:
        return cell(NOTHING)
    (value, low, high), by_seed = found
    lines: list[Any] = [[f"{100 * value:.0f} %", small(f"{100 * low:.0f} to {100 * high:.0f}")]]
    if 1 < len(by_seed) <= SEEDS_SHOWN:
        each = " ".join(f"{100 * rate:.0f}" for rate in by_seed)
        lines.append(small(f"seeds: {each}"))
    if len(by_seed) < len(run.seeds):
        lines.append(bad(f"{len(by_seed)} of {len(run.seeds)} seeds"))
    return cell(*lines)


def time(run: Run) -> Cell:
    """The time of all parts together."""
    spent = seconds_of(run)
    return cell(exact_duration(sum(spent.values())) if spent else NOTHING)


def parts(run: Run) -> Cell:
    """The time of every part."""
    spent = [f"{name} {exact_duration(value)}" for name, value in seconds_of(run).items()]
    return cell(", ".join(spent) or NOTHING)


def seconds_of(run: Run) -> dict[str, float]:
    """Seconds by part of the run, without those that took none."""
    seconds = run.summary.get("seconds")
    numbers = seconds if isinstance(seconds, dict) else {}
    return {str(name): float(value) for name, value in numbers.items() if value}


def shares(run: Run) -> Cell:
    """Shares of the online stage that went to learning, acting, waiting and simulating."""
    online, total = run.summary.get("online_seconds"), seconds_of(run).get("online", 0.0)
    if not isinstance(online, dict) or not online or total <= 0:
        return cell(NOTHING)
    return cell(", ".join(f"{name} {float(t) / total:.0%}" for name, t in online.items()))


def rates(run: Run) -> Cell:
    """Updates per second of each stage."""
    found = run.summary.get("updates_per_second")
    if not isinstance(found, dict) or not found:
        return cell(NOTHING)
    return cell(", ".join(f"{stage} {float(rate):.1f}" for stage, rate in found.items()))


def budget(run: Run) -> Cell:
    """Path-KL budgets of the stages."""
    budgets = dict.fromkeys(run.budget(stage) for stage in run.stages)
    return cell(text_of([f"{budget:g}" for budget in budgets if budget is not None]))


def differences(found: list[Run]) -> Table | None:
    """The settings that are not the same in all runs; None if there are none."""
    names = dict.fromkeys(name for run in found for name in run.config if name not in NO_SETTINGS)
    columns = []
    for name in names:
        values = [text_of(run.config.get(name)) for run in found]
        if len(set(values)) > 1:
            columns.append(words(f"--{name.replace('_', '-')}", values))
    return Table([words("run", [run.name for run in found]), *columns]) if columns else None


def versions(found: list[Run]) -> Table:
    """The versions of everything that the numbers depend on."""
    names = dict.fromkeys(name for run in found for name in run.versions)
    columns = [words(name, [text_of(run.versions.get(name)) for run in found]) for name in names]
    return Table([words("run", [run.name for run in found]), *columns])
