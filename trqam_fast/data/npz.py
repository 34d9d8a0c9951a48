"""Reads and checks OGBench's npz files."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trqam_fast.data.names import PUBLISHED, DatasetName
from trqam_fast.errors import UsageError
from trqam_fast.simulator.environment import env_sizes

UNREADABLE = (
    OSError, zipfile.BadZipFile, ValueError, EOFError, zlib.error, KeyError, RuntimeError,
)  # fmt: skip
"""What reading a damaged archive raises."""

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


def read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of every array of an npz file.

    Raises:
        UsageError: the file is truncated or no npz file.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(file)
                    found[member.removesuffix(".npy")] = shape, dtype
    except UNREADABLE as error:
        raise UsageError(
            f"{path} is truncated or no npz file ({error}); delete it and get it again"
        ) from None
    return found


def header_problems(path: Path, layout: Layout) -> list[str]:
    """Compare the headers of an npz file with what its environment's files have.

    Raises:
        UsageError: the file is truncated or no npz file.
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
                f"{path}: {name} has dtype {dtype}, which is damaged or foreign; get the file again"
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
    """Return whether an archive's directory or headers cannot be read; contents are not."""
    try:
        read_headers(path)
    except UsageError:
        return True
    return False


def bad_member(path: Path) -> str | None:
    """Read a whole archive; return what is damaged, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except UNREADABLE as error:
        return f"is truncated or no npz file ({error})"
    return None if member is None else f"is damaged: the checksum of {member} is wrong"


def problems_of(path: Path, layout: Layout) -> list[str]:
    """Check a whole npz file.

    Returns:
        A sentence for everything that is wrong: checksums, arrays, shapes, dtypes, non-finite
        values, terminal rows.
    """
    damage = bad_member(path)
    if damage is not None:
        return [f"{path} {damage}; delete it and get it again"]
    try:
        problems = header_problems(path, layout)
        with np.load(path) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    bad = np.argwhere(~np.isfinite(array))
                    problems.append(
                        f"{path}: {name} has non-finite values ({len(bad)}, the first at "
                        f"{bad[0].tolist()}); get the file again"
                    )
                if name == "terminals" and array.ndim == 1:
                    found = trajectory_problems(array, layout.equal)
                    problems += [f"{path}: {problem}" for problem in found]
    except UsageError as error:
        return [str(error)]
    except UNREADABLE as error:
        return [damaged(path, error)]
    return problems


def read_terminals(path: Path, layout: Layout) -> np.ndarray:
    """Check an OGBench file's headers and terminal rows; return the latter, `[rows]`.

    Raises:
        UsageError: the file is truncated, foreign or has wrong terminals.
    """
    problems = header_problems(path, layout)
    if not problems:
        try:
            with np.load(path) as archive:
                terminals = archive["terminals"]
        except UNREADABLE as error:
            raise UsageError(damaged(path, error)) from None
        found = trajectory_problems(terminals)
        problems = [f"{path}: {problem}; get the file again" for problem in found]
    if problems:
        raise UsageError(problems[0])
    return terminals


def damaged(path: Path, error: Exception) -> str:
    """Return the message for an archive that cannot be read."""
    return f"{path} is truncated or damaged ({error}); delete it and get it again"


def read_raw(path: Path, layout: Layout) -> dict[str, np.ndarray]:
    """Load an OGBench file as transitions, without rewards.

    Returns:
        `ogbench.load_dataset`'s arrays with `layout.extra`: observations, actions,
        next_observations and terminals are float32; trajectories have lost their last row.

    Raises:
        UsageError: the file is truncated, foreign, has non-finite values or wrong terminals.
    """
    import ogbench

    read_terminals(path, layout)
    try:
        arrays = ogbench.load_dataset(path, add_info=True)
    except UNREADABLE as error:
        raise UsageError(damaged(path, error)) from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} has non-finite values; get the file again")
    return arrays
