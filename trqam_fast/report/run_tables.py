"""The tables of the page of one run or of several: what ran, what came of it, what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trqam_fast.agents import ALGORITHMS
from trqam_fast.agents.config import Group, groups_of, names_of
from trqam_fast.evaluation.statistics import success_interval
from trqam_fast.report.comparison import short_task
from trqam_fast.report.table import (
    DASH,
    LONGEST,
    Cell,
    Column,
    Part,
    Table,
    bad,
    cell,
    small,
    words,
)
from trqam_fast.runs.plots import title_of
from trqam_fast.runs.read import Run
from trqam_fast.runs.values import is_amount, is_number
from trqam_fast.text import count_of, exact_duration, printable
from trqam_fast.training.config import OGBENCH_DATA, TrainConfig
from trqam_fast.training.presets import flag_of

SEEDS_SHOWN = 8

# Settings that tell runs apart but say nothing about them.
NO_SETTINGS = {"run_dir"}
OWN = "Settings of an algorithm that is not of this package"


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
        ("algorithm", lambda run: cell(run.algorithm.label), False),
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
    table = Table([words("run", [run.name for run in found]), *filled])
    return table.upright() if len(found) == 1 else table


def title(found: list[Run]) -> str:
    """What ran on what."""
    tasks = list(
        dict.fromkeys(text_of(run.config.get("env_name", "unknown task")) for run in found)
    )
    methods = dict.fromkeys(run.algorithm.label or "unknown algorithm" for run in found)
    where = short_task(tasks[0]) if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{', '.join(methods)} on {where}"


def headline(found: list[Run]) -> str:
    """Success at the last evaluation of each run, the best first."""
    results = []
    for run in found:
        evaluated = [(stage, run.success_after(stage)) for stage in run.stages]
        known = [(stage, result) for stage, result in evaluated if result is not None]
        if known:
            stage, ((value, low, high), by_seed) = known[-1]
            text = f"{title_of(run, found)} {100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            base = f" after {stage}, {count_of(len(by_seed), 'seed')}"
            episodes = run.episodes_after(stage)
            base += f" of {count_of(episodes, 'episode')}" if episodes else ""
            results.append((value, text, base))
    results.sort(key=lambda result: -result[0])
    if len({base for *_, base in results}) == 1:  # what all rest on is said once
        return ", ".join(text for _, text, _ in results) + results[0][2]
    return "; ".join(text + base for _, text, base in results) or "Nothing was evaluated yet"


def settings(found: list[Run], differing: bool = False) -> Table | None:
    """Every setting of every run, group by group; None if there are none.

    Args:
        found: The runs.
        differing: Whether only those that are not the same for all runs that use them.
    """
    kinds: list[type[Group]] = [TrainConfig, *(kind.Config for kind in ALGORITHMS.values())]
    groups = {
        name: str(group.__doc__).partition("\n")[0].rstrip(".")
        for kind in reversed(kinds)
        for group, names in groups_of(kind).items()
        for name in names
    }
    texts = [{n: text_of(v) for n, v in run.config.items() if is_used(n, run)} for run in found]
    known = dict.fromkeys(name for own in texts for name in own)
    if differing:
        known = {n: None for n in known if len({own[n] for own in texts if n in own}) > 1}
    order = list(dict.fromkeys(groups.get(name, OWN) for kind in kinds for name in names_of(kind)))
    names = sorted(known, key=lambda name: [*order, OWN].index(groups.get(name, OWN)))
    sections: dict[int, str] = {}
    for number, name in enumerate(names):
        group = groups.get(name, OWN)
        if group not in sections.values():
            sections[number] = group
    values = [
        Column(title_of(run, found), [cell(own.get(n, DASH)) for n in names], (), False)
        for run, own in zip(found, texts, strict=True)
    ]
    return Table([words("flag", [flag_of(n) for n in names]), *values], sections) if names else None


def is_used(name: str, run: Run) -> bool:
    """Return whether an entry of a run's configuration is a setting that says something of it."""
    return name not in NO_SETTINGS and not (run.own_data and name in OGBENCH_DATA)


