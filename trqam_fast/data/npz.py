"""Reads and checks OGBench's npz files."""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from trqam_fast.damage import Damaged, reading
from trqam_fast.data.names import PUBLISHED, DatasetName
from trqam_fast.errors import UsageError
from trqam_fast.files import open_file
from trqam_fast.simulator.environment import env_sizes
from trqam_fast.text import printable

BROKEN = "is truncated, damaged or no npz file", "delete it and get it again"
"""What is said of a damaged archive, and what helps."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy compresses."""

DEFLATED = 1032
"""Bytes that come of one deflated byte, at the most."""

Headers = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and dtype of arrays by name."""

KINDS = {"terminals": "biuf", "button_states": "iu"}
"""numpy's kinds of dtype that an array may have; the others are floating-point."""


@dataclass(frozen=True)
class Layout:
    """Arrays of an environment's files.

    Attributes:
        obs_dim: Width of an observation; None if the environment is unknown.
        act_dim: Width of an action; None if the environment is unknown.
        extra: Further arrays, which rewards are computed from.
        equal: Whether all trajectories of a file have the same length, as the published ones do.
    """

    obs_dim: int | None = None
    act_dim: int | None = None
    extra: tuple[str, ...] = ()
    equal: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shape of every array; None stands for any size."""
        shapes = {
            "observations": (None, self.obs_dim), "actions": (None, self.act_dim),
            "terminals": (None,),
        }  # fmt: skip
        return shapes | {name: (None, None) for name in self.extra}


def layout_of(name: DatasetName) -> Layout:
    """Return the layout of a dataset's files."""
    buttons = name.env_id.startswith(("scene", "puzzle"))
    return Layout(
        *env_sizes(name.env_id),
        ("qpos", "button_states") if buttons else ("qpos",),
        equal=name.dataset_name in PUBLISHED,
    )


