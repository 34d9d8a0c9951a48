"""A run read back from its folder, to act with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trqam_fast.agents import Agent
from trqam_fast.damage import Damaged, reading, reason_of
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded
from trqam_fast.kernels import Backend, BackendError
from trqam_fast.kernels.dispatch import check_backend
from trqam_fast.kinds import check_kind
from trqam_fast.runs import checkpoint as checkpoints
from trqam_fast.runs.folder import MODEL, RunFolder
from trqam_fast.streams import say
from trqam_fast.training import backend
from trqam_fast.training.backend import check_asked, settle_backend
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.interface import Sizes, read_sizes


class LoadedRun(NamedTuple):
    """A run's agent at one of its checkpoints, or of its export.

    Attributes:
        config: The run's configuration, of an export what is published of it, with the device and
            backend asked for.
        agent: `BCAgent` in stage "pretrain", else the algorithm's; S runs, one for each seed.
        stage: Stage that the weights are of.
        step: Updates from the start of pretraining.
        path: File of the weights.
        sizes: What the policy takes and gives.
        failures: Why, by index of the seeds that had diverged; their weights are the last good.
    """

    config: TrainConfig
    agent: Agent
    stage: str
    step: int
    path: Path
    sizes: Sizes
    failures: dict[int, str]


def load_run(
    path: Path | str,
    checkpoint: Path | str | None = None,
    device: str = "cpu",
    backend: Backend = "auto",
) -> LoadedRun:
    """Rebuild the agent of a run folder.

    Args:
        path: The run folder.
        checkpoint: One of its checkpoints; the newest whole one by default, with a warning on
            stderr for each damaged one after it.
        device: Torch device to act on, whatever the run was trained on.
        backend: Implementation of the ops.

    Raises:
        UsageError: no such device or backend, no run, no checkpoint, one that does not fit the
            other, or weights that are not finite.
        Unreadable: the system refuses.
        BackendError: the backend cannot run on the device.
    """
    check_here(device, backend)
    path = expanded(Path(path))
    checkpoint = None if checkpoint is None else expanded(Path(checkpoint))
    folder = RunFolder(path)
    if not folder.exists:
        raise UsageError(f"{path} {what_it_is(path)}; name the folder of a run")
    values = folder.read_config()
    with reading(
        path / "config.json", "is damaged or of another version",
        "use the version that made the run",
    ):  # fmt: skip
        if "settings" in values:
            raise UsageError(f"{path} is an export, {what_helps(path)}")
        config = config_here(values, device, backend)
    found, state = read_checkpoint(folder, checkpoint)
    check_asked(config)
    sizes = read_sizes(path, config)
    config = settle_backend(config, sizes.act_dim)
    agent = make_agent(config, state["stage"], sizes.obs_dim, sizes.act_dim)
    try:
        agent.load_state_dict(state["agent"])
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"{found} does not fit the networks that {path}/config.json describes "
            f"({reason_of(error)}); name a checkpoint of this run"
        ) from None
    check_finite(agent, config, found)
    failures = state.get("failures", {})
    return LoadedRun(config, agent, state["stage"], state["step"], found, sizes, failures)


def what_it_is(path: Path) -> str:
    """Return what is said of a path that is no run's folder."""
    if path.is_file():
        return "is a file, which --checkpoint takes beside its run"
    return "holds no config.json" if path.exists() else "does not exist"


def what_helps(export: Path) -> str:
    """Return what is said of an export where a run is due."""
    if (export / MODEL).exists():
        return "which has no checkpoints; name its run, or act with it by trqam_fast.Policy.load"
    return f"but {MODEL} is missing; copy it there, or export the run again"


def make_agent(config: TrainConfig, stage: str, obs_dim: int, act_dim: int) -> Agent:
    """Return the agent that acts in a stage of a run, with initial weights."""
    algo = "bc" if stage == "pretrain" else config.algo
    return backend.make_agent(config, algo, obs_dim, act_dim)


def check_finite(agent: Agent, config: TrainConfig, path: Path) -> None:
    """Raise `UsageError` if weights of a run are not finite: such a policy does nothing."""
    weights = [block.flat for block in (agent.online, agent.target)]
    good = torch.stack([flat.isfinite().all(-1) for flat in weights]).all(0)
    bad = [str(seed) for seed, fine in zip(config.seeds, good.tolist(), strict=True) if not fine]
    if bad:
        raise UsageError(
            f"{path} holds weights of seed {' and '.join(bad)} that are not finite; name another "
            "checkpoint"
        )


def read_checkpoint(folder: RunFolder, asked: Path | None) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint asked for, or the newest whole one, and its contents.

    Raises:
        UsageError: there is none, or it is damaged.
        Unreadable: the system refuses.
    """
    if asked is None:
        try:
            state, name = checkpoints.load_newest(folder.checkpoints, warn)
        except Damaged:
            raise Damaged(
                f"{folder.checkpoints} holds no whole checkpoint; train again with --overwrite"
            ) from None
        if state is None:
            raise UsageError(f"{folder.path} holds no checkpoint yet; wait for its first one")
        return folder.checkpoints / name, state
    if not asked.is_file():
        raise UsageError(f"--checkpoint {asked} is not a file; name one of {folder.checkpoints}")
    if asked.resolve().parent != folder.checkpoints.resolve():
        raise UsageError(
            f"--checkpoint {asked} is none of this run; name one of {folder.checkpoints}"
        )
    return asked, checkpoints.load(asked, "name another one with --checkpoint")


def warn(text: str) -> None:
    """Print to stderr."""
    say(text, "stderr")


def check_here(device: str, backend: Backend) -> None:
    """Raise `UsageError` unless there are such a device and backend."""
    check_kind("device", device, str)
    check_device(device)
    check_kind("backend", backend, Backend)


def config_here(values: dict[str, Any], device: str, backend: Backend) -> TrainConfig:
    """Return the configuration that a run stored, to act on another device.

    Its precision is the run's where the device and backend have it, else ``auto``.

    Raises:
        KeyError: no algorithm is named.
        ValueError: a flag is unknown.
        TypeError: a value has another type.
        UsageError: one is impossible.
    """
    here = {"device": device, "backend": backend, "plan": "auto"}
    config = TrainConfig.from_dict(values | here)
    if config.precision == "auto":
        return config
    try:
        check_backend(backend, torch.device(device), config.precision)
    except BackendError:  # What trained has it, what acts here has not; or cannot run at all.
        return replace(config, precision="auto")
    return config
