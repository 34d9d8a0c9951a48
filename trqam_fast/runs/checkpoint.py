"""Checkpoints: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import written_whole
from trqam_fast.networks import MLPShape, ScalarShape

FORMAT = 3
WEIGHTS = {"stage", "step", "agent", "shapes"}
"""What a checkpoint holds that a run can start from."""

PROGRESS = {
    "ends", "data", "sequences", "drawn", "history", "success", "evaluated", "seconds",
    "updates", "failures", "online",
}  # fmt: skip
"""What it holds besides if a run can be continued from it."""

READ_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


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
        raise RunError(f"cannot write the checkpoint {path}: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; every byte is checked first.

    Raises:
        UsageError: the file is missing, damaged, foreign, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT or not set(state) >= WEIGHTS:
            raise ValueError("its contents are of another version")
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise UsageError(f"{path} is not a readable checkpoint ({reason})") from None
    return state


def load_newest(folder: Path, warn: Callable[[str], None]) -> tuple[dict[str, Any] | None, str]:
    """Return the newest checkpoint of a run that is whole, and its name; (None, "") without any.

    Args:
        folder: The run's checkpoints.
        warn: Told of each damaged one.

    Raises:
        UsageError: there are checkpoints, but none that a run can be continued from.
    """
    paths = sorted(folder.glob("*.pt"), reverse=True)
    for path in paths:
        try:
            state = load(path)
            if "generators" in state:  # Version 0.1.0 had states of generators.
                state["drawn"] = 0
            if not set(state) >= PROGRESS:
                raise UsageError(f"{path} holds weights but no progress; pass it as --pretrained")
            return state, path.name
        except UsageError as error:
            warn(f"warning: {error}; trying the one before")
    if paths:
        raise UsageError(f"{folder} holds no whole checkpoint; start again with --overwrite")
    return None, ""


def plain_shapes(shapes: Mapping[str, MLPShape | ScalarShape]) -> dict[str, list[list[int]]]:
    """Shapes of the networks' tensors, as plain values."""
    return {name: [list(shape) for shape in net.tensor_shapes] for name, net in shapes.items()}


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to continue from: the one that sorts last."""
    found = sorted(folder.glob("*.pt"))
    return found[-1] if found else None


def prune(folder: Path, keep: int, protected: set[Path]) -> None:
    """Delete all but the `keep` newest checkpoints and the `protected` ones."""
    for path in sorted(folder.glob("*.pt"))[:-keep]:
        if path not in protected:
            path.unlink(missing_ok=True)
