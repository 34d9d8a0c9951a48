"""Flat sets: a dataset as plain arrays on disk, which a trainer reads without loading them.

A flat set is a folder ``NAME.flat`` with ``manifest.json`` (dataset, sizes, the archives that it is
made of with their bytes and `npz.checksum`, checksums of the arrays and of itself) and, for N
transitions in F trajectories:

==================  ================================================================================
records.npy         float32 `[N + 1, O + A]`: observation and clipped action of a transition. The
                    last row holds the last observation again, so that windows of H + 1 rows exist.
finals.npy          float32 `[F, O]`: the observation after the last transition of a trajectory.
terminals.npy       uint8 `[N]`: 1 at the end of a trajectory.
rewards_taskK.npy   float32 `[N]`, for every single task of the environment.
masks_taskK.npy     uint8 `[N]`: 0 where task K is solved.
==================  ================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trqam_fast.damage import Damaged, reading
from trqam_fast.data.names import DatasetName, parse_dataset
from trqam_fast.data.npz import Layout, checksum, layout_of, read_header, read_raw, read_terminals
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import locked, open_file, read_text
from trqam_fast.simulator.environment import make_env, relabel
from trqam_fast.text import printable

FORMAT = 2
"""Of the folder; a change of what is in it raises the number. Format 1 had no checksums of its
sources and of the manifest."""
MANIFEST, LARGEST_MANIFEST = "manifest.json", 2**20
MOST_TASKS = 100
BROKEN = "is no whole flat set", "delete the folder and convert the dataset again"
"""What is said of a damaged flat set, and what helps."""
ACTION_LIMIT = 1.0 - 1e-5
PACKAGES = ("trqam_fast", "numpy", "ogbench", "mujoco", "gymnasium")


@dataclass(frozen=True)
class FlatSet:
    """A flat set whose manifest and file sizes have been checked.

    Attributes:
        path: The folder.
        manifest: Contents of the manifest.
    """

    path: Path
    manifest: dict[str, Any]
    _offsets: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path) -> FlatSet:
        """Read the manifest and compare it with the files' headers and sizes.

        Raises:
            UsageError: the set is of another version.
            Damaged: a file is missing, cut off or foreign.
            Unreadable: the system refuses.
        """
        with reading(path, *BROKEN):
            try:
                manifest = json.loads(read_text(path / MANIFEST, LARGEST_MANIFEST))
                if manifest["format"] not in (1, FORMAT):
                    raise UsageError(
                        f"{path} has format {printable(manifest['format'])}, this version reads 1 "
                        f"and {FORMAT}; {BROKEN[1]}"
                    )
                check_manifest(manifest)
                flat = cls(path, manifest)
                for name in expected_arrays(manifest):
                    flat._check_file(name)
            except FileNotFoundError as error:
                raise ValueError(f"{Path(error.filename).name} is missing") from None
        return flat

    def _check_file(self, name: str) -> None:
        shape, dtype = expected_arrays(self.manifest)[name]
        with open_file(self.file(name)) as file:
            found, size = read_header(file), os.fstat(file.fileno()).st_size
            self._offsets[name] = file.tell()
        if found != (shape, np.dtype(dtype)):
            raise ValueError(f"{name}.npy has shape {list(found[0])} and dtype {found[1]}")
        expected = self.offset(name) + int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size != expected:
            raise ValueError(f"{name}.npy has {size} bytes, not {expected}")

    def check_layout(self) -> None:
        """Compare the manifest with the environment, where it has no checksum of its own.

        Raises:
            Damaged: it has other sizes or another default task.
        """
        if self.manifest["format"] == FORMAT:
            return
        name = parse_dataset(self.manifest["dataset"])
        layout = layout_of(name)
        with contextlib.closing(task_env(name.single_task(None))) as env:
            expected = layout.obs_dim, layout.act_dim, env.unwrapped.cur_task_id
        found = self.obs_dim, self.act_dim, self.manifest["default_task"]
        if found != expected:
            raise Damaged(
                f"{self.path} {BROKEN[0]} (widths and default task are {found}, those of "
                f"{name.env_id} are {expected}); {BROKEN[1]}"
            )

    def made_of(self, archive: Path) -> bool:
        """Return whether the set was made of this archive, by its bytes and its arrays' checksums.

        A set of format 1 does not know the checksums; there it must not be older than the archive.

        Raises:
            Damaged: the archive is damaged.
            Unreadable: the system refuses.
        """
        sources, stat = self.manifest["sources"], archive.stat()
        if len(sources) != 1 or sources[0]["bytes"] != stat.st_size:
            return False
        if self.manifest["format"] == FORMAT:
            return sources[0].get("checksum") == checksum(archive)
        return (self.path / MANIFEST).stat().st_mtime >= stat.st_mtime

    def check_ends(self, ends: np.ndarray) -> None:
        """Compare the transitions that end a trajectory with the manifest.

        Raises:
            Damaged: they are others.
        """
        last = len(ends) > 0 and ends[-1] == self.transitions - 1
        if len(ends) != self.trajectories or not last:
            raise Damaged(
                f"{self.file('terminals')} marks {len(ends)} ends, the last transition "
                f"{'is' if last else 'is not'} one; the manifest has {self.trajectories} "
                f"trajectories; {BROKEN[1]}"
            )

    @property
    def transitions(self) -> int:
        """N."""
        return self.manifest["transitions"]

    @property
    def trajectories(self) -> int:
        """F."""
        return self.manifest["trajectories"]

    @property
    def obs_dim(self) -> int:
        """Width of an observation."""
        return self.manifest["obs_dim"]

    @property
    def act_dim(self) -> int:
        """Width of an action."""
        return self.manifest["act_dim"]

    def task_number(self, env_id: str) -> int:
        """Return the number of a single task, e.g. of ``cube-double-singletask-task3-v0``."""
        name = DatasetName(self.manifest["dataset"], self.manifest["env"])
        numbers = {name.single_task(task): task for task in self.manifest["tasks"]}
        numbers[name.single_task(None)] = self.manifest["default_task"]
        if env_id not in numbers:
            raise UsageError(f"{self.path} holds data of {name.env_id}, not of {env_id}")
        return numbers[env_id]

    def file(self, name: str) -> Path:
        """Return the path of an array."""
        return self.path / f"{name}.npy"

    def offset(self, name: str) -> int:
        """Return where the numbers of an array begin in its file."""
        return self._offsets[name]

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read the rows [start, stop) of an array, fewer if it ends before."""
        shape, dtype = expected_arrays(self.manifest)[name]
        width = int(np.prod(shape[1:]))
        rows = max(min(stop, shape[0]) - start, 0)
        offset = self.offset(name) + start * width * np.dtype(dtype).itemsize
        array = np.fromfile(self.file(name), dtype, rows * width, offset=offset)
        if array.size != rows * width:
            raise RunError(f"{self.file(name)} has become shorter; convert it again")
        return array.reshape(rows, *shape[1:])

    def read_task(
        self, task: int, start: int, stop: int, sparse: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read rewards, masks and terminals of the transitions [start, stop) as float32."""
        rewards = self.read(f"rewards_task{task}", start, stop)
        masks = self.read(f"masks_task{task}", start, stop).astype(np.float32)
        terminals = self.read("terminals", start, stop).astype(np.float32)
        return (sparse_rewards(rewards) if sparse else rewards), masks, terminals


def sparse_rewards(rewards: np.ndarray) -> np.ndarray:
    """Return 0 where the task is solved and -1 elsewhere, float32."""
    return -(rewards != 0).astype(np.float32)


def expected_arrays(manifest: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], type]]:
    """Return shape and dtype of every array of a flat set."""
    count, obs_dim = manifest["transitions"], manifest["obs_dim"]
    arrays: dict[str, tuple[tuple[int, ...], type]] = {
        "records": ((count + 1, obs_dim + manifest["act_dim"]), np.float32),
        "finals": ((manifest["trajectories"], obs_dim), np.float32),
        "terminals": ((count,), np.uint8),
    }
    for task in manifest["tasks"]:
        arrays[f"rewards_task{task}"] = ((count,), np.float32)
        arrays[f"masks_task{task}"] = ((count,), np.uint8)
    return arrays


def check_manifest(manifest: dict[str, Any]) -> None:
    """Look whether a manifest is one and does not contradict itself.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is damaged.
        UsageError: it is of a dataset that OGBench has not.
    """
    if manifest["format"] == FORMAT and manifest["checksum"] != checksum_of(manifest):
        raise ValueError("the checksum of the manifest is wrong")
    numbers = [manifest[name] for name in ("transitions", "trajectories", "obs_dim", "act_dim")]
    tasks, sources = manifest["tasks"], manifest["sources"]
    if not all(type(n) is int and n > 0 for n in [*numbers, *tasks[:MOST_TASKS]]):
        raise ValueError("a number in the manifest is none")
    name = parse_dataset(manifest["dataset"])
    fits = {
        "dataset": (name.dataset_name, name.env_id) == (manifest["dataset"], manifest["env"]),
        "trajectories": numbers[1] <= numbers[0],
        "tasks": 0 < len(tasks) <= MOST_TASKS and len({*tasks}) == len(tasks),
        "default_task": manifest["default_task"] in tasks,
        "sources": all(type(source["bytes"]) is int for source in sources),
    }
    if all(fits.values()):
        arrays = {
            name: {"shape": list(shape), "dtype": str(np.dtype(dtype))}
            for name, (shape, dtype) in expected_arrays(manifest).items()
        }
        found = {name: dict(entry) for name, entry in manifest["arrays"].items()}
        sums = [entry.pop("sha256") for entry in found.values()]
        fits["arrays"] = found == arrays and all(len(value) == 64 for value in sums)
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise ValueError(f"the manifest contradicts itself in {', '.join(wrong)}")


def checksum_of(manifest: dict[str, Any]) -> str:
    """Return the hash of what a manifest says, but for the hash itself."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Writer:
    """Writes a flat set array by array, a part at a time, and computes checksums on the way."""

    def __init__(self, folder: Path, manifest: dict[str, Any], stack: contextlib.ExitStack) -> None:
        self.folder, self.manifest = folder, manifest
        self.files, self.hashes = {}, {}
        for name, (shape, dtype) in expected_arrays(manifest).items():
            self.files[name] = stack.enter_context(open(folder / f"{name}.npy", "w+b"))
            header = {"shape": shape, "fortran_order": False, "descr": np.dtype(dtype).str}
            np.lib.format.write_array_header_1_0(self.files[name], header)
            self.files[name].seek(0)
            self.hashes[name] = hashlib.sha256(self.files[name].read())

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
        with open(self.folder / MANIFEST, "w") as file:
            file.write(json.dumps(self.manifest, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())


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
    layout = layout_of(name)
    counts = [count_rows(path, layout) for path in sources]
    envs = {task: task_env(env_id) for task, env_id in name.single_tasks().items()}
    default = task_env(name.single_task(None))
    manifest = {
        "format": FORMAT,
        "dataset": name.dataset_name,
        "env": name.env_id,
        "obs_dim": layout.obs_dim,
        "act_dim": layout.act_dim,
        "transitions": sum(transitions for transitions, _ in counts),
        "trajectories": sum(trajectories for _, trajectories in counts),
        "tasks": list(envs),
        "default_task": default.unwrapped.cur_task_id,
        "sources": [
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "checksum": checksum(path),
                "transitions": transitions,
            }
            for path, (transitions, _) in zip(sources, counts, strict=True)
        ],
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }
    try:
        with new_folder(target) as folder, contextlib.ExitStack() as stack:
            writer = Writer(folder, manifest, stack)
            for path in tqdm(sources, desc="convert", unit="file", disable=not progress):
                final = append(writer, read_raw(path, layout), name, envs)
            padding = np.zeros((1, layout.obs_dim + layout.act_dim), np.float32)
            padding[0, : layout.obs_dim] = final
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


def task_env(env_id: str) -> Any:
    """Make a single-task environment whose task is set."""
    env = make_env(env_id)
    env.reset()
    return env


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


def problems_of_flat(path: Path) -> list[str]:
    """Check a whole flat set: manifest, sizes, checksums, finite values, terminals.

    Returns:
        A sentence for everything that is wrong.

    Raises:
        Unreadable: the system refuses.
    """
    problems = []
    try:
        flat = FlatSet.open(path)
        for name, entry in flat.manifest["arrays"].items():
            hashed, finite = hashlib.sha256(), True
            with reading(path, *BROKEN), open_file(flat.file(name)) as file:
                hashed.update(file.read(flat.offset(name)))
                while block := file.read(2**24):
                    hashed.update(block)
                    if entry["dtype"] == "float32":
                        finite &= bool(np.isfinite(np.frombuffer(block, np.float32)).all())
            if hashed.hexdigest() != entry["sha256"]:
                problems.append(
                    f"{flat.file(name)} is damaged: its checksum is wrong; convert it again"
                )
            if not finite:
                problems.append(f"{flat.file(name)} has non-finite values; convert it again")
        flat.check_ends(np.flatnonzero(flat.read("terminals", 0, flat.transitions)))
        flat.check_layout()
    except UsageError as error:
        problems.append(str(error))
    return problems
