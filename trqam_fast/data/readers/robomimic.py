"""hdf5 files: robomimic's groups ``data/demo_N``, low-dimensional, or D4RL's arrays at the root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.damage import reading
from trqam_fast.data.readers import Arrays, installed, refuse_keys
from trqam_fast.data.readers.whole import SHAPES, check_arrays
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, open_file


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the transitions of all demonstrations, or the arrays of D4RL; see `readers.read`.

    Observations are joined in the order of `keys`, by default all that are vectors, by name.
    `dones` is 1 where the task ended, so `masks` is its opposite.
    """
    h5py = installed("h5py", "robomimic", place)
    path = expanded(Path(place))
    with reading(path, "is truncated, damaged or no hdf5 file", "copy it again"):
        with open_file(path) as binary, h5py.File(binary, "r") as file:
            if "observations" in file:
                return flat(file, place, keys)
            demos = file["data"] if "data" in file else {}
            names = sorted(demos, key=lambda name: (len(name), name))
            if not names:
                raise UsageError(
                    f"{place} has no group data/demo_0, expected one for each episode, nor "
                    "observations at its root, as D4RL has; save one of the two, or an npz"
                )
            parts = [demonstration(demos[n], f"{place}: data/{n}", keys) for n in names]
            used = keys or vector_names(demos[names[0]]["obs"])
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in shared}
    return arrays, [f"observations of {place}: {', '.join(used)}"]


def flat(file: Any, place: str, keys: tuple[str, ...]) -> tuple[Arrays, list[str]]:
    """Return the arrays at the root of an open file, which are those of the plain npz."""
    refuse_keys(keys, place)
    groups = np.dtype(object)  # which hold no numbers
    notes = check_arrays({n: getattr(item, "dtype", groups) for n, item in file.items()}, place)
    return {name: np.asarray(file[name]) for name in SHAPES if name in file}, notes


def vector_names(group: Any) -> list[str]:
    """Return the names of a group's arrays of vectors or numbers, in order."""
    return sorted(name for name, array in group.items() if array.ndim in (1, 2))


def demonstration(group: Any, where: str, keys: tuple[str, ...]) -> Arrays:
    """Return the transitions of an episode's group."""
    for name in ("obs", "actions", "rewards"):
        if name not in group:
            raise UsageError(f"{where} has no {name!r}, expected one; it has {', '.join(group)}")
    steps = len(group["actions"])
    arrays = {
        "observations": joined(group["obs"], keys, steps, f"{where}/obs"),
        "actions": np.asarray(group["actions"]).reshape(steps, -1),
        "rewards": np.asarray(group["rewards"]),
        "terminals": np.arange(steps) == steps - 1,
    }
    if "dones" in group:
        arrays["masks"] = np.asarray(group["dones"]) == 0
    if "next_obs" in group:
        arrays["next_observations"] = joined(group["next_obs"], keys, steps, f"{where}/next_obs")
    return arrays


def joined(group: Any, keys: tuple[str, ...], steps: int, where: str) -> np.ndarray:
    """Return observations side by side, `[T, O]`."""
    names = keys or vector_names(group)
    for name in names:
        if name not in group or len(group[name]) != steps:
            found = f"{len(group[name])} rows" if name in group else "none"
            raise UsageError(
                f"{where} has {found} of {name!r}, expected {steps}; it has {', '.join(group)}"
            )
    if not names:
        raise UsageError(f"{where} has no vectors, expected some; it has {', '.join(group)}")
    return np.concatenate([np.asarray(group[name]).reshape(steps, -1) for name in names], axis=1)
