"""Finds and loads the dataset of a task: official OGBench files or generated ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trqam_fast.damage import Damaged, reason_of
from trqam_fast.data.dataset import FIELDS, Dataset
from trqam_fast.data.flat import ACTION_LIMIT, FlatSet, sparse_rewards
from trqam_fast.data.flat_dataset import FlatDataset, open_flat
from trqam_fast.data.generate.recipe import GENERATED_DIR, Recipe, can_generate
from trqam_fast.data.names import LARGE_SETS, PUBLISHED, DatasetName, parse_dataset
from trqam_fast.data.npz import layout_of, read_headers, read_raw
from trqam_fast.data.readers import Source, parse_source, read_fitting
from trqam_fast.data.tasks import find_task
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import expanded
from trqam_fast.simulator.environment import Interface, interface_of, make_env, relabel
from trqam_fast.text import printable

OFFICIAL_DIR = Path("~/.ogbench/data")
Form = Literal["archive", "flat"]


@dataclass(frozen=True)
class Found:
    """A dataset that lies in a folder.

    Attributes:
        name: The dataset.
        path: The npz file or the flat folder.
        form: What it is.
        problem: Why training cannot use it, in a few words, or None: headers and sizes are looked
            at; contents are checked by ``verify`` alone.
    """

    name: DatasetName
    path: Path
    form: Form
    problem: str | None


def present(folder: Path) -> tuple[list[Found], list[str]]:
    """Look for datasets in a folder and the folders in it, -val files left out.

    Returns:
        The datasets, and a sentence for each folder that cannot be read.
    """
    found, problems = [], []
    folders = [expanded(folder)]
    for parent in folders:
        try:
            paths = sorted(parent.iterdir())
            if parent is folders[0]:
                folders += [path for path in paths if path.is_dir() and path.suffix != ".flat"]
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{printable(parent, 400)} cannot be read ({reason_of(error)})")
            continue
        for path in paths:
            if path.suffix not in (".npz", ".flat") or path.stem.endswith("-val"):
                continue
            with contextlib.suppress(UsageError):
                name = parse_dataset(path.stem)
                form: Form = "archive" if path.suffix == ".npz" else "flat"
                found.append(Found(name, path, form, problem_of(path)))
    return found, problems


def problem_of(path: Path) -> str | None:
    """Return why training cannot use an archive or a flat set, by its headers, or None."""
    try:
        if path.suffix == ".npz":
            read_headers(path)
            return None
        flat, archive = FlatSet.open(path), path.with_suffix(".npz")
        if archive.exists() and not flat.made_of(archive):
            return "made of another archive"
    except Damaged:
        return "damaged"
    except UsageError:
        return "of another version"
    except (RunError, OSError):
        return "cannot be read"
    return None


def fetch_hint(dataset_name: str, folder: Path) -> str:
    """Return the commands that make, fetch or find a dataset."""
    where = "" if folder == OFFICIAL_DIR else f" --dataset-dir {folder}"
    large = [name for name, entry in LARGE_SETS.items() if entry.dataset_name == dataset_name]
    ways = []
    for name in large:
        stored = folder if expanded(folder).absolute().name == name else folder / name
        train, convert = f"train with --dataset-dir {stored}", f"convert {stored}"
        if (expanded(stored) / f"{dataset_name}.flat").exists():
            ways.append(train)
        elif any(expanded(stored).glob("*.npz")):
            ways.append(f"make it one with 'python -m trqam_fast.data {convert}' and {train}")
    if dataset_name in PUBLISHED:
        ways.append(f"fetch it with 'python -m trqam_fast.data get {dataset_name}{where}'")
    elif not ways:
        ways.append(
            f"fetch one of {' and '.join(large)} with 'python -m trqam_fast.data get NAME{where}', "
            f"convert it and train with --dataset-dir {folder / 'NAME'}"
        )
    if can_generate(dataset_name):
        ways.append("train with --generated, which makes it with the scripted expert")
    return ", or ".join(ways)


def stored_form(archive: Path) -> Path | None:
    """Return what to train on: a flat set of this archive or without one, or else the archive.

    Returns:
        None if neither is there.

    Raises:
        Damaged: one of them is damaged.
        Unreadable: the system refuses.
    """
    flat = archive.with_suffix(".flat")
    if not archive.exists():
        return flat if flat.exists() else None
    return flat if flat.exists() and FlatSet.open(flat).made_of(archive) else archive


def load_arrays(path: Path, env_id: str) -> dict[str, np.ndarray]:
    """Load an OGBench file with the rewards and masks of a single task.

    Returns:
        observations, actions (clipped to +-(1 - 1e-5)), rewards, masks, terminals and
        next_observations, float32.

    Raises:
        UsageError: the file is truncated, foreign, has non-finite values or wrong terminals.
    """
    head, _, version = env_id.partition("-singletask")
    goal_conditioned = f"{head}-{version.rpartition('-')[2]}"
    arrays = read_raw(path, layout_of(DatasetName(path.stem, goal_conditioned)))
    with contextlib.closing(make_env(env_id)) as env:
        relabel(env_id, env, arrays)
    arrays = {name: arrays[name].astype(np.float32, copy=False) for name in FIELDS}
    arrays["actions"] = arrays["actions"].clip(-ACTION_LIMIT, ACTION_LIMIT)
    return arrays


def missing_data(
    env_name: str, dataset: str | None, dataset_dir: Path, recipe: Recipe | None
) -> str | None:
    """Return that a task's data are not on this machine, and what helps, or None.

    What can be made counts as there; a name of Minari's is not looked up. The arguments are those
    of `load_task`.
    """
    name = find_task(env_name).dataset_name
    if dataset is not None:
        source = parse_source(dataset)
        there = source.form == "minari" or expanded(Path(source.place)).exists()
        return None if there else f"--dataset {dataset} does not exist; name what does"
    if name is None:
        return (
            f"{env_name} has no data of OGBench; name yours with --dataset (docs/your_own_task.md)"
        )
    archive = expanded(dataset_dir) / f"{name}.npz"
    if recipe is not None or archive.exists() or archive.with_suffix(".flat").exists():
        return None
    return f"the dataset {archive} does not exist; {fetch_hint(name, dataset_dir)}"


def load_own(
    source: Source, interface: Interface, env_name: str, device: str, say: Callable[[str], object]
) -> Dataset:
    """Load data of one's own; see `load_task`.

    Raises:
        UsageError: they are not whole, or do not fit the environment.
        Unreadable: the system refuses.
    """
    arrays, notes = read_fitting(source, interface, env_name)
    for note in notes:
        say(f"note: {note}")
    return Dataset.from_arrays(arrays, device)


def load_task(
    env_name: str,
    *,
    dataset: str | None = None,
    interface: Interface | None = None,
    dataset_dir: Path = OFFICIAL_DIR,
    recipe: Recipe | None = None,
    generated_dir: Path = GENERATED_DIR,
    sparse: bool = False,
    device: str = "cpu",
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> tuple[Dataset | FlatDataset, Path | str]:
    """Load or open the transitions of a task.

    The flat form is taken where there is one that was made of the archive, or no archive.

    Args:
        env_name: E.g. ``cube-double-play-singletask-task1-v0``; see `find_task`.
        dataset: Use data of one's own, a source as `readers.parse_source` takes it.
        interface: The environment's, which data of one's own must fit.
        dataset_dir: Folder of the official files.
        recipe: Use (and first make) generated data instead of the official file.
        generated_dir: Folder of generated files.
        sparse: Replace the reward by 0 where the task is solved and -1 elsewhere.
        device: Where batches are wanted; on a GPU with room for them the transitions lie there.
        progress: Show a progress bar while generating.
        say: Called with what is worth knowing of data of one's own.

    Returns:
        The dataset, and the file or folder that it came from.

    Raises:
        UsageError: unknown name, missing, truncated or foreign file.
        Unreadable: the system refuses.
    """
    task = find_task(env_name)
    if dataset is not None:
        interface = interface or interface_of(task.env_id)
        return load_own(parse_source(dataset), interface, env_name, device, say), dataset
    problem = missing_data(env_name, None, dataset_dir, recipe)
    if problem is not None:
        raise UsageError(problem)
    if recipe is None:
        archive = expanded(dataset_dir) / f"{task.dataset_name}.npz"
    else:
        archive = recipe.path(generated_dir)
    path = stored_form(archive)
    if path is None:
        path = archive if recipe is None else recipe.ensure(generated_dir, progress=progress)
    if path.suffix == ".flat":
        return open_flat(path, task.env_id, sparse=sparse, device=device), path
    arrays = load_arrays(path, task.env_id)
    if sparse:
        arrays["rewards"] = sparse_rewards(arrays["rewards"])
    return Dataset.from_arrays(arrays, device), path
