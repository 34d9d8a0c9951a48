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
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.damage import Damaged, reading
from trqam_fast.data.names import DatasetName, parse_dataset
from trqam_fast.data.npz import checksum, layout_of, read_header
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import open_file, read_text
from trqam_fast.simulator.environment import task_env
from trqam_fast.text import printable

Number = type[np.float32] | type[np.uint8]

FORMAT = 2
"""Of the folder; a change of what is in it raises the number. Format 1 had no checksums of its
sources and of the manifest."""
MANIFEST, LARGEST_MANIFEST = "manifest.json", 2**20
MOST_TASKS = 100
BROKEN = "is no whole flat set", "delete the folder and convert the dataset again"
"""What is said of a damaged flat set, and what helps."""
ACTION_LIMIT = 1.0 - 1e-5


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
        expected = self.offset(name) + math.prod(shape) * np.dtype(dtype).itemsize
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
            expected = layout.obs_dim, layout.act_dim, env.get_wrapper_attr("cur_task_id")
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


def expected_arrays(manifest: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], Number]]:
    """Return shape and dtype of every array of a flat set."""
    count, obs_dim = manifest["transitions"], manifest["obs_dim"]
    arrays: dict[str, tuple[tuple[int, ...], Number]] = {
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
            array: {"shape": list(shape), "dtype": str(np.dtype(dtype))}
            for array, (shape, dtype) in expected_arrays(manifest).items()
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
