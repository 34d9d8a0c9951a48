"""From a sweep's file to jobs: which processes run, with which flags, after which others."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trqam_fast.agents import AgentConfig, Algorithm
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import write_json
from trqam_fast.memory import update_bytes
from trqam_fast.sweep.spec import Spec
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.presets import in_words, parse_config

FORMAT = 1
NAMES = {"bc": "BC", "qam": "QAM", "qam-e": "QAM-E", "trqam": "TRQAM"}

# The widest observation and action of OGBench's tasks with states, rounded up.
WIDEST_OBSERVATION, WIDEST_ACTION = 128, 21

# What a job needs beside its updates: torch, the simulators, the data, evaluations.
OTHER_BYTES = 2**30

# Flags that belong to pretraining alone, and those that it has no use for.
PRETRAINING_ALONE = ("bc_steps", "pretrained")
FINE_TUNING_ALONE = ("offline_steps", "online_steps")

# What a fine-tuning run and its pretraining must have in common.
SHARED = (
    "env_name", "dataset_dir", "generated", "generated_dir", "generated_transitions",
    "generated_noise", "generated_seed", "actor_hidden_dims", "actor_layer_norm",
    "horizon_length", "action_chunking", "flow_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One process of the trainer.

    Attributes:
        name: Unique in the sweep, and a path: ``<task>/<method>/seeds_<seeds>``.
        env_name: The task.
        algo: The algorithm; pretraining is bc.
        method: Its name in tables, None for a pretraining that is no result of its own.
        seeds: Runs packed into the process.
        after: Name of the job whose result it starts from.
        flags: The trainer's flags, without --run-dir and --resume.
    """

    name: str
    env_name: str
    algo: Algorithm
    method: str | None
    seeds: tuple[int, ...]
    after: str | None
    flags: tuple[str, ...]

    def run_dir(self, out: Path) -> Path:
        """Return its run folder."""
        return out / "runs" / self.name

    def log(self, out: Path) -> Path:
        """Return where what it prints goes."""
        return out / "logs" / f"{self.name}.log"


def make_plan(spec: Spec, out: Path) -> list[Job]:
    """Return the jobs of a sweep, pretraining first.

    Args:
        spec: The sweep.
        out: Its folder; seeds that a plan there has packed together stay so.

    Raises:
        UsageError: flags that no run can have.
    """
    out, groups = out.resolve(), groups_of(out)
    pretraining: list[Job] = []
    fine_tuning: list[Job] = []
    for env_name in spec.tasks:
        common = defaults(spec) | spec.flags | spec.task.get(env_name, {})
        shared = {k: v for k, v in common.items() if k not in FINE_TUNING_ALONE}
        tuned = {k: v for k, v in common.items() if k != "bc_steps"}
        start = common.get("pretrained")
        if start is not None and "bc" in spec.algos:
            raise UsageError(
                f"algos has bc, but pretrained is {start!r}, so nothing is cloned; remove one"
            )
        if start is not None and "bc_steps" in common:
            raise UsageError(
                f"bc_steps is {common['bc_steps']}, but pretrained is {start!r}; remove one"
            )
        configs = [config_of(env_name, "bc", shared)] if start is None else []
        methods: list[tuple[Algorithm, str, dict[str, Any]]] = []
        for algo in spec.algos:
            for setting in spec.methods(algo) if algo != "bc" else ():
                own = spec.algo.get(algo, {}) | setting
                methods.append(
                    (algo, " ".join([NAMES[algo], *setting_words(setting)]), tuned | own)
                )
                check_own(algo, own)
                configs.append(check_shared(env_name, algo, tuned | own, configs))
        for seeds in packed(spec, configs, groups.get(env_name, [])):
            tail = f"seeds_{'_'.join(map(str, seeds))}"
            first = None
            if start is None:
                method = NAMES["bc"] if "bc" in spec.algos else None
                name = f"{env_name}/bc/{tail}"
                first = Job(
                    name, env_name, "bc", method, seeds, None,
                    command_line(env_name, "bc", seeds, shared),
                )  # fmt: skip
                pretraining.append(first)
            for algo, method, flags in methods:
                folder = "_".join([algo, *method.split()[1:]])
                if first is not None:
                    flags = flags | {"pretrained": str(first.run_dir(out))}
                fine_tuning.append(
                    Job(
                        f"{env_name}/{folder}/{tail}", env_name, algo, method, seeds,
                        None if first is None else first.name,
                        command_line(env_name, algo, seeds, flags),
                    )
                )  # fmt: skip
    return [*pretraining, *fine_tuning]


def defaults(spec: Spec) -> dict[str, Any]:
    """Return flags that follow from the resources of a job."""
    gpu = {"device": "cuda"} if spec.resources.gpus > 0 else {}
    return {"threads": max(1, int(spec.resources.cpus))} | gpu


