"""From a sweep's file to jobs: which processes run, with which flags, after which others."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trqam_fast.agents import algorithm
from trqam_fast.agents.config import FlowConfig, names_of
from trqam_fast.damage import reading
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import read_text, write_json
from trqam_fast.runs.folder import folder_name
from trqam_fast.sweep.memory import seeds_that_fit
from trqam_fast.sweep.spec import Spec
from trqam_fast.text import printable
from trqam_fast.training.config import DataConfig, TrainConfig, run_flags
from trqam_fast.training.flags import parse_config
from trqam_fast.training.presets import flag_of, make_config, value_in_words
from trqam_fast.training.start import RESUMABLE

FORMAT = 2
LONGEST = 220
"""Letters that the seeds may take of a name; file systems allow 255, with what is added to it."""
CLONING = "bc"
"""The algorithm that pretrains."""

# Flags that belong to pretraining alone, and those that it has no use for.
PRETRAINING_ALONE = ("bc_steps", "pretrained", "pretrained_seed")
FINE_TUNING_ALONE = ("offline_steps", "online_steps")

# What a fine-tuning run and its pretraining must have in common: data, fields, action sequences.
SHARED = ("env_name", *names_of(DataConfig), *names_of(FlowConfig))
OWN = ("sparse",)
"""Of these, what a cloned field does not depend on."""

CHANGEABLE = RESUMABLE - {
    "bc_steps", "offline_steps", "online_steps", "dataset", "dataset_dir", "generated_dir"
}  # fmt: skip
"""What a later sweep into the same folder may have otherwise. Not its data: a finished job is not
looked at again, and what starts from it would not know."""
LAST_STAGE = {False: "offline_steps", True: "online_steps"}
"""The length that may grow, by whether there is an online stage."""


@dataclass(frozen=True)
class Job:
    """One process of the trainer.

    Attributes:
        name: Unique in the sweep, and a path: ``<task>/<method>/seeds_<seeds>``.
        env_name: The task.
        algo: The algorithm.
        method: Its name in tables, None for a pretraining that is no result of its own.
        seeds: Runs packed into the process.
        after: Name of the job whose result it starts from.
        config: The trainer's configuration as plain values, without a run folder.
    """

    name: str
    env_name: str
    algo: str
    method: str | None
    seeds: tuple[int, ...]
    after: str | None
    config: Mapping[str, Any]

    @property
    def pretrains(self) -> bool:
        """Whether others start from it."""
        return not algorithm(self.algo).fine_tunes

    def train_config(self, **changes: Any) -> TrainConfig:
        """Return its configuration, checked; by default as if for this machine's CPU.

        Args:
            changes: Values to replace, such as the folder and the device.

        Raises:
            UsageError: impossible values.
        """
        return TrainConfig.from_dict({**self.config, "device": "cpu", **changes})

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
        if start is not None and CLONING in spec.algos:
            raise UsageError(
                f"algos has {CLONING}, but pretrained is {start!r}, so nothing is cloned; remove "
                "one"
            )
        if start is not None and "bc_steps" in common:
            raise UsageError(
                f"bc_steps is {common['bc_steps']}, but pretrained is {start!r}; remove one"
            )
        cloning = None if start is not None else config_of(env_name, CLONING, shared)
        methods: list[tuple[str, str, TrainConfig]] = []
        for algo in spec.algos:
            for chosen in spec.methods(algo) if algo != CLONING else ():
                own = spec.algo.get(algo, {}) | chosen.fixed | chosen.setting
                check_own(algo, own)
                flags = tuned | own
                if cloning is not None:
                    flags = flags | {"pretrained": "shared"}
                config = config_of(env_name, algo, flags)
                check_shared(config, cloning)
                methods.append((algo, chosen.name(algorithm(algo).label), config))
        configs = [config for _, _, config in methods] + ([cloning] if cloning else [])
        for seeds in packed(spec, configs, groups.get(env_name, [])):
            tail = seeds_folder(seeds)
            first = None
            if cloning is not None:
                method = algorithm(CLONING).label if CLONING in spec.algos else None
                name = f"{folder_name(env_name)}/{CLONING}/{tail}"
                values = plain(cloning, spec, seeds)
                first = Job(name, env_name, CLONING, method, seeds, None, values)
                pretraining.append(first)
            for algo, method, config in methods:
                folder = one_folder("_".join([folder_name(algo), *method.split()[1:]]))
                values = plain(config, spec, seeds)
                if first is not None:
                    values["pretrained"] = str(first.run_dir(out))
                fine_tuning.append(
                    Job(
                        f"{folder_name(env_name)}/{folder}/{tail}", env_name, algo, method, seeds,
                        None if first is None else first.name, values,
                    )
                )  # fmt: skip
    jobs = [*pretraining, *fine_tuning]
    check_different(jobs)
    return jobs


def one_folder(name: str) -> str:
    """Return a name as that of one folder: values of flags may be paths."""
    return re.sub(r"[^\w.,=+-]", "_", name)


def check_different(jobs: list[Job]) -> None:
    """Raise `UsageError` if two jobs have one name."""
    names = [job.name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"two methods of the sweep would have the folder {printable(name, 400)}; let the "
                "values in [grid] differ in letters or digits"
            )


def defaults(spec: Spec) -> dict[str, Any]:
    """Return flags that follow from the resources of a job."""
    return {"threads": max(1, int(spec.resources.cpus))}


def config_of(env_name: str, algo: str, flags: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run, checked, as if for this machine's CPU.

    Flags that only other algorithms use are left out; folders are made absolute.

    Raises:
        UsageError: impossible values.
    """
    known = {*run_flags(), *names_of(algorithm(algo).Config)}
    flags = {name: value for name, value in flags.items() if name in known}
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in flags.items()}
    for name in (name for name in values if name.endswith("_dir") or name == "pretrained"):
        values[name] = Path(os.path.abspath(os.path.expanduser(values[name])))
    preset = values.pop("preset", None)
    values["device"] = "cpu"
    return make_config(env_name, algo, preset, **values)


