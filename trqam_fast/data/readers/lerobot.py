"""LeRobotDataset folders, versions 2 and 3: ``meta/info.json`` and parquet files in ``data``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.damage import reading
from trqam_fast.data.readers import Arrays, installed
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, open_file, read_text
from trqam_fast.text import printable

STATE = ("observation.state",)
OUTCOMES = ("next.reward", "next.success", "next.done")
"""Columns that a dataset may have."""
VERSIONS = ("v2.0", "v2.1", "v3.0")


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the transitions of all episodes; see `readers.read`.

    Observations are the columns `keys`, by default ``observation.state``. The task is over where
    ``next.success`` says so. Without it, demonstrations without ``next.reward`` are taken for
    successful at the end of each episode; otherwise ``next.done`` tells where the task ended, if it
    is there. Without ``next.reward`` the reward is 0 where the task is over, -1 elsewhere.
    """
    parquet = installed("pyarrow.parquet", "lerobot", place)
    folder = expanded(Path(place))
    info = folder / "meta" / "info.json"
    with reading(info, "is no description of a LeRobotDataset", "name the dataset's folder"):
        version = json.loads(read_text(info))["codebase_version"]
    if version not in VERSIONS:
        raise UsageError(
            f"{info}: codebase_version is {version!r}, expected one of {', '.join(VERSIONS)}; "
            "convert the dataset with lerobot"
        )
    files = sorted((folder / "data").glob("*/*.parquet"))
    if not files:
        raise UsageError(f"{folder} has no data/*/*.parquet, expected one or more; fetch them")
    names = keys or STATE
    parts: dict[str, list[np.ndarray]] = {}
    for path in files:
        with reading(path, "is truncated, damaged or no parquet file", "copy it again"):
            with open_file(path) as file:
                table = parquet.read_table(file)
        for name in (*names, "action", "episode_index", "frame_index"):
            if name not in table.column_names:
                raise UsageError(
                    f"{path} has no column {name!r}; it has {', '.join(table.column_names)}"
                )
        optional = [name for name in OUTCOMES if name in table.column_names]
        for name in (*names, "action", "episode_index", "frame_index", *optional):
            parts.setdefault(name, []).append(column(table[name], name, path))
    columns = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    order = np.lexsort((columns["frame_index"], columns["episode_index"]))
    columns = {name: array[order] for name, array in columns.items()}
    arrays, notes = transitions(columns, names, place)
    unused = [n for n in table.column_names if n.startswith("observation.") and n not in names]
    if unused and not keys:
        shown = ", ".join(map(printable, unused))
        notes.append(f"{place} has observations that are not used: {shown}")
    return arrays, notes


def column(values: Any, name: str, path: Path) -> np.ndarray:
    """Return a column as `[rows, width]`, or `[rows]` of numbers."""
    array = values.to_numpy(zero_copy_only=False) if values.num_chunks else np.empty(0)
    if array.dtype != object:
        return array
    widths = {np.size(row) for row in array}
    if len(widths) != 1:
        raise UsageError(
            f"{path}: rows of {name!r} have {sorted(widths)} numbers, expected one width"
        )
    return np.stack([np.asarray(row).ravel() for row in array])


def transitions(
    columns: dict[str, np.ndarray], names: tuple[str, ...], place: str
) -> tuple[Arrays, list[str]]:
    """Return transitions of columns `[N, ...]` that are in order, and what is worth saying."""
    rows = len(columns["episode_index"])
    if not rows:
        raise UsageError(f"{place} has no frames, expected some; record episodes")
    ends = np.append(np.diff(columns["episode_index"]) != 0, True)
    arrays = {
        "observations": np.concatenate([columns[n].reshape(rows, -1) for n in names], axis=1),
        "actions": columns["action"].reshape(rows, -1),
        "terminals": ends,
    }
    columns = {name: columns[name].reshape(rows) for name in OUTCOMES if name in columns}
    for name in ("next.success", "next.done"):
        if name in columns and not np.isin(columns[name], (0, 1)).all():
            raise UsageError(f"{place}: {name} holds other values than true and false; mend them")
    over, notes = task_ends(columns, ends, place)
    if over is not None:
        arrays |= {"masks": ~over, "rewards": over - 1.0}
    if "next.reward" in columns:
        arrays["rewards"] = columns["next.reward"]
    return arrays, notes


def task_ends(
    columns: dict[str, np.ndarray], ends: np.ndarray, place: str
) -> tuple[np.ndarray | None, list[str]]:
    """Return where the task ended, bool `[N]`, or None if nothing says it; and notes.

    Args:
        columns: Those of `OUTCOMES` that there are, `[N]`.
        ends: Last frames of episodes, bool `[N]`.
        place: The dataset, for notes.
    """
    rewarded = "next.reward" in columns
    if "next.success" in columns:
        over = columns["next.success"].astype(bool)
        note = f"{place}: next.success ends the task in {over.sum()} of {len(over)} frames"
        if not rewarded:
            note += "; there is no next.reward, so the reward is 0 there, -1 elsewhere"
        return over, [note]
    if not rewarded:
        return ends, [
            f"{place} has no next.reward, so every episode counts as a success: reward 0 at its "
            "end, -1 before"
        ]
    if "next.done" not in columns:
        return None, []
    over = columns["next.done"].astype(bool)
    if not over[ends].all():
        return over, []
    return over, [
        f"{place}: next.done is set in the last frame of every episode, so each counts as an end "
        "of the task; write next.success if a time limit cut some off"
    ]
