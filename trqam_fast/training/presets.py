"""Named presets, and the command line on top of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import tyro

from trqam_fast.agents import AgentConfig
from trqam_fast.errors import UsageError
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig
from trqam_fast.training.domains import Setting, domain_settings

# The authors' hyperparameters and training lengths; the task's domain adds its own.
PAPER = TrainConfig(preset="paper")

# This project's own small setting for two CPU cores and pointmaze-medium; the algorithm is that of
# the paper, the sizes are not. docs/default.md tells how the values were found.
DEFAULT = TrainConfig(
    preset="default",
    generated=True,
    threads=1,
    bc_steps=3_000,
    offline_steps=12_500,
    log_interval=250,
    eval_interval=2_500,
    save_interval=2_500,
    agent=AgentConfig(
        lr=2e-3,
        batch_size=128,
        actor_hidden_dims=(128, 128, 128),
        value_hidden_dims=(128, 128, 128),
        num_qs=2,
        discount=0.99,
        tau=0.05,
        horizon_length=5,
        kl_budget=1.0,
    ),
)

# The default shrunk until it only shows that everything runs.
SMOKE = dataclasses.replace(
    DEFAULT,
    preset="smoke",
    generated_transitions=20_000,
    bc_steps=200,
    offline_steps=200,
    online_steps=200,
    start_training=50,
    log_interval=50,
    eval_interval=100,
    save_interval=100,
    eval_episodes=5,
    eval_envs=5,
)

PRESETS = {"default": DEFAULT, "smoke": SMOKE, "paper": PAPER}


def flag_value(argv: list[str], flag: str) -> str | None:
    """Return the last value of `flag` in `argv`, given as ``--flag value`` or ``--flag=value``."""
    found = None
    for position, word in enumerate(argv):
        name, separator, value = word.partition("=")
        if name.replace("_", "-") == flag:
            following = argv[position + 1] if position + 1 < len(argv) else None
            found = value if separator else following
    return found


def with_values(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return `config` with some flags, the agent's among them, set to `values`."""
    agent_names = {f.name for f in dataclasses.fields(AgentConfig)}
    agent = {name: value for name, value in values.items() if name in agent_names}
    own = {name: value for name, value in values.items() if name not in agent_names}
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **agent), **own)


def preset_settings(preset: str, env_name: str) -> dict[str, Setting]:
    """Return what a preset sets for a task beyond the flags' defaults, with its sources.

    Raises:
        UsageError: no such task.
    """
    if preset == "paper":
        return domain_settings(env_name)
    values = PRESETS[preset].to_dict()
    names = domain_settings(env_name)
    return {name: Setting(values[name], f"preset {preset}, this project") for name in names}


def preset_config(preset: str, env_name: str) -> TrainConfig:
    """Return the configuration that flags are parsed on top of.

    Raises:
        UsageError: no such preset or task.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    values = {name: value for name, (value, _) in preset_settings(preset, env_name).items()}
    return dataclasses.replace(with_values(PRESETS[preset], values), env_name=env_name)


def in_words(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def describe_settings(config: TrainConfig) -> str:
    """Return a line for each setting of the task's domain: flag, value, where it comes from."""
    values, lines = config.to_dict(), [f"settings of {config.env_name}, preset {config.preset}:"]
    for name, (value, source) in preset_settings(config.preset, config.env_name).items():
        now = values[name]
        origin = source if now == value else f"flag; {source} has {in_words(value)}"
        lines.append(f"  --{name.replace('_', '-'):18} {in_words(now):20} {origin}")
    return "\n".join(lines)


def spell_out_resume(argv: list[str]) -> list[str]:
    """Return the flags with ``--resume`` alone, which stands for ``--resume yes``, spelt out."""
    words = []
    for position, word in enumerate(argv):
        words.append(word)
        alone = position + 1 == len(argv) or argv[position + 1].startswith("--")
        if word == "--resume" and alone:
            words.append("yes")
    return words


def parse_config(argv: list[str], base: TrainConfig | None = None) -> TrainConfig:
    """Parse flags on top of `base`, or of the preset and the task that they name or imply.

    Raises:
        UsageError: unknown preset or task, or impossible values.
    """
    argv = spell_out_resume(argv)
    fresh = base is None
    if fresh:
        env_name = flag_value(argv, "--env-name") or DEFAULT_ENV
        name = flag_value(argv, "--preset") or ("default" if env_name == DEFAULT_ENV else "paper")
        base = preset_config(name, env_name)
        if flag_value(argv, "--pretrained") is not None:
            base = dataclasses.replace(base, bc_steps=0)
        if flag_value(argv, "--algo") == "bc":
            base = dataclasses.replace(base, online_steps=0)
    return tyro.cli(TrainConfig, args=argv, default=base, prog="python -m trqam_fast.train")
