"""Finds, checks and loads the dataset of a task: official OGBench files or generated ones."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import gymnasium
import numpy as np
import ogbench
from ogbench.relabel_utils import relabel_dataset

from trqam_fast.data.dataset import ACTION_LIMIT, FIELDS, Dataset
from trqam_fast.data.names import TaskName, parse_task
from trqam_fast.data.recipe import GENERATED_DIR, Recipe, can_generate
from trqam_fast.errors import UsageError

OFFICIAL_DIR = Path("~/.ogbench/data")


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