def plain(config: TrainConfig, spec: Spec, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return a job's configuration, as JSON has it, for its seeds and the device that it gets."""
    values = config.to_dict() | {"seeds": seeds}
    if spec.resources.gpus > 0:
        values["device"] = "cuda"
    return json.loads(json.dumps(values))


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


def check_shared(config: TrainConfig, cloning: TrainConfig | None) -> None:
    """Raise `UsageError` if a run has other data or another field than its pretraining has."""
    if cloning is None:
        return
    ours, theirs = config.to_dict(), cloning.to_dict()
    for name in SHARED:
        if name not in OWN and ours[name] != theirs[name]:
            raise UsageError(
                f"{name} of {config.algo} on {config.env_name} is {value_in_words(ours[name])}, "
                f"but it shares its pretraining, which has {value_in_words(theirs[name])}; set it "
                "under [flags] or [task]"
            )


def seeds_folder(seeds: tuple[int, ...]) -> str:
    """Return the name of the folder of some seeds, which a file system takes however many."""
    names = "_".join(map(str, seeds))
    if len(names) > LONGEST:
        names = f"{seeds[0]}_to_{seeds[-1]}_{zlib.crc32(names.encode()):08x}"
    return f"seeds_{names}"


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
    """Return how the configurations of two jobs of one name differ, in words.

    What a run may be continued with does not count, nor more steps at its end, nor a value that one
    of them does not know, being of another version. Where a job starts from another one, its folder
    may have moved with the sweep's.
    """
    moved = before.after == now.after and now.after is not None
    words = []
    for name, value in now.config.items():
        old = before.config.get(name, value)
        last = name == LAST_STAGE[bool(before.config.get("online_steps"))]
        if last and isinstance(old, int) and value >= old:
            continue
        if name in CHANGEABLE:
            continue
        if value_in_words(old) != value_in_words(value) and not (moved and name == "pretrained"):
            words.append(f"{flag_of(name)} {value_in_words(old)} became {value_in_words(value)}")
    return words


def read_plan(out: Path) -> list[Job]:
    """Read the jobs of a sweep's folder.

    Raises:
        UsageError: there is no plan, or it is damaged.
    """
    path = out / "plan.json"
    with reading(path, "is damaged", "write it again by a sweep"):
        try:
            values = json.loads(read_text(path))
        except FileNotFoundError as error:
            raise UsageError(f"{out} holds no sweep ({error.strerror}: plan.json)") from None
        if values["format"] not in (1, FORMAT):
            raise ValueError(f"it has format {printable(values['format'])}")
        if values["format"] == 1:
            jobs = [job_from_flags(job) for job in values["jobs"]]
        else:
            jobs = [Job(**job | {"seeds": tuple(job["seeds"])}) for job in values["jobs"]]
        for job in jobs:
            check_job(job)
        return jobs


def check_job(job: Job) -> None:
    """Raise `ValueError` if a job of a plan is not what this package writes.

    Its name is a path inside the sweep's folder, and nowhere else.
    """
    texts, optional = (job.name, job.env_name, job.algo), (job.method, job.after)
    if not all(isinstance(text, str) for text in (*texts, *(t for t in optional if t is not None))):
        raise ValueError("a job's name, task, algorithm or method is no text")
    for name in (job.name, job.after or job.name):
        parts = name.split("/")
        if not all(parts) or {".", ".."} & set(parts) or not name.isprintable():
            raise ValueError(f"a job is named {printable(name)}, which leads out of the sweep")
    if not job.seeds or not all(type(seed) is int and seed >= 0 for seed in job.seeds):
        raise ValueError(f"the seeds of {printable(job.name)} are no whole numbers")
    if not isinstance(job.config, dict):
        raise ValueError(f"the flags of {printable(job.name)} are none")


def job_from_flags(job: dict[str, Any]) -> Job:
    """Return a job of format 1, which held the trainer's command line."""
    words = list(job.pop("flags"))
    device = words[words.index("--device") + 1] if "--device" in words else "cpu"
    config = parse_config([*words, "--device", "cpu"]).to_dict() | {"device": device}
    config = json.loads(json.dumps(config))
    return Job(**job | {"seeds": tuple(job["seeds"]), "config": config})