def evaluations(found: list[Run]) -> Table | None:
    """What ``python -m trqam_fast.evaluate`` found, over all episodes; None if it did not run."""
    rows = []
    for run in found:
        for folder, values in run.tested.items():
            pooled = values.get("pooled")
            if isinstance(pooled, dict) and all(
                is_number(one.get("success")) and is_amount(one.get("episodes"))
                for one in (pooled, *dicts(values.get("by_seed")))
            ):
                rows.append((title_of(run, found), folder, values, pooled))
    if not rows:
        return None

    def interval(values: dict[str, Any], pooled: dict[str, Any]) -> list[str | Part]:
        rates = [float(row["success"]) for row in dicts(values.get("by_seed"))]
        low, high = success_interval(rates or [pooled["success"]], int(pooled["episodes"]))
        return [
            f"{100 * pooled['success']:.1f} %",
            small(f"[{100 * low:.1f}, {100 * high:.1f}]"),
        ]

    return Table(
        [
            words("run", [name for name, *_ in rows]),
            Column("success", [cell(interval(values, pooled)) for _, _, values, pooled in rows]),
            Column("episodes", [cell(text_of(pooled.get("episodes"))) for *_, pooled in rows]),
            words("stage", [text_of(values.get("stage")) for _, _, values, _ in rows]),
            Column("step", [cell(text_of(values.get("step"))) for _, _, values, _ in rows]),
            words("folder", [f"evaluation/{folder}" for _, folder, *_ in rows]),
        ]
    )


def dicts(values: Any) -> list[dict[str, Any]]:
    """The dictionaries among what a dictionary holds."""
    found = values.values() if isinstance(values, dict) else ()
    return [value for value in found if isinstance(value, dict)]


def text_of(value: Any) -> str:
    """A value as text; lists without brackets, a dash for nothing."""
    if isinstance(value, (list, tuple)):
        value = " ".join(printable(item, LONGEST) for item in value)
    if value is None or value == "":
        return DASH
    return f"{value:g}" if isinstance(value, float) else printable(value, LONGEST)


def state(run: Run) -> Part | str:
    """Whether the run has ended well."""
    if run.failures:
        return bad(f"{len(run.failures)} of {len(run.seeds)} seeds failed")
    if not run.summary:
        return bad("not finished")
    return bad("finished, see above") if run.problems else "finished"


def success(run: Run, stage: str) -> Cell:
    """Success after a stage with its interval, an own task's return, and the seeds it lacks."""
    found = run.success_after(stage)
    if found is None:
        return cell(DASH)
    (value, low, high), by_seed = found
    lines: list[Any] = [[f"{100 * value:.1f} %", small(f"[{100 * low:.1f}, {100 * high:.1f}]")]]
    if 1 < len(by_seed) <= SEEDS_SHOWN:
        each = " ".join(f"{100 * rate:.1f}" for rate in by_seed)
        lines.append(small(f"seeds: {each}"))
    returns = [point.value for point in run.curve("return") if point.stage == stage]
    if run.own_data and returns:
        lines.append(small(f"return {returns[-1]:.6g}"))
    if len(by_seed) < len(run.seeds):
        lines.append(bad(f"{len(by_seed)} of {len(run.seeds)} seeds"))
    return cell(*lines)


def time(run: Run) -> Cell:
    """The time of all parts together."""
    spent = seconds_of(run)
    return cell(exact_duration(sum(spent.values())) if spent else DASH)


def parts(run: Run) -> Cell:
    """The time of every part."""
    spent = [f"{name} {exact_duration(value)}" for name, value in seconds_of(run).items()]
    return cell(", ".join(spent) or DASH)


def seconds_of(run: Run) -> dict[str, float]:
    """Seconds by part of the run, without those that took none."""
    return {name: value for name, value in run.summary.get("seconds", {}).items() if value}


def shares(run: Run) -> Cell:
    """Shares of the online stage that went to learning, acting, waiting and simulating."""
    online, total = run.summary.get("online_seconds"), seconds_of(run).get("online", 0.0)
    if not online or total <= 0:
        return cell(DASH)
    return cell(", ".join(f"{name} {part / total:.0%}" for name, part in online.items()))


def rates(run: Run) -> Cell:
    """Updates per second of each stage."""
    found = run.summary.get("updates_per_second", {})
    return cell(", ".join(f"{stage} {rate:.1f}" for stage, rate in found.items()) or DASH)


def budget(run: Run) -> Cell:
    """Path-KL budgets of the stages."""
    budgets = dict.fromkeys(run.budget(stage) for stage in run.stages)
    return cell(text_of([f"{budget:g}" for budget in budgets if budget is not None]))


def versions(found: list[Run]) -> Table:
    """The versions of everything that the numbers depend on."""
    names = dict.fromkeys(name for run in found for name in run.versions)
    columns = [words(name, [text_of(run.versions.get(name)) for run in found]) for name in names]
    table = Table([words("run", [run.name for run in found]), *columns])
    return table.upright() if len(found) == 1 else table
