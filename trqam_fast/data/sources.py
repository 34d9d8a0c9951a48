"""Finds, checks and loads the dataset of a task: official OGBench files or generated ones."""

from __future__ import annotations

import difflib
import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import ogbench
from ogbench.relabel_utils import relabel_dataset

from trqam_fast.data.dataset import ACTION_LIMIT, FIELDS, Dataset
from trqam_fast.data.names import TaskName, parse_task
from trqam_fast.data.pointmaze import generate
from trqam_fast.errors import RunError, UsageError

OFFICIAL_DIR = Path("~/.ogbench/data")
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


def fetch_hint(dataset_name: str, folder: Path) -> str:
    """Return the command that makes or fetches a dataset."""
    if can_generate(dataset_name):
        return (
            f"generate it with 'python -m trqam_fast.data {dataset_name}' and train with "
            "--generated, which makes it if need be"
        )
    code = f'import ogbench; ogbench.download_datasets(["{dataset_name}"], "{folder}")'
    return f"fetch it with: python -c '{code}'"


def official_file(task: TaskName, folder: Path) -> Path:
    """Return the official file of a task.

    Raises:
        UsageError: it is not in `folder`; the message says how to get it.
    """
    path = folder.expanduser() / f"{task.dataset_name}.npz"
    if not path.exists():
        raise UsageError(
            f"the dataset {path} does not exist; {fetch_hint(task.dataset_name, folder)}"
        )
    return path


def check_archive(path: Path, obs_dim: int, act_dim: int, extra: tuple[str, ...]) -> None:
    """Read the headers of an npz file and compare them with the environment.

    Raises:
        UsageError: the file is truncated, no npz, or lacks a key or has one of another shape.
    """
    expected = {"observations": (None, obs_dim), "actions": (None, act_dim), "terminals": (None,)}
    expected |= {name: (None, None) for name in extra}
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shapes[member.removesuffix(".npy")] = read(file)[0]
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, zlib.error) as error:
        raise UsageError(
            f"{path} is truncated or no npz file ({error}); delete it and get it again"
        ) from None
    rows = shapes.get("observations", (None,))[0]
    for name, shape in expected.items():
        wanted = "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
        if name not in shapes:
            raise UsageError(
                f"{path} has no array {name!r} {wanted}; it is not a dataset of this environment"
            )
        found = shapes[name]
        fits = len(found) == len(shape) and found[:1] == (rows,)
        if not fits or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            raise UsageError(
                f"{path}: {name} has shape {list(found)}, expected {wanted} with one row per "
                f"observation; it is not a dataset of this environment"
            )


def load_arrays(path: Path, env_id: str) -> dict[str, np.ndarray]:
    """Load an OGBench file with the rewards and masks of a single task.

    Returns:
        observations, actions (clipped to +-(1 - 1e-5)), rewards, masks, terminals and
        next_observations, float32.

    Raises:
        UsageError: the file is truncated, foreign, or has non-finite values.
    """
    env = gymnasium.make(env_id, disable_env_checker=True)
    try:
        extra = ("qpos", "button_states") if env_id.startswith(("scene", "puzzle")) else ("qpos",)
        check_archive(path, env.observation_space.shape[0], env.action_space.shape[0], extra)
        try:
            arrays = ogbench.load_dataset(path, add_info=True)
        except (OSError, zipfile.BadZipFile, ValueError, EOFError, zlib.error) as error:
            raise UsageError(
                f"{path} is truncated or damaged ({error}); delete it and get it again"
            ) from None
        relabel_dataset(env_id, env, arrays)
    finally:
        env.close()
    names = list(FIELDS)
    arrays = {name: arrays[name].astype(np.float32, copy=False) for name in names}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} has non-finite values; get the file again")
    arrays["actions"] = arrays["actions"].clip(-ACTION_LIMIT, ACTION_LIMIT)
    return arrays


def load_task(
    env_name: str,
    *,
    dataset_dir: Path = OFFICIAL_DIR,
    recipe: Recipe | None = None,
    generated_dir: Path = GENERATED_DIR,
    sparse: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[Dataset, Path]:
    """Load the transitions of a single task.

    Args:
        env_name: E.g. ``cube-double-play-singletask-task1-v0``.
        dataset_dir: Folder of the official files.
        recipe: Use (and first make) generated data instead of the official file.
        generated_dir: Folder of generated files.
        sparse: Replace the reward by 0 where the task is solved and -1 elsewhere.
        device: Where the transitions are kept.
        progress: Show a progress bar while generating.

    Returns:
        The dataset and the file that it came from.

    Raises:
        UsageError: unknown name, missing, truncated or foreign file.
    """
    task = parse_task(env_name)
    if recipe is None:
        path = official_file(task, dataset_dir)
    else:
        path = recipe.ensure(generated_dir, progress)
    arrays = load_arrays(path, task.env_id)
    if sparse:
        arrays["rewards"] = -(arrays["rewards"] != 0).astype(np.float32)
    return Dataset.from_arrays(arrays, device), path
