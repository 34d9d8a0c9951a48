"""Generate a dataset: python -m trqam_fast.data pointmaze-medium-navigate-v0."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trqam_fast.cli import run_command
from trqam_fast.data.recipe import GENERATED_DIR, Recipe


@dataclass(frozen=True)
class GenerateArgs:
    """Generate navigation data from the environment's own oracle directions plus noise."""

    dataset: Annotated[str, tyro.conf.Positional]
    """Dataset to imitate: pointmaze-{medium,large,giant,teleport}-navigate-v0."""
    transitions: int = 100_000
    """Number of transitions, in trajectories of 1000."""
    noise: float = 0.5
    """Standard deviation of the action noise."""
    seed: int = 0
    """Seed of all random numbers."""
    generated_dir: Path = GENERATED_DIR
    """Folder of generated files, kept apart from the official ones."""


def main(argv: list[str] | None = None) -> int:
    """Generate and print the path."""
    args = tyro.cli(GenerateArgs, args=argv, prog="python -m trqam_fast.data")
    recipe = Recipe(args.dataset, args.transitions, args.noise, args.seed)
    path = recipe.ensure(args.generated_dir, progress=sys.stderr.isatty())
    print(
        f"{path}\ntrain on it with: --generated --generated-transitions {args.transitions} "
        f"--generated-noise {args.noise:g} --generated-seed {args.seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
