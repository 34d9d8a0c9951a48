"""Turns npz files into a flat set, file by file, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trqam_fast.data.flat import ACTION_LIMIT, FORMAT, MANIFEST, checksum_of, expected_arrays
from trqam_fast.data.names import DatasetName
from trqam_fast.data.npz import Layout, checksum, layout_of, read_raw, read_terminals
from trqam_fast.errors import RunError
from trqam_fast.files import locked
from trqam_fast.packages import version_of
from trqam_fast.simulator.environment import env_sizes, relabel, task_env

PACKAGES = ("trqam_fast", "numpy", "ogbench", "mujoco", "gymnasium")


class Writer:
    """Writes a flat set array by array, a part at a time, and computes checksums on the way."""

    def __init__(self, folder: Path, manifest: dict[str, Any], stack: contextlib.ExitStack) -> None:
        self.folder, self.manifest = folder, manifest
        arrays = expected_arrays(manifest)
        self.files = {n: stack.enter_context(open(folder / f"{n}.npy", "w+b")) for n in arrays}
        self.hashes = {name: hashlib.sha256() for name in arrays}
        for name, (shape, dtype) in arrays.items():
            header = {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).str}
            np.lib.format.write_array_header_1_0(self.files[name], header)
            self.files[name].seek(0)
            self.hashes[name].update(self.files[name].read())

    def write(self, **arrays: np.ndarray) -> None:
        """Append rows to the arrays named."""
        expected = expected_arrays(self.manifest)
        for name, array in arrays.items():
            data = np.ascontiguousarray(array, dtype=expected[name][1])
            self.files[name].write(data.data)
            self.hashes[name].update(data.data)

    def finish(self) -> None:
        """Write the manifest; everything has reached the disk when this returns."""
        self.manifest["arrays"] = {
            name: {
                "shape": shape,
                "dtype": str(np.dtype(dtype)),
                "sha256": self.hashes[name].hexdigest(),
            }
            for name, (shape, dtype) in expected_arrays(self.manifest).items()
        }
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.manifest["checksum"] = checksum_of(self.manifest)
        with open(self.folder / MANIFEST, "w") as manifest:
            manifest.write(json.dumps(self.manifest, indent=1) + "\n")
            manifest.flush()
            os.fsync(manifest.fileno())


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the name `target` if all goes well.

    Whoever wants the same name waits.

    Raises:
        RunError: the disk is full or not writable; the folder of that name is untouched.
    """
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f".{target.name}.lock")):
            tidy(target)
            try:
                temporary.mkdir()
                yield temporary
                replace(target, temporary)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error}") from None


def tidy(target: Path) -> None:
    """Remove what killed conversions left; one that is alive would hold the lock."""
    for old in target.parent.glob(f"{target.name}.*.old"):
        if target.exists():
            shutil.rmtree(old)
        else:  # Killed between the two renames.
            os.rename(old, target)
    for left in target.parent.glob(f"{target.name}.*.partial"):
        shutil.rmtree(left)


def replace(target: Path, new: Path) -> None:
    """Give the folder `new` the name `target`; a folder of that name stays if this fails."""
    if not target.exists():
        os.rename(new, target)
        return
    old = new.with_suffix(".old")
    try:
        os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if not target.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def convert(sources: list[Path], name: DatasetName, target: Path, progress: bool = True) -> Path:
    """Turn npz files into one flat set; memory holds one file at a time.

    Args:
        sources: The files of one dataset, in the order in which their transitions follow.
        name: The dataset.
        target: The folder to make; one that exists is replaced.
        progress: Show a progress bar on a terminal.

    Returns:
        `target`.

    Raises:
        UsageError: a file is truncated, foreign or has wrong terminals.
        RunError: the disk is full.
    """
    layout, (obs_dim, act_dim) = layout_of(name), env_sizes(name.env_id)
    counts = [count_rows(path, layout) for path in sources]
    envs = {task: task_env(env_id) for task, env_id in name.single_tasks().items()}
    default = task_env(name.single_task(None))
    manifest = {
        "format": FORMAT,
        "dataset": name.dataset_name,
        "env": name.env_id,
        "obs_dim": obs_dim,
        "act_dim": act_dim,
        "transitions": sum(transitions for transitions, _ in counts),
        "trajectories": sum(trajectories for _, trajectories in counts),
        "tasks": list(envs),
        "default_task": default.get_wrapper_attr("cur_task_id"),
        "sources": [
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "checksum": checksum(path),
                "transitions": transitions,
            }
            for path, (transitions, _) in zip(sources, counts, strict=True)
        ],
        "versions": {package: version_of(package) for package in PACKAGES},
    }
    try:
        with new_folder(target) as folder, contextlib.ExitStack() as stack:
            writer = Writer(folder, manifest, stack)
            for path in tqdm(sources, desc="convert", unit="file", disable=not progress):
                final = append(writer, read_raw(path, layout), name, envs)
            padding = np.zeros((1, obs_dim + act_dim), np.float32)
            padding[0, :obs_dim] = final
            writer.write(records=padding)
            writer.finish()
    finally:
        for env in (*envs.values(), default):
            env.close()
    return target


def count_rows(path: Path, layout: Layout) -> tuple[int, int]:
    """Return the transitions and the trajectories of an OGBench file."""
    terminals = read_terminals(path, layout)
    trajectories = int(np.count_nonzero(terminals))
    return len(terminals) - trajectories, trajectories


def append(
    writer: Writer, arrays: dict[str, np.ndarray], name: DatasetName, envs: dict[int, Any]
) -> np.ndarray:
    """Write the transitions of one file; return its last observation."""
    observations, following = arrays["observations"], arrays["next_observations"]
    ends = arrays["terminals"] != 0
    actions = arrays["actions"].clip(-ACTION_LIMIT, ACTION_LIMIT)
    writer.write(
        records=np.concatenate([observations, actions], axis=1),
        finals=following[ends],
        terminals=ends,
    )
    for task, env in envs.items():
        relabel(name.single_task(task), env, arrays)
        writer.write(
            **{f"rewards_task{task}": arrays["rewards"], f"masks_task{task}": arrays["masks"]}
        )
    return following[-1]
