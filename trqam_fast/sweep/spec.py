"""The file that describes a sweep."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from trqam_fast.agents import algorithm
from trqam_fast.agents.config import Group
from trqam_fast.data.names import LISTED, known_tasks, nearest
from trqam_fast.data.tasks import find_task
from trqam_fast.errors import UsageError
from trqam_fast.kinds import is_a, kind_in_words
from trqam_fast.runs.values import load_toml
from trqam_fast.text import printable
from trqam_fast.training.config import MOST_THREADS, TrainConfig

LARGEST_SPEC = 2**18
"""Bytes of a sweep's file that are read at the most."""
MOST = {"cpus": MOST_THREADS, "gpus": 1, "memory_gb": 2**20, "gpu_memory_gb": 2**20}
"""Of a job's resources."""
DECIDED_HERE = ("env_name", "algo", "seeds", "device", "run_dir", "resume", "overwrite", "agent")

WORD = re.compile(r"[A-Za-z0-9_-]+")
"""The name of a variant, which is a part of folders' names."""


def flags_of(*configs: type[Group]) -> dict[str, Any]:
    """Return the trainer's flags and their types, without those that the sweep itself decides.

    Args:
        configs: The algorithms' configurations.
    """
    kinds: dict[str, Any] = {}
    for config in (TrainConfig, *configs):
        kinds |= get_type_hints(config)
    return {name: kind for name, kind in kinds.items() if name not in DECIDED_HERE}


@dataclass(frozen=True)
class Resources:
    """What one job gets.

    Attributes:
        cpus: Processor cores; also its threads, unless the flags say otherwise.
        gpus: 0 trains on the CPU, 1 on a GPU; with Ray a fraction shares one among several jobs.
        memory_gb: Memory of the host, in 2^30 bytes. Seeds are packed as far as their updates fit
            beside the environments; with Ray no node is given more than it has.
        gpu_memory_gb: Memory of one whole GPU, of which a job may use its fraction.
        time: Limit for Slurm, e.g. "24:00:00".
        partition: Slurm partition.
    """

    cpus: float = 1
    gpus: float = 0
    memory_gb: float = 6
    gpu_memory_gb: float = 24
    time: str | None = None
    partition: str | None = None


class Method(NamedTuple):
    """An algorithm with settings of its own.

    Attributes:
        variant: Name of the variant; empty where the sweep has none.
        fixed: The variant's flags.
        setting: One combination of the grid.
    """

    variant: str
    fixed: dict[str, Any]
    setting: dict[str, Any]

    def name(self, label: str) -> str:
        """Return the algorithm's label, the variant and the combination in words."""
        return " ".join(filter(None, [label, self.variant, *setting_words(self.setting)]))


@dataclass(frozen=True)
class Spec:
    """A sweep.

    Attributes:
        tasks: OGBench single tasks, or environments of one's own.
        algos: Algorithms; bc is the pretraining itself, as a result.
        seeds: Seeds of every task and algorithm.
        seeds_per_job: Most seeds in one process; none leaves it to the memory.
        retries: How often a job whose process or node died is tried again.
        flags: Flags of all runs, by name with underscores.
        task: Flags of the runs of one task.
        algo: Flags of the fine-tuning runs of one algorithm.
        grid: Lists of values by algorithm and flag; every combination is a method of its own.
        variants: Flags by algorithm and a name; each is tried with every combination of the grid.
        resources: What one job gets.
    """

    tasks: tuple[str, ...]
    algos: tuple[str, ...]
    seeds: tuple[int, ...]
    seeds_per_job: int | None = None
    retries: int = 3
    flags: dict[str, Any] = field(default_factory=dict)
    task: dict[str, dict[str, Any]] = field(default_factory=dict)
    algo: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    def methods(self, algo: str) -> list[Method]:
        """Return every variant of an algorithm with every combination of its grid."""
        grid = self.grid.get(algo, {})
        named = self.variants.get(algo, {"": {}})
        return [
            Method(name, flags, dict(zip(grid, values, strict=True)))
            for name, flags in named.items()
            for values in itertools.product(*grid.values())
        ]


