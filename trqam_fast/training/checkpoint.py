"""Checkpoints: tensors and plain values only, written whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from trqam_fast.agents import Agent
from trqam_fast.errors import RunError, UsageError

FORMAT = 2
KEYS = {
    "stage", "step", "agent", "shapes", "generators", "history", "success", "evaluated", "seconds",
    "updates", "failures",
}  # fmt: skip
READ_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    pickle.UnpicklingError,
)  # fmt: skip
NETWORK_FLAGS = {"actor": "--actor-hidden-dims", "critic": "--value-hidden-dims"}


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to a temporary name, flush it to the disk, and rename it.

    Raises:
        RunError: the disk refuses; what was there before stays.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write the checkpoint {path}: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        UsageError: the file is damaged, foreign, or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT or not KEYS <= set(state):
            raise ValueError("its contents are of another version")
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]
        older = sorted(other for other in path.parent.glob("*.pt") if other < path)
        remedy = f"resume from {older[-1].name}" if older else "start again"
        raise UsageError(
            f"{path} is not a readable checkpoint ({reason}); delete it to {remedy}"
        ) from None
    return state


def network_shapes(agent: Agent) -> dict[str, list[list[int]]]:
    """Shapes of an agent's tensors by network, as plain values."""
    return {
        name: [list(shape) for shape in network.tensor_shapes]
        for name, network in agent.online.shapes.items()
    }


def restore(agent: Agent, state: dict[str, Any], path: Path) -> None:
    """Load the agent's part of a checkpoint.

    Raises:
        UsageError: it was made with other networks or another number of seeds.
    """
    saved, expected = state["shapes"], network_shapes(agent)
    for name in expected:
        for found, wanted in zip(saved.get(name, []), expected[name], strict=False):
            if found != wanted:
                flag = NETWORK_FLAGS["critic" if name == "critic" else "actor"]
                raise UsageError(
                    f"{path}: a tensor of {name} has shape {found}, but the flags ask for "
                    f"{wanted}; set {flag}, --horizon-length and --num-qs as in the checkpoint"
                )
        if len(saved.get(name, [])) != len(expected[name]):
            raise UsageError(
                f"{path}: {name} has {len(saved.get(name, []))} tensors, but the flags ask for "
                f"{len(expected[name])}; set the depth and LayerNorm flags as in the checkpoint"
            )
    runs = state["agent"]["online"].shape[0]
    if runs != agent.runs:
        raise UsageError(
            f"{path} holds {runs} runs, but --seeds names {agent.runs}; pass the same seeds"
        )
    agent.load_state_dict(state["agent"])


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to continue from: the one that sorts last."""
    found = sorted(folder.glob("*.pt"))
    return found[-1] if found else None


def prune(folder: Path, keep: int, protected: Path) -> None:
    """Delete all but the `keep` newest checkpoints and `protected`."""
    old = [path for path in sorted(folder.glob("*.pt"))[:-keep] if path != protected]
    for path in old:
        path.unlink(missing_ok=True)
