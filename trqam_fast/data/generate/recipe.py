"""How a generated dataset is made, and where it lies."""

from __future__ import annotations

import contextlib
import difflib
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from trqam_fast.data.generate.expert import EPISODE_STEPS, Expert
from trqam_fast.data.generate.pointmaze import MazeExpert
from trqam_fast.data.generate.shards import assemble, plan_shards
from trqam_fast.data.generate.workers import make_shards
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import expanded, locked
from trqam_fast.packages import version_of

GENERATED_DIR = Path("~/.trqam_fast/generated")
GENERATOR_VERSION = 2
"""Part of the folder names; a change of what is generated or how it lies raises it."""
MAZES = tuple(f"pointmaze-{size}-navigate-v0" for size in ("medium", "large", "giant", "teleport"))
MANIPULATION = tuple(
    f"{env}-{kind}-v0"
    for env in (
        *("cube-single", "cube-double", "cube-triple", "cube-quadruple"),
        *("scene", "puzzle-3x3", "puzzle-4x4"),
    )
    for kind in ("play", "noisy")
)
GENERATED_NAMES = MAZES + MANIPULATION
KINDS = (
    "pointmaze-{medium,large,giant,teleport}-navigate-v0, "
    "cube-{single,double,triple,quadruple}-{play,noisy}-v0, scene-{play,noisy}-v0 and "
    "puzzle-{3x3,4x4}-{play,noisy}-v0"
)
MAZE_NOISE, MANIPULATION_NOISE = 0.5, 0.1
VAL_FRACTION = 10


