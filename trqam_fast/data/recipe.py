"""How a generated dataset is made, and where it lies."""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trqam_fast.data.pointmaze import generate
from trqam_fast.errors import RunError, UsageError

GENERATED_DIR = Path("~/.trqam_fast/generated")
GENERATOR_VERSION = 1
"""Part of the file names; a change of what `generate` writes raises it."""
GENERATED_NAMES = tuple(
    f"pointmaze-{maze}-navigate-v0" for maze in ("medium", "large", "giant", "teleport")
)


@dataclass(frozen=True)
class Recipe:
    """How a generated dataset is made; every value is part of its file name.

    Attributes:
        dataset_name: E.g. ``pointmaze-medium-navigate-v0``.
        transitions: Number of transitions, in whole trajectories of 1000.
        noise: Standard deviation of the action noise.
        seed: Seed of all its random numbers.
    """

    dataset_name: str
    transitions: int
    noise: float
    seed: int

    def __post_init__(self) -> None:
        if not can_generate(self.dataset_name):
            near = difflib.get_close_matches(self.dataset_name, GENERATED_NAMES, n=1)
            raise UsageError(
                f"{self.dataset_name!r} cannot be generated, only {', '.join(GENERATED_NAMES)} can"
                + (f"; did you mean {near[0]}?" if near else "; pass --no-generated")
            )
        if self.transitions < 1 or not 0 <= self.noise < math.inf or self.seed < 0:
            raise UsageError(
                f"{self.transitions} transitions with noise {self.noise} and seed {self.seed} "
                "cannot be generated; use at least one transition, a finite noise of zero or more "
                "and a seed of zero or more"
            )

    @property
    def env_id(self) -> str:
        """The goal-conditioned environment that is rolled out."""
        return self.dataset_name.replace("-navigate", "")

    @property
    def file_name(self) -> str:
        """File name that tells how the data were made."""
        return (
            f"{self.dataset_name}-generated{GENERATOR_VERSION}-{self.transitions}"
            f"-noise{self.noise:g}-seed{self.seed}.npz"
        )

    def path(self, folder: Path) -> Path:
        """Return where the file lies in a folder of generated data."""
        return folder.expanduser() / self.file_name

    def ensure(self, folder: Path, progress: bool = True) -> Path:
        """Return the generated file, making it first if it is not there yet."""
        path = self.path(folder)
        folder = path.parent
        if path.exists():
            return path
        arrays = generate(self.env_id, self.transitions, self.noise, self.seed, progress)
        temporary = folder / f"{self.file_name}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(temporary, path)
        except OSError as error:
            if folder.is_dir():
                temporary.unlink(missing_ok=True)
            raise RunError(f"cannot write {path}: {error}") from None
        return path


def can_generate(dataset_name: str) -> bool:
    """Return whether this package can make the dataset without a downloaded expert."""
    return dataset_name in GENERATED_NAMES