def read_spec(path: Path) -> Spec:
    """Read a sweep's file.

    Raises:
        UsageError: there is none, or something in it is wrong: the sentence names it.
    """
    values = load_toml(path, LARGEST_SPEC)
    try:
        return parse_spec(values)
    except UsageError as error:
        raise UsageError(f"{path}: {printable(error, 1000)}") from None


def parse_spec(values: dict[str, Any]) -> Spec:
    """Check what a sweep's file holds.

    Raises:
        UsageError: something is wrong.
    """
    check_names("the file", values, [f.name for f in dataclasses.fields(Spec)])
    for name in ("tasks", "algos", "seeds"):
        listed = values.get(name)
        if not isinstance(listed, list) or not listed:
            raise UsageError(f"{name} is {listed!r}; give a list of one or more")
        if len(set(map(str, listed))) < len(listed):
            raise UsageError(f"{name} is {listed!r}; name each only once")
    grids = table("[grid]", values.get("grid", {}))
    several = table("[variants]", values.get("variants", {}))
    own = table("[algo]", values.get("algo", {}))
    for name in [*values["algos"], *own, *grids, *several]:
        algorithm(str(name))  # refuses what is none
    resources = check_resources(table("[resources]", values.get("resources", {})))
    for name, least in (("seeds_per_job", 1), ("retries", 0)):
        if name in values and (not is_a(values[name], int) or values[name] < least):
            raise UsageError(f"{name} is {values[name]!r}; give a whole number from {least} on")
    for seed in values["seeds"]:
        if not is_a(seed, int) or seed < 0:
            raise UsageError(f"seeds has {seed!r}; give whole numbers from 0 on")
    tasks = tuple(task for name in values["tasks"] for task in expand_task(name))
    if len(set(tasks)) < len(tasks):
        raise UsageError(f"tasks is {values['tasks']!r}; name each only once, stars resolved")
    named = {"flags": table("[flags]", values.get("flags", {}))}
    by_task: dict[str, dict[str, Any]] = {}
    for name, flags in table("[task]", values.get("task", {})).items():
        named[f"task.{name}"] = table(f"[task.{name}]", flags)
        for task in expand_task(name):
            by_task[task] = by_task.get(task, {}) | flags
            check_member("task", name, task, tasks)
    for name, flags in own.items():
        named[f"algo.{name}"] = table(f"[algo.{name}]", flags)
        tuned = [algo for algo in values["algos"] if algorithm(algo).fine_tunes]
        check_member("algo", name, name, tuned)
    common = flags_of(*(algorithm(algo).Config for algo in values["algos"]))
    for title, flags in named.items():
        kind, _, algo = title.partition(".")
        known = flags_of(algorithm(algo).Config) if kind == "algo" else common
        check_flags(title, flags, known)
    for algo, grid in grids.items():
        check_grid(algo, table(f"[grid.{algo}]", grid), values["algos"])
    for algo, variants in several.items():
        check_variants(algo, table(f"[variants.{algo}]", variants), values["algos"], grids)
    return Spec(**values | {
        "tasks": tasks, "algos": tuple(values["algos"]), "seeds": tuple(values["seeds"]),
        "task": by_task, "resources": resources,
    })  # fmt: skip