@dataclass(frozen=True)
class Recipe:
    """How a generated dataset is made; every value is part of its folder's name.

    Attributes:
        dataset_name: E.g. ``cube-double-play-v0``.
        transitions: Number of transitions, rounded up to whole trajectories of 1000.
        noise: Noise of the expert; None stands for the published value, 0.1 for manipulation and
            0.5 for pointmaze.
        seed: Seed of all random numbers.
        corners: Whether half of the goals lie in corners; of mazes alone.

    Raises:
        UsageError: no expert for this dataset, or a number that makes no sense.
    """

    dataset_name: str
    transitions: int
    noise: float | None
    seed: int
    corners: bool = False

    def __post_init__(self) -> None:
        if not can_generate(self.dataset_name):
            raise UsageError(f"{self.dataset_name!r} cannot be generated{self._why_not()}")
        noise = self.noise
        if noise is None:
            noise = MAZE_NOISE if self.dataset_name in MAZES else MANIPULATION_NOISE
        if self.transitions < 1 or not 0 <= noise < math.inf or self.seed < 0:
            raise UsageError(
                f"{self.transitions} transitions with noise {noise} and seed {self.seed} "
                "cannot be generated; use at least one transition, a finite noise of zero or more "
                "and a seed of zero or more"
            )
        object.__setattr__(self, "noise", float(noise))
        object.__setattr__(self, "corners", self.corners and self.dataset_name in MAZES)
        object.__setattr__(self, "transitions", self.episodes * EPISODE_STEPS)

    def _why_not(self) -> str:
        if self.dataset_name.startswith(("ant", "humanoid")):
            return (
                ": its expert is a trained network that this package does not have; get the "
                f"official file with 'python -m trqam_fast.data get {self.dataset_name}'"
            )
        near = difflib.get_close_matches(self.dataset_name, GENERATED_NAMES, n=1)
        remedy = f"did you mean {near[0]}?" if near else "get its official file"
        return f", only {KINDS} can; {remedy}"

    @property
    def episodes(self) -> int:
        """Number of trajectories for training."""
        return -(-self.transitions // EPISODE_STEPS)

    @property
    def val_episodes(self) -> int:
        """Number of trajectories for validation, a tenth as many, at least one."""
        return max(1, self.episodes // VAL_FRACTION)

    @property
    def folder_name(self) -> str:
        """Name that tells how the data were made."""
        return (
            f"{self.dataset_name}-generated{GENERATOR_VERSION}-{self.transitions}"
            f"-noise{self.noise}-seed{self.seed}{'-corners' if self.corners else ''}"
        )

    def path(self, folder: Path) -> Path:
        """Return where the training file lies in a folder of generated data.

        It has OGBench's name, in a folder of its own that ``ogbench.make_env_and_datasets`` takes
        as ``dataset_dir``.
        """
        return expanded(folder) / self.folder_name / f"{self.dataset_name}.npz"

    def is_stored(self, folder: Path) -> bool:
        """Whether training has what it reads: the training file, or the flat set made of it."""
        path = self.path(folder)
        return path.exists() or path.with_suffix(".flat").exists()

    def val_path(self, folder: Path) -> Path:
        """Return where the validation file lies."""
        return self.path(folder).with_name(f"{self.dataset_name}-val.npz")

    def expert(self) -> Expert:
        """Return what rolls out this recipe's trajectories."""
        assert self.noise is not None  # as `__post_init__` replaces it
        if self.dataset_name in MAZES:
            env_id = self.dataset_name.replace("-navigate", "")
            return MazeExpert(env_id, self.noise, self.seed, self.corners)
        # The oracles need scipy, whose import would slow down every start of the trainer.
        from trqam_fast.data.generate.manipspace import ManipspaceExpert

        return ManipspaceExpert(self.dataset_name.removesuffix("-v0"), self.noise, self.seed)

    def ensure(self, folder: Path, progress: bool = True, workers: int = 1) -> Path:
        """Return the training file, making it and the validation file first if need be.

        A generation that was killed goes on where it stopped. If another process is at it, this
        one waits. The bytes do not depend on the number of workers.

        Args:
            folder: Folder of generated data.
            progress: Show a progress bar over trajectories.
            workers: Number of processes. More than one are spawned, so a script that calls this
                needs the usual ``if __name__ == "__main__"``.

        Raises:
            UsageError: no worker.
            RunError: the expert failed, the files cannot be written, or what an earlier process
                has made cannot be read.
        """
        if workers < 1:
            raise UsageError(f"--workers is {workers}; use 1 or more")
        path = self.path(folder)
        if not self.is_made(folder):
            try:
                expanded(folder).mkdir(parents=True, exist_ok=True)
                lock = path.parent.with_name(f".{self.folder_name}.lock")
                with locked(lock, say_waiting if progress else lambda: None):
                    if not self.is_made(folder):
                        self.make(folder, progress, workers)
            except OSError as error:
                raise RunError(f"cannot write {path}: {error}") from None
        return path

    def is_made(self, folder: Path) -> bool:
        """Return whether both files are there."""
        return self.path(folder).exists() and self.val_path(folder).exists()

    def make(self, folder: Path, progress: bool, workers: int) -> None:
        """Make missing and damaged shards, join them to the two files and remove them."""
        path = self.path(folder)
        work = path.parent.with_name(f".{self.folder_name}-{versions()}.shards")
        work.mkdir(exist_ok=True)
        train = plan_shards(work, "train", self.episodes)
        val = plan_shards(work, "val", self.val_episodes)
        missing = [shard for shard in train + val if not shard.is_made()]
        total = self.episodes + self.val_episodes
        made = total - sum(shard.episodes for shard in missing)
        bar = tqdm(desc="generate", unit="episode", total=total, initial=made, disable=not progress)
        steps = make_shards(missing, self.expert, workers)
        with bar, contextlib.closing(steps):
            for episodes in steps:
                bar.update(episodes)
        path.parent.mkdir(exist_ok=True)
        assemble(val, self.val_path(folder))
        assemble(train, path)
        shutil.rmtree(work, ignore_errors=True)


def say_waiting() -> None:
    """Print to where the progress bar is."""
    print("waiting for another process that generates the same data", file=sys.stderr)


def versions() -> str:
    """Return what else the numbers depend on, so that shards of two versions are never mixed."""
    return "-".join(f"{name}{version_of(name)}" for name in ("ogbench", "mujoco", "numpy"))


def can_generate(dataset_name: str) -> bool:
    """Return whether this package can make the dataset without a downloaded expert."""
    return dataset_name in GENERATED_NAMES
