"""Checkpoints: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trqam_fast.damage import Damaged, Unreadable, reading, reason_of
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import open_file, written_whole
from trqam_fast.networks import MLPShape, ScalarShape
from trqam_fast.runs.folder import STAGES

FORMAT = 3
NAME = re.compile(r"step_(\d{1,20})\.pt")
TIMED = ("data", *STAGES, "evaluate")
"""What a run's seconds are counted for."""

Types = dict[str, type | tuple[type, ...]]

WEIGHTS: Types = {"stage": str, "step": int, "agent": dict, "shapes": dict}
"""What a checkpoint holds that a run can start from, and its types."""

PROGRESS: Types = {
    "ends": dict, "data": str, "sequences": dict, "drawn": int, "history": Tensor,
    "success": dict, "evaluated": int, "seconds": dict, "updates": dict, "failures": dict,
    "online": (dict, type(None)),
}  # fmt: skip
"""What it holds besides if a run can be continued from it, and its types."""

INNER: dict[str, tuple[type, type]] = {
    "agent": (str, Tensor), "shapes": (str, list), "ends": (str, int), "success": (str, list),
    "seconds": (str, float), "updates": (str, int), "failures": (int, str),
}  # fmt: skip
"""Types of the names and of the values in some of these."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, whole or not at all.

    Raises:
        RunError: the disk refuses; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        raise RunError(f"cannot write the checkpoint {path}: {reason_of(error)}") from None


def load(path: Path, remedy: str = "name another one") -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; every byte is checked first.

    Args:
        path: The file.
        remedy: What to do if it is damaged.

    Raises:
        Damaged: its contents are not those of a checkpoint.
        Unreadable: the system refuses.
        UsageError: it is of another format.
    """
    with reading(path, "is no whole checkpoint of this package", remedy), open_file(path) as file:
        check_archive(file)
        file.seek(0)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # torch's own words fill a page
            raise ValueError("it holds other things than tensors and plain values") from None
        if not isinstance(state, dict) or state.keys().isdisjoint(WEIGHTS):
            raise ValueError("it holds no state of a run")
        check_tensors(state)
        found = state.get("format")
        if isinstance(found, int) and found != FORMAT:
            raise UsageError(
                f"{path} is of another version (format {found}, here {FORMAT}); use the version of "
                "trqam_fast that wrote it"
            )
        if "generators" in state:  # as version 0.1.0 had instead
            state["drawn"] = 0
        check_types(state)
        if step_of(path) not in (-1, state["step"]):
            raise ValueError(f"its step is {state['step']}")
    return state


def check_archive(file: BinaryIO) -> None:
    """Raise an error if a checksum is wrong, or a part is not stored as torch stores it."""
    with zipfile.ZipFile(file) as archive:
        if not any(name.endswith("/data.pkl") for name in archive.namelist()):
            raise ValueError("it holds no state of a run")
        for part in archive.infolist():
            # Nothing is compressed, so no small file asks for much memory.
            if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
                raise ValueError(f"{part.filename} is packed as torch packs nothing")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def check_tensors(state: dict[str, Any]) -> None:
    """Raise `ValueError` if a tensor, however deep, claims more numbers than were stored."""
    values, seen = [state], set()
    while values:
        value = values.pop()
        if id(value) in seen:  # a file may hold a list that holds itself
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            size = value.numel() * value.element_size()
            stored = 0 if value.is_meta else value.untyped_storage().nbytes()
            if value.layout != torch.strided or size > stored:
                raise ValueError(f"a tensor claims the shape {list(value.shape)}")
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list | tuple):
            values += value


def check_types(state: dict[str, Any]) -> None:
    """Raise an error if an entry is missing that weights need, or one has another type."""
    for name, kind in (WEIGHTS | PROGRESS).items():
        if name not in state and name in PROGRESS:
            continue
        value = state[name]
        right = isinstance(value, kind) and not isinstance(value, bool)
        if right and name in INNER:
            key, inner = INNER[name]
            right = all(isinstance(k, key) and isinstance(v, inner) for k, v in value.items())
        if not right:
            raise ValueError(f"its entry {name} has another type")
    sizes = [n for shapes in state["shapes"].values() for shape in shapes for n in shape]
    rates = [rate for rates in state.get("success", {}).values() for rate in rates]
    if not all(isinstance(n, int) for n in sizes) or not all(isinstance(r, float) for r in rates):
        raise ValueError("its shapes or success rates are no numbers")
    if not 0 <= state.get("drawn", 0) < 2**63:
        raise ValueError("its count of random numbers is impossible")
    if not 0 <= state["step"] < 2**53 or state["agent"]["online"].ndim != 2:
        raise ValueError("its step or its weights are impossible")
    if "history" in state and state["history"].ndim != 3:
        raise ValueError(f"its history has shape {list(state['history'].shape)}")
    names = state.get("metrics", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its names of metrics are no words")
    known = {"seconds": TIMED, "updates": STAGES}
    if any(name in state and state[name].keys() != set(known[name]) for name in known):
        raise ValueError("its times or counts are of other stages")
    runs = state["agent"]["online"].shape[0]
    if any(len(rates) != runs for rates in state.get("success", {}).values()):
        raise ValueError("its success rates are of another number of runs")
    if not set(state.get("failures", {})) <= set(range(runs)):
        raise ValueError("its failures name a run that it has not")


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Any] | None, str]:
    """Return the newest checkpoint of a run that is whole, and its name; (None, "") without any.

    Args:
        folder: The run's checkpoints.
        warn: Told of each damaged one.

    Raises:
        Damaged: there are checkpoints, but all are damaged.
        Unreadable: the system refuses to read one, which may be whole, so none before it serves.
        UsageError: the newest one is of another format.
    """
    paths = found(folder)[::-1]
    for path in paths:
        try:
            return load(path), path.name
        except Damaged as error:
            warn(f"warning: {error}; trying the one before")
    if paths:
        raise Damaged(f"{folder} holds no whole checkpoint; start again with --overwrite")
    return None, ""


def plain_shapes(shapes: Mapping[str, MLPShape | ScalarShape]) -> dict[str, list[list[int]]]:
    """Shapes of the networks' tensors, as plain values."""
    return {name: [list(shape) for shape in net.tensor_shapes] for name, net in shapes.items()}


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the oldest first; none without the folder.

    Files with other names than a run gives them come before all.

    Raises:
        Unreadable: the system refuses to list them.
    """
    try:
        paths = (path for path in folder.iterdir() if path.suffix == ".pt")
        return sorted(paths, key=lambda path: (step_of(path), path.name))
    except FileNotFoundError:
        return []
    except OSError as error:  # glob would return none
        raise Unreadable(folder, error) from None


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name, -1 if it has none."""
    named = NAME.fullmatch(path.name)
    return -1 if named is None else int(named[1])


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to continue from: the one that sorts last."""
    return next(reversed(found(folder)), None)


def prune(folder: Path, keep: int, protected: set[Path]) -> None:
    """Delete all but the `keep` newest checkpoints, the `protected` ones, and files of others."""
    for path in found(folder)[:-keep]:
        if path not in protected and step_of(path) >= 0:
            path.unlink(missing_ok=True)
