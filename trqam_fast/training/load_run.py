"""A run read back from its folder, or from its export, to act with."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.agents import ALGORITHMS, Agent
from trqam_fast.damage import Damaged, reading, reason_of
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, open_file, sha256_of
from trqam_fast.kernels import Backend, BackendError
from trqam_fast.kernels.dispatch import check_backend
from trqam_fast.kinds import check_kind
from trqam_fast.runs import checkpoint as checkpoints
from trqam_fast.runs.folder import MODEL, RunFolder, is_export
from trqam_fast.runs.values import load_json
from trqam_fast.streams import say
from trqam_fast.training import backend
from trqam_fast.training.backend import check_asked, settle_backend
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.interface import Sizes, read_sizes, sizes_of

FORMAT = 1
"""Of an export's config."""

CONFIG = "config.json"

LAYERS = ("kernels", "biases", "norm_scales", "norm_biases")
"""Parts of a network that hold a tensor for each layer."""

LEFT_OUT = {"online", "target", "exp_avg", "exp_avg_sq"}
"""State of an agent that is exported layer by layer, or belongs to its optimiser."""


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
    kind: type[Agent] | None = None,
) -> LoadedRun:
    """Rebuild the agent of a run folder, or of an export.

    Args:
        path: The run folder, or what `write_export` wrote.
        checkpoint: One of its checkpoints; the newest whole one by default, with a warning on
            stderr for each damaged one after it.
        device: Torch device to act on, whatever the run was trained on.
        backend: Implementation of the ops.
        kind: As of `load_export`.

    Raises:
        UsageError: no such device or backend, no run, no checkpoint, one that does not fit the
            other, or weights that are not finite; of an export as of `load_export`.
        Unreadable: the system refuses.
        BackendError: the backend cannot run on the device.
    """
    check_here(device, backend)
    path = expanded(Path(path))
    if is_export(path):
        if checkpoint is not None:
            raise UsageError(f"{path} is an export, which has no checkpoints; drop --checkpoint")
        return load_export(path, device, backend, kind)
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
            raise UsageError(
                f"{path} is an export, but {MODEL} is missing; copy it there, or export the run "
                "again"
            )
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


def load_export(
    folder: str | os.PathLike,
    device: str = "cpu",
    backend: Backend = "auto",
    kind: type[Agent] | None = None,
) -> LoadedRun:
    """Make the agent of an export; nothing in it is executed.

    Args:
        folder: What `write_export` wrote.
        device: Torch device to act on.
        backend: Implementation of the ops.
        kind: Class of an algorithm that is not of this package: a name in a file imports nothing.

    Raises:
        UsageError: no such device or backend, or it is no export, damaged, of another version, or
            of a class that is not given.
        BackendError: the backend cannot run on the device.
    """
    check_here(device, backend)
    safetensors, folder = load_safetensors(), expanded(Path(folder))
    with reading(folder / CONFIG, "is no config of an export", "export the run again"):
        values = load_json(folder / CONFIG)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r} is of another version")
        settings, stage = dict(values["settings"]), str(values["stage"])
        diverged = {str(seed): str(why) for seed, why in values.get("failures", {}).items()}
        step, act_dim = int(values["step"]), int(values["act_dim"])
        # An export of a version without bounds is of OGBench's tasks.
        sizes = sizes_of({"low": (-1.0,) * act_dim, "high": (1.0,) * act_dim} | values)
        if len(sizes.low) != act_dim:
            raise ValueError("its bounds are not those of an action")
        check_class(str(settings["algo"]), kind)
        config = config_here(settings, device, backend)
    check_asked(config)
    config = settle_backend(config, act_dim)
    agent = make_agent(config, stage, sizes.obs_dim, act_dim)
    path = folder / MODEL
    with reading(path, "does not hold the weights", "export the run again"):
        open_file(path).close()  # safetensors would wait for a pipe's writer
        try:
            saved = safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from None
        own = weights(agent)
        if set(saved) != set(own):
            odd = sorted(set(saved) ^ set(own))
            raise ValueError(f"{odd[0]} is {'missing' if odd[0] in own else 'unknown'}")
        for name, tensor in own.items():
            if saved[name].shape != tensor.shape or saved[name].dtype != tensor.dtype:
                raise ValueError(f"{name} is {saved[name].dtype} {list(saved[name].shape)}")
            tensor.copy_(saved[name])
        found = sha256_of(path)
        if values.get("sha256", found) != found:  # exports of earlier versions have none
            raise ValueError(f"its checksum is not the one in {CONFIG}")
    failures = {at: diverged[str(s)] for at, s in enumerate(config.seeds) if str(s) in diverged}
    return LoadedRun(config, agent, stage, step, path, sizes, failures)


def what_it_is(path: Path) -> str:
    """Return what is said of a path that is no run's folder."""
    if path.is_file():
        return "is a file, which --checkpoint takes beside its run"
    return "holds no config.json" if path.exists() else "does not exist"


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


def weights(agent: Agent) -> dict[str, Tensor]:
    """Return the tensors that an agent acts and is evaluated with, by name.

    A network has ``NETWORK.kernels.0`` `[S, in, out]` and so on, critics `[S, E, in, out]`, their
    targets ``target_NETWORK.kernels.0``; trained numbers are `[S, 1]`, other state such as lambda
    is `[S]`. They are views of the agent's memory.
    """
    found = {}
    for prefix, block in (("", agent.online), ("target_", agent.target)):
        for network, parts in block.networks.items():
            for part in LAYERS:
                for layer, tensor in enumerate(getattr(parts, part)):
                    found[f"{prefix}{network}.{part}.{layer}"] = tensor
        found |= {f"{prefix}{name}": number for name, number in block.scalars.items()}
    found |= {name: tensor for name, tensor in agent.state().items() if name not in LEFT_OUT}
    return {name: tensor.detach() for name, tensor in found.items()}


def check_class(algo: str, kind: type[Agent] | None) -> None:
    """Raise `UsageError` unless an algorithm is of this package, or `kind` is its class."""
    module, _, attribute = algo.partition(":")
    # Either where it is defined, or what a package that hands it on calls it.
    known = kind is not None and (
        f"{kind.__module__}:{kind.__qualname__}" == algo
        or getattr(sys.modules.get(module), attribute, None) is kind
    )
    if algo not in ALGORITHMS and not known:
        raise UsageError(
            f"the export is of {algo}, a class that is not of this package; pass it as kind=, or "
            "name it with --algo"
        )


def load_safetensors() -> ModuleType:
    """Return the package for tensors.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError:
        raise UsageError(
            "exports need safetensors, which is not installed; run pip install 'trqam_fast[export]'"
        ) from None
    return safetensors
