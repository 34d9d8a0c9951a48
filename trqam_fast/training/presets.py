"""Named presets, and the command line on top of them."""

from __future__ import annotations

import dataclasses

import tyro

from trqam_fast.agents import AgentConfig
from trqam_fast.errors import UsageError
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig

# The authors' hyperparameters and training lengths.
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


def parse_config(argv: list[str], base: TrainConfig | None = None) -> TrainConfig:
    """Parse flags on top of `base`, or of the preset that they name or imply.

    Raises:
        UsageError: unknown preset, or impossible values.
    """
    if base is None:
        name = flag_value(argv, "--preset")
        if name is None:
            env_name = flag_value(argv, "--env-name") or DEFAULT_ENV
            name = "default" if env_name == DEFAULT_ENV else "paper"
        if name not in PRESETS:
            raise UsageError(f"--preset is {name!r}; choose one of {', '.join(PRESETS)}")
        base = PRESETS[name]
    return tyro.cli(TrainConfig, args=argv, default=base, prog="python -m trqam_fast.train")