def config_of(env_name: str, algo: str, flags: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run, checked, though perhaps not on its own machine.

    Raises:
        UsageError: impossible values.
    """
    return parse_config([*command_line(env_name, algo, (0,), flags), "--device", "cpu"])


def config_of_job(job: Job) -> TrainConfig:
    """Return the configuration of a job, checked, though perhaps not on its own machine."""
    return parse_config([*job.flags, "--device", "cpu"])


def groups_of(out: Path) -> dict[str, list[tuple[int, ...]]]:
    """Return the seeds that the plan in a sweep's folder packs together, by task."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for job in read_plan(out) if (out / "plan.json").exists() else ():
        found = groups.setdefault(job.env_name, [])
        if job.seeds not in found:
            found.append(job.seeds)
    return groups


def check_own(algo: str, own: dict[str, Any]) -> None:
    """Raise `UsageError` if an algorithm's own flags are about the pretraining that all share."""
    for name in PRETRAINING_ALONE:
        if name in own:
            raise UsageError(
                f"{name} of {algo} is {own[name]!r}, but pretraining is shared; set it under "
                "[flags] or [task]"
            )


def check_shared(
    env_name: str, algo: str, flags: dict[str, Any], others: list[TrainConfig]
) -> TrainConfig:
    """Return the configuration of a fine-tuning run.

    Raises:
        UsageError: impossible values, or other data or another field than its pretraining has.
    """
    config = config_of(env_name, algo, {"pretrained": "shared"} | flags)
    if others:
        ours, theirs = config.to_dict(), others[0].to_dict()
        for name in SHARED:
            if ours[name] != theirs[name]:
                raise UsageError(
                    f"{name} of {algo} on {env_name} is {in_words(ours[name])}, but it shares its "
                    f"pretraining, which has {in_words(theirs[name])}; set it under [flags] or "
                    "[task]"
                )
    return config


def setting_words(setting: dict[str, Any]) -> list[str]:
    """Return a combination of a grid in words: a flag's name and its value for each."""
    words = []
    for name, value in setting.items():
        values = value if isinstance(value, list) else [value]
        words.append(f"{name.replace('_', '-')} {'x'.join(map(str, values))}")
    return words


def command_line(
    env_name: str, algo: str, seeds: tuple[int, ...], flags: dict[str, Any]
) -> tuple[str, ...]:
    """Return flags as the trainer reads them; folders are made absolute."""
    words = ["--env-name", env_name, "--algo", algo, "--seeds", *map(str, seeds)]
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
            continue
        if name.endswith("_dir") or name == "pretrained":
            value = os.path.abspath(os.path.expanduser(value))
        words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return tuple(words)


def packed(
    spec: Spec, configs: list[TrainConfig], groups: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Return the seeds in groups of one process, as large as memory and `seeds_per_job` allow.

    All jobs of a task have the same groups, since each starts from one pretraining. Of the
    `groups` that there are already, those within the sweep's seeds stay.
    """
    most = min(seeds_that_fit(spec, config) for config in configs)
    most = min(most, spec.seeds_per_job or most)
    kept: list[tuple[int, ...]] = []
    left = list(spec.seeds)
    for group in groups:
        if set(group) <= set(left):
            kept.append(group)
            left = [seed for seed in left if seed not in group]
    if not left:
        return kept
    size = -(-len(left) // -(-len(left) // most))
    return [*kept, *(tuple(left[i : i + size]) for i in range(0, len(left), size))]


def seeds_that_fit(spec: Spec, config: TrainConfig) -> int:
    """Return how many seeds of a run fit into a job's memory, at least one."""
    resources = spec.resources
    room = resources.memory_gb * 2**30 - OTHER_BYTES
    if resources.gpus > 0:
        room = resources.gpu_memory_gb * resources.gpus * 2**30 - OTHER_BYTES
    threads = max(1, int(resources.cpus))
    one, two = (
        sum(run_bytes(config.agent, runs, threads).values()) for runs in (1, 2)
    )  # fmt: skip
    return max(1, 1 + int((room - one) // (two - one)))


def run_bytes(agent: AgentConfig, runs: int, threads: int) -> dict[str, int]:
    """Bound the memory of a process's updates, and of the weights that it keeps beside them."""
    sizes = update_bytes(agent, WIDEST_OBSERVATION, WIDEST_ACTION, runs=runs, threads=threads)
    return sizes | {"last good weights": sizes["held"]}


def write_plan(jobs: list[Job], out: Path) -> None:
    """Write plan.json; jobs that are there and not among `jobs` stay in it.

    Raises:
        UsageError: the folder holds a sweep in which one of them has other flags.
        RunError: it cannot be written.
    """
    path = out / "plan.json"
    if path.exists():
        before = {job.name: job for job in read_plan(out)}
        for job in jobs:
            changed = differences(before.get(job.name, job), job)
            if changed:
                raise UsageError(
                    f"--out {out} holds a sweep in which {job.name} has other flags: "
                    f"{'; '.join(changed)}; name another folder"
                )
        named = {job.name for job in jobs}
        jobs = [*jobs, *(job for name, job in before.items() if name not in named)]
    values = {"format": FORMAT, "jobs": [dataclasses.asdict(job) for job in jobs]}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, values)
    except OSError as error:
        raise RunError(f"cannot write to --out {out}: {error.strerror}") from None


def differences(before: Job, now: Job) -> list[str]:
    """Return how the flags of two jobs of one name differ, in words.

    Where a job starts from another one, its folder may have moved with the sweep's.
    """
    old, new = by_flag(before), by_flag(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if before.after == now.after and now.after is not None:
        names = [name for name in names if name != "--pretrained"]
    return [f"{name} {old.get(name, 'unset')} became {new.get(name, 'unset')}" for name in names]


def by_flag(job: Job) -> dict[str, str]:
    """Return the values of a job's flags in words, by flag."""
    values: dict[str, list[str]] = {}
    flag = ""
    for word in job.flags:
        if word.startswith("--"):
            flag = word
            values[flag] = []
        else:
            values[flag].append(word)
    return {name: " ".join(words) or "given" for name, words in values.items()}


def read_plan(out: Path) -> list[Job]:
    """Read the jobs of a sweep's folder.

    Raises:
        UsageError: there is no plan, or it is damaged.
    """
    path = out / "plan.json"
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']}")
        return [
            Job(**job | {"seeds": tuple(job["seeds"]), "flags": tuple(job["flags"])})
            for job in values["jobs"]
        ]
    except OSError as error:
        raise UsageError(f"{out} holds no sweep ({error.strerror}: plan.json)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); write it again by a sweep") from None
