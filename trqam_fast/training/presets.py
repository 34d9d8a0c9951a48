"""Named presets, and configurations made of flags on top of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trqam_fast.agents import algorithm
from trqam_fast.agents.config import names_of, select
from trqam_fast.data.names import nearest
from trqam_fast.data.tasks import find_task
from trqam_fast.errors import UsageError
from trqam_fast.kinds import check_kind, plain
from trqam_fast.training.config import (
    DEFAULT_ENV,
    TrainConfig,
    flag_hints,
    run_flags,
    setting_names,
)
from trqam_fast.training.domains import Setting, domain_settings

# The authors' hyperparameters and lengths of pretraining and offline fine-tuning are the flags'
# defaults; the task's domain adds its own. Their online stage is --online-steps 500000.
PAPER: dict[str, Any] = {}

# This project's own small setting for two CPU cores and pointmaze-medium; the algorithm is that of
# the paper, the sizes are not. docs/default.md tells how the values were found.
DEFAULT: dict[str, Any] = {
    "generated": True,
    "generated_corners": True,
    "threads": 1,
    "bc_steps": 3_000,
    "offline_steps": 12_500,
    "log_interval": 250,
    "eval_interval": 2_500,
    "save_interval": 2_500,
    "lr": 2e-3,
    "batch_size": 128,
    "actor_hidden_dims": (128, 128, 128),
    "value_hidden_dims": (128, 128, 128),
    "num_qs": 2,
    "discount": 0.99,
    "tau": 0.05,
    "horizon_length": 5,
    "kl_budget": 0.5,
}

# The default shrunk until it only shows that everything runs.
SMOKE: dict[str, Any] = DEFAULT | {
    "generated_transitions": 20_000,
    "bc_steps": 200,
    "offline_steps": 200,
    "online_steps": 200,
    "start_training": 50,
    "log_interval": 50,
    "eval_interval": 100,
    "save_interval": 100,
    "eval_episodes": 5,
    "eval_envs": 5,
}

HELP = "'python -m trqam_fast.train --help' names them all"
"""What is said where no flag is like the one that was given."""

PRESETS = {"default": DEFAULT, "smoke": SMOKE, "paper": PAPER}


def default_preset(env_name: str) -> str:
    """Return the preset that a task implies.

    Raises:
        UsageError: no such task.
    """
    own = find_task(env_name).dataset_name is None
    return "default" if own or env_name == DEFAULT_ENV else "paper"


def make_config(
    env_name: str | Callable[..., Any] | None = None,
    algo: str | type = "trqam",
    preset: str | None = None,
    *,
    env_id: str | Callable[..., Any] | None = None,
    **flags: Any,
) -> TrainConfig:
    """Return a configuration: flags by name on top of a preset and the settings of the task.

    Args:
        env_name: Task; see `find_task`. None is that of the trainer without flags. A class or
            function stands for its ``MODULE:NAME``.
        algo: Algorithm, by name or as a class.
        preset: One of `PRESETS`; None takes the one that the task implies.
        env_id: Another name of `env_name`.
        flags: Values of any other flags, the algorithm's among them; those that only other
            algorithms use are left out, with a warning.

    Raises:
        UsageError: no such preset, task, algorithm or flag, or an impossible value.
    """
    named = by_one_name({"env_name": env_name, "env_id": env_id})["env_name"]
    task: str = plain(DEFAULT_ENV if named is None else named)
    method: str = plain(algo)
    flags = {name: plain(value) for name, value in flags.items()}
    check_kinds({"env_name": task, "algo": method, "preset": preset} | flags)
    preset = default_preset(task) if preset is None else preset
    kind = algorithm(method)
    warn_of_unused(method, flags)
    settings = preset_settings(preset, task, method)
    values = PRESETS[preset] | {name: value for name, (value, _) in settings.items()}
    if flags.get("pretrained") is not None:
        values["bc_steps"] = 0
    if flags.get("dataset") is not None or find_task(task).dataset_name is None:
        values["generated"] = False
    if not kind.fine_tunes:
        values["online_steps"] = 0
    values |= flags
    own = {name: value for name, value in values.items() if name in run_flags()}
    own |= {"env_name": task, "algo": method, "preset": preset}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return TrainConfig(**own, agent=kind.Config(**select(kind.Config, values)))


def by_one_name(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags by name, a task that is called `env_id` as `env_name`.

    Raises:
        UsageError: it is called both.
    """
    flags = dict(flags)
    env_id = flags.pop("env_id", None)
    if env_id is None:
        return flags
    if flags.get("env_name") is not None:
        raise UsageError(
            f"env_name is {flags['env_name']!r} and env_id is {env_id!r}, which are two names of "
            "one flag; give one of them"
        )
    return flags | {"env_name": env_id}


def check_kinds(flags: Mapping[str, Any]) -> None:
    """Raise `UsageError` if a flag, by name, has a value of another type than it takes."""
    algo = flags.get("algo", TrainConfig.algo)
    check_kind("algo", algo, str)
    hints = flag_hints(algo) | {"preset": str | None}  # none is what the task implies
    for name, value in flags.items():
        if name in hints:
            check_kind(name, value, hints[name])


def flag_of(name: str) -> str:
    """Return the flag of a value: ``--bc-steps`` of ``bc_steps``."""
    return f"--{name.replace('_', '-')}"


def unused_flags(algo: str, names: Iterable[str]) -> list[str]:
    """Return those of some flags' names that only other algorithms have a use for.

    Raises:
        UsageError: there is no such flag at all.
    """
    known = {*run_flags(), *names_of(algorithm(algo).Config)}
    unused = [name for name in names if name not in known]
    others = setting_names()
    for name in unused:
        if name not in others:
            hint = nearest(flag_of(name), [flag_of(other) for other in known | others], HELP)
            raise UsageError(f"there is no flag {flag_of(name)}{hint}")
    return unused


def unused_in_words(algo: str, unused: Iterable[str]) -> str:
    """Return what is said of flags that an algorithm has no use for."""
    return f"--algo {algo} has no use for {', '.join(map(flag_of, dict.fromkeys(unused)))}"


def warn_of_unused(algo: str, names: Iterable[str]) -> None:
    """Warn of those of some flags' names that only other algorithms have a use for.

    Raises:
        UsageError: there is no such flag at all.
    """
    unused = unused_flags(algo, names)
    if unused:
        warnings.warn(unused_in_words(algo, unused), stacklevel=3)


def preset_settings(preset: str, env_name: str, algo: str) -> dict[str, Setting]:
    """Return what a preset sets for a task and algorithm, with its sources.

    Raises:
        UsageError: no such task or preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    settings = domain_settings(env_name, algo)
    if preset == "paper":
        return settings
    values = vars(TrainConfig(algo=algo, agent=algorithm(algo).Config()))
    values = values | vars(values["agent"]) | PRESETS[preset]
    source = f"preset {preset}, this project"
    return {name: Setting(values[name], source) for name in settings if name in values}


def value_in_words(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def describe_settings(config: TrainConfig) -> str:
    """Return a line for each setting of the task's domain: flag, value, where it comes from."""
    values, lines = config.to_dict(), [f"settings of {config.env_name}, preset {config.preset}:"]
    settings = preset_settings(config.preset, config.env_name, config.algo)
    for name, (value, source) in settings.items():
        if name not in values or name in config.without_use:  # by its algorithm, by its data
            continue
        now = values[name]
        origin = source if now == value else f"flag; {source} has {value_in_words(value)}"
        lines.append(f"  {flag_of(name):20} {value_in_words(now):20} {origin}")
    return "\n".join(lines)