def table(title: str, value: Any) -> dict[str, Any]:
    """Return a table of the file.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, dict):
        raise UsageError(f"{title} is {value!r}; write a table of names and values")
    return value


def expand_task(name: Any) -> list[str]:
    """Return the tasks that a name stands for: ``task*`` is every task of a dataset by number.

    Raises:
        UsageError: there is none of that name.
    """
    if not isinstance(name, str) or "task*" not in name:
        return [find_task(str(name)).env_name]
    head, _, tail = name.partition("task*")
    known = known_tasks()
    found = [task for n in range(1, 100) if (task := f"{head}task{n}{tail}") in known]
    if not found:
        raise UsageError(
            f"{name!r} stands for no OGBench single task{nearest(name, known, LISTED)}"
        )
    return found


def check_names(where: str, values: dict[str, Any], known: list[str]) -> None:
    """Raise `UsageError` if a name is not among the known ones."""
    for name in values:
        if name not in known:
            raise UsageError(
                f"{where} has {name!r}, which means nothing there"
                + nearest(name, known, "docs/sweeps.md says what a file takes")
            )


def check_member(kind: str, name: str, member: str, known: Sequence[str]) -> None:
    """Raise `UsageError` if a table is for something that the sweep does not have."""
    if member not in known:
        raise UsageError(
            f"[{kind}.{name}] is for none of the sweep's {kind}s that have settings of their own; "
            f"add it to {kind}s or remove the table"
        )


def check_resources(values: dict[str, Any]) -> Resources:
    """Return the resources of a job.

    Raises:
        UsageError: an unknown name or an impossible value.
    """
    check_names("[resources]", values, [f.name for f in dataclasses.fields(Resources)])
    for name in ("cpus", "gpus", "memory_gb", "gpu_memory_gb"):
        value = values.get(name, 1)
        if not is_a(value, float) or not 0 <= value or (value == 0 and name != "gpus"):
            raise UsageError(f"[resources] {name} is {value!r}; give a positive number")
        if value > MOST[name] and name != "gpus":
            raise UsageError(f"[resources] {name} is {value!r}; give {MOST[name]} at the most")
    for name in ("time", "partition"):
        if not isinstance(values.get(name, ""), str):
            raise UsageError(f"[resources] {name} is {values[name]!r}; write it in quotes")
    if values.get("gpus", 0) > 1:
        raise UsageError(
            f"[resources] gpus is {values['gpus']}; a job uses one GPU at most, give 1 or a "
            "fraction"
        )
    return Resources(**values)


def check_flags(where: str, flags: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise `UsageError` if a flag is unknown or its value of another type.

    Args:
        where: Title of the table.
        flags: Values by name.
        known: Types by name.
    """
    check_names(f"[{where}]", flags, list(known))
    for name, value in flags.items():
        if not is_a(value, known[name]):
            raise UsageError(f"[{where}] {name} is {value!r}; give {kind_in_words(known[name])}")


def check_tuned(title: str, algo: str, algos: list[str]) -> None:
    """Raise `UsageError` if a table of methods is for nothing that the sweep fine-tunes."""
    if algo not in algos or not algorithm(algo).fine_tunes:
        raise UsageError(
            f"[{title}.{algo}] is for no fine-tuning algorithm of the sweep; add it to algos or "
            "remove the table"
        )


def check_grid(algo: str, grid: dict[str, Any], algos: list[str]) -> None:
    """Raise `UsageError` if the grid of an algorithm is not lists of flags' values."""
    check_tuned("grid", algo, algos)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"[grid.{algo}] {name} is {values!r}; give a list of values")
        if any(values.count(value) > 1 for value in values):
            raise UsageError(f"[grid.{algo}] {name} is {values!r}; give each value only once")
        for value in values:
            check_flags(f"grid.{algo}", {name: value}, flags_of(algorithm(algo).Config))


def check_variants(
    algo: str, variants: dict[str, Any], algos: list[str], grids: dict[str, dict[str, Any]]
) -> None:
    """Raise `UsageError` if the variants of an algorithm are not names with flags of their own."""
    check_tuned("variants", algo, algos)
    if not variants:
        raise UsageError(f"[variants.{algo}] is empty; name one or more, or remove the table")
    for name, flags in variants.items():
        title = f"variants.{algo}.{name}"
        if not WORD.fullmatch(name):
            raise UsageError(
                f"[variants.{algo}] has {name!r}; name it by letters, digits, '-' and '_'"
            )
        check_flags(title, table(f"[{title}]", flags), flags_of(algorithm(algo).Config))
        for flag in flags:
            if flag in grids.get(algo, {}):
                raise UsageError(
                    f"[{title}] has {flag}, which [grid.{algo}] varies; keep it in one of them"
                )


def setting_words(setting: dict[str, Any]) -> list[str]:
    """Return a combination of a grid in words: a flag's name and its value for each."""
    words = []
    for name, value in setting.items():
        values = value if isinstance(value, list) else [value]
        words.append(f"{name.replace('_', '-')} {'x'.join(map(str, values))}")
    return words
