"""Keeps runs with different settings apart: only those that agree make one method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trqam_fast.agents import ALGORITHMS
from trqam_fast.agents.config import names_of
from trqam_fast.report.authors import AUTHORS
from trqam_fast.report.collect import Result
from trqam_fast.report.table import LONGEST
from trqam_fast.text import printable
from trqam_fast.training.config import OGBENCH_DATA, run_flags

MOST_IN_A_NAME = 3
"""Settings that a method's name can hold; with more it is a variant with a number."""

# Settings that runs of one method may differ in.
FREE = {
    "env_name", "algo", "seeds", "run_dir", "preset", "pretrained", "pretrained_seed", "device",
    "backend", "plan", "graph", "streams", "threads", "dataset_dir", "generated_dir",
    "log_interval", "eval_interval", "eval_episodes", "eval_envs", "eval_workers",
    "save_interval", "keep", "tensorboard", "wandb", "wandb_project", "wandb_group", "wandb_name",
    "wandb_tags",
}  # fmt: skip

# Settings of a run that pretraining alone has no use for.
FINE_TUNING = {
    "offline_steps", "online_steps", "start_training", "utd_ratio", "balanced_sampling", "sparse",
}  # fmt: skip


def tell_apart(results: list[Result], notes: list[str]) -> None:
    """Give runs of one method with different settings names of their own.

    What differs between runs of a method on one task is added to its name. A sweep's method stays
    one, though it may have a value for each task. Names that would be too long, or not tell all
    apart, become numbered variants, and a note says what they are.
    """
    while True:  # a new name may be one that other runs have already, with other settings
        methods: dict[str, list[Result]] = {}
        for result in results:
            if result.method is not None:
                methods.setdefault(result.method, []).append(result)
        differ = {method: differing(runs) for method, runs in methods.items()}
        if not any(differ.values()):
            return
        for method, names in differ.items():
            if names:
                name_kinds(method, kinds_of(methods[method], names), notes)


def settings_of(result: Result) -> dict[str, Any]:
    """Return the settings of a run that its algorithm and its data use."""
    used = {*run_flags(), *result.algorithm.settings}
    if not result.algorithm.fine_tunes:
        used -= FINE_TUNING
    if result.config.get("dataset") is not None:
        used -= OGBENCH_DATA
    known = {*run_flags(), *(n for kind in ALGORITHMS.values() for n in names_of(kind.Config))}
    return {
        name: value
        for name, value in result.config.items()
        if name not in FREE and (name in used or name not in known)
    }


def differing(runs: Iterable[Result]) -> list[str]:
    """Return the settings in which runs on the same task differ; an unknown one does not."""
    values: dict[tuple[str, str], set[str]] = {}
    for result in runs:
        for name, value in settings_of(result).items():
            values.setdefault((name, result.task), set()).add(printable(value, LONGEST))
    return list(dict.fromkeys(name for (name, _), found in values.items() if len(found) > 1))


Traits = tuple[tuple[str, ...], str]
"""Settings in words, and the sweep where they are a sweep's that has a value for each task."""


def kinds_of(runs: list[Result], differ: list[str]) -> dict[Traits, list[Result]]:
    """Return the runs of one method by what they have for the settings that differ."""
    sweeps: dict[str, list[Result]] = {}
    for result in runs:
        sweeps.setdefault(result.sweep, []).append(result)
    kinds: dict[Traits, list[Result]] = {}
    for sweep, part in sweeps.items():
        whole = sweep != "" and not differing(part)
        for result in part:
            values = [values_of(part if whole else [result], name) for name in differ]
            words = [
                f"{name.replace('_', '-')} {found[0] if len(found) == 1 else 'by task'}"
                for name, found in zip(differ, values, strict=True)
            ]
            own = sweep if any(len(found) > 1 for found in values) else ""
            kinds.setdefault((tuple(words), own), []).append(result)
    return kinds


def values_of(runs: list[Result], name: str) -> list[str]:
    """Return the different values of a setting, "unknown" where no run has one."""
    found = [printable(run.config[name], LONGEST) for run in runs if name in run.config]
    return list(dict.fromkeys(found)) or ["unknown"]


def name_kinds(method: str, kinds: dict[Traits, list[Result]], notes: list[str]) -> None:
    """Set the names of the kinds of runs of one method."""
    end = f" {AUTHORS}" if method.endswith(AUTHORS) else ""
    base = method.removesuffix(end)
    all_words = {words for words, _ in kinds}
    short = all(len(words) <= MOST_IN_A_NAME for words in all_words)
    for number, ((words, _), runs) in enumerate(kinds.items(), 1):
        name = " ".join([base, *words]) + end
        if not short or len(all_words) < len(kinds):
            name = f"{base} variant {number}{end}"
            notes.append(f"{name}, e.g. {runs[0].folder}: {', '.join(words)}")
        for result in runs:
            result.method = name