def headers_of(file: BinaryIO) -> Headers:
    """Return the headers of an open npz file whose claimed sizes fit the file's.

    Raises:
        Exception: the file is damaged or cannot be read; see `reading`.
    """
    found, size = {}, os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            largest = min(member.compress_size, size)
            if member.compress_type == zipfile.ZIP_DEFLATED:
                largest *= DEFLATED
            if member.compress_type not in METHODS or member.file_size > largest:
                raise ValueError(f"{member.filename} is packed as numpy packs nothing")
            with archive.open(member) as content:
                shape, dtype = read_header(content)
                held = member.file_size - content.tell()
            # Objects are pickled, so they have no size; no reader takes them.
            if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
                raise ValueError(
                    f"{member.filename} claims an array of shape {list(shape)} in {held} bytes"
                )
            found[member.filename.removesuffix(".npy")] = shape, dtype
    return found


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and dtype of an open npy file, which is left where the numbers begin."""
    version = np.lib.format.read_magic(file)
    try:
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    except MemoryError:  # Python's parser: a header of 10 kB lacks no memory
        raise ValueError("a header is nested too deeply") from None
    return shape, dtype


def read_headers(path: Path) -> Headers:
    """Return shape and dtype of every array of an npz file.

    Raises:
        Damaged: the file is truncated or no npz file.
        Unreadable: the system refuses.
    """
    with reading(path, *BROKEN), open_file(path) as file:
        return headers_of(file)


def read_arrays(
    path: Path,
    complaint: str,
    remedy: str,
    kinds: str = "biuf",
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Return arrays of an npz file; memory is asked for what the file really holds.

    Args:
        path: The file.
        complaint: What is said of a damaged one; see `reading`.
        remedy: What helps then.
        kinds: numpy's kinds of dtype that the arrays may have.
        names: Those that are wanted of the arrays that there are; None takes all.

    Raises:
        Damaged: the file is truncated or no npz file, or an array is of another kind.
        Unreadable: the system refuses.
    """
    with reading(path, complaint, remedy), open_file(path) as file:
        wanted = {
            name: dtype
            for name, (_, dtype) in headers_of(file).items()
            if names is None or name in names
        }
        for name, dtype in wanted.items():
            if dtype.kind not in kinds:
                raise ValueError(f"{name} has dtype {dtype}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in wanted}
    return {  # torch takes this machine's order of bytes alone
        name: array.astype(array.dtype.newbyteorder("="), copy=False)
        for name, array in arrays.items()
    }


def checksum(path: Path) -> str:
    """Return a hash that archives of the same arrays share, however they are compressed.

    It is that of all names, sizes and CRC-32 sums, which an archive's directory holds, so that it
    costs no reading of the arrays.

    Raises:
        Damaged: the file is truncated or no npz file.
        Unreadable: the system refuses.
    """
    with reading(path, *BROKEN), open_file(path) as file, zipfile.ZipFile(file) as archive:
        members = [(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    return hashlib.sha256(repr(sorted(members)).encode()).hexdigest()


def header_problems(path: Path, layout: Layout) -> list[str]:
    """Compare the headers of an npz file with what its environment's files have.

    Raises:
        Damaged: the file is truncated or no npz file.
        Unreadable: the system refuses.
    """
    found = read_headers(path)
    rows = found.get("observations", ((None,),))[0][:1]
    problems = []
    for name, shape in layout.shapes.items():
        wanted = "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
        if name not in found:
            problems.append(
                f"{path} has no array {name!r} {wanted}; it is not a dataset of this environment"
            )
            continue
        shape_found, dtype = found[name]
        fits = len(shape_found) == len(shape) and shape_found[:1] == rows
        if not fits or any(b not in (None, a) for a, b in zip(shape_found, shape, strict=True)):
            problems.append(
                f"{path}: {name} has shape {list(shape_found)}, expected {wanted} with one row "
                "per observation; it is not a dataset of this environment"
            )
        if dtype.kind not in KINDS.get(name, "f"):
            problems.append(
                f"{path}: {name} has dtype {printable(dtype)}, which is damaged or foreign; get "
                "the file again"
            )
    return problems


def trajectory_problems(terminals: np.ndarray, equal: bool = False) -> list[str]:
    """Check the terminal rows of a raw file, whose trajectories have one row more than steps.

    Args:
        terminals: `[rows of the file]`, not 0 in the last row of every trajectory.
        equal: Whether all trajectories must have the same length.

    Returns:
        What is wrong, in words that follow a file's name.
    """
    if not len(terminals):
        return ["terminals is empty"]
    problems = []
    if not np.isin(terminals, (0, 1)).all():
        problems.append("terminals has values other than 0 and 1")
    ends = np.flatnonzero(terminals)
    if not len(ends) or ends[-1] != len(terminals) - 1:
        problems.append(
            "the last row is not terminal, so the last trajectory is cut off or terminals is wrong"
        )
    lengths = np.diff(ends, prepend=-1)
    if (lengths < 2).any():
        first = int(np.argmax(lengths < 2))
        problems.append(f"trajectory {first} has one row, so no transition")
    usual = int(np.bincount(lengths).argmax()) if len(lengths) else 0
    if equal and (lengths != usual).any():
        first = int(np.argmax(lengths != usual))
        problems.append(
            f"{int((lengths != usual).sum())} of {len(lengths)} trajectories do not have "
            f"{usual} rows; the first is trajectory {first} with {lengths[first]}"
        )
    return problems


def is_damaged(path: Path) -> bool:
    """Return whether an archive's directory or headers are damaged; contents are not read.

    Raises:
        Unreadable: the system refuses.
    """
    try:
        read_headers(path)
    except Damaged:
        return True
    return False


def whole_headers_of(file: BinaryIO) -> Headers:
    """Return the headers of an open npz file all of whose checksums are right.

    Raises:
        Exception: the file is damaged or cannot be read; see `reading`.
    """
    with zipfile.ZipFile(file) as archive:
        member = archive.testzip()
    if member is not None:
        raise ValueError(f"the checksum of {member} is wrong")
    return headers_of(file)


def problems_of(path: Path, layout: Layout) -> list[str]:
    """Check a whole npz file.

    Returns:
        A sentence for everything that is wrong: checksums, arrays, shapes, dtypes, non-finite
        values, terminal rows.

    Raises:
        Unreadable: the system refuses.
    """
    try:
        with reading(path, *BROKEN), open_file(path) as file:
            whole_headers_of(file)
        problems = header_problems(path, layout)
        with reading(path, *BROKEN), open_file(path) as file, np.load(file) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    bad = np.argwhere(~np.isfinite(array))
                    problems.append(
                        f"{path}: {printable(name)} has non-finite values ({len(bad)}, the first "
                        f"at {bad[0].tolist()}); get the file again"
                    )
                if name == "terminals" and array.ndim == 1:
                    found = trajectory_problems(array, layout.equal)
                    problems += [f"{path}: {problem}" for problem in found]
    except Damaged as error:
        return [str(error)]
    return problems


def read_terminals(path: Path, layout: Layout) -> np.ndarray:
    """Check an OGBench file's headers and terminal rows; return the latter, `[rows]`.

    Raises:
        UsageError: the file is truncated, foreign or has wrong terminals.
        Unreadable: the system refuses.
    """
    problems = header_problems(path, layout)
    if not problems:
        with reading(path, *BROKEN), open_file(path) as file, np.load(file) as archive:
            terminals = archive["terminals"]
        found = trajectory_problems(terminals)
        problems = [f"{path}: {problem}; get the file again" for problem in found]
    if problems:
        raise UsageError(problems[0])
    return terminals


def read_raw(path: Path, layout: Layout) -> dict[str, np.ndarray]:
    """Load an OGBench file as transitions, without rewards.

    Returns:
        `ogbench.load_dataset`'s arrays with `layout.extra`: observations, actions,
        next_observations and terminals are float32; trajectories have lost their last row.

    Raises:
        UsageError: the file is truncated, foreign, has non-finite values or wrong terminals.
        Unreadable: the system refuses.
    """
    import ogbench

    read_terminals(path, layout)
    with reading(path, *BROKEN), open_file(path) as file:
        arrays = ogbench.load_dataset(file, add_info=True)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} has non-finite values; get the file again")
    return arrays
