"""Write a run's weights for others: python -m trqam_fast.export RUN --out DIR (see --help).

An export is a folder of three files: ``model.safetensors``, ``config.json`` with all that the
networks need, and ``README.md``, a model card. `load_export` makes an agent of it. Nothing in it is
executed, and nothing of this machine is in it: no path, no optimiser, no data.
"""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro
from torch import Tensor

from trqam_fast import __version__
from trqam_fast.agents import ALGORITHMS, Agent
from trqam_fast.agents.config import groups_of
from trqam_fast.damage import reading
from trqam_fast.errors import UsageError
from trqam_fast.files import (
    expanded,
    open_file,
    sha256_of,
    write_json,
    write_text,
    written_whole,
)
from trqam_fast.kernels import Backend
from trqam_fast.model_card import model_card
from trqam_fast.runs import checkpoint as checkpoints
from trqam_fast.runs.folder import MODEL
from trqam_fast.runs.read import read_runs
from trqam_fast.runs.values import load_json
from trqam_fast.training.backend import check_asked, settle_backend
from trqam_fast.training.config import (
    FolderConfig,
    LogConfig,
    MachineConfig,
    TrainConfig,
)
from trqam_fast.training.interface import sizes_of
from trqam_fast.training.load_run import (
    LoadedRun,
    check_here,
    config_here,
    load_run,
    make_agent,
)

FORMAT = 1
CONFIG, CARD = "config.json", "README.md"

LAYERS = ("kernels", "biases", "norm_scales", "norm_biases")
"""Parts of a network that hold a tensor for each layer."""

LEFT_OUT = {"online", "target", "exp_avg", "exp_avg_sq"}
"""State of an agent that is exported layer by layer, or belongs to its optimiser."""


@dataclass(frozen=True)
class ExportArgs:
    """Write the weights of a run as safetensors, with a model card, ready to be published.

    The folder holds model.safetensors, config.json and README.md. Nothing is sent anywhere.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """New or empty folder."""
    checkpoint: Path | None = None
    """Checkpoint; the run's newest by default."""
    license: str | None = None
    """Licence of the weights as hubs name it, e.g. mit; the card names none by default."""


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


def published_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a run that others need: no paths, machine, logs or folders."""
    groups = groups_of(TrainConfig)
    private = {n for kind in (MachineConfig, LogConfig, FolderConfig) for n in groups[kind]}
    private |= {name for name, value in vars(config).items() if isinstance(value, Path)}
    private.add("dataset")  # a place on this machine too
    return {name: value for name, value in config.to_dict().items() if name not in private}


def write_export(
    run: Path | str,
    out: Path | str,
    *,
    checkpoint: Path | str | None = None,
    license: str | None = None,
) -> Path:
    """Write a run's export; the config comes last, so a folder with one is whole.

    Args:
        run: Run folder.
        out: New or empty folder.
        checkpoint: One of the run's checkpoints; its newest whole one by default.
        license: Licence that the card names.

    Returns:
        `out`.

    Raises:
        UsageError: no run, no checkpoint, other files in `out`, or no safetensors package.
        OSError: the disk refuses.
    """
    safetensors = load_safetensors()
    run, out = expanded(Path(run)), expanded(Path(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is no empty folder; name a new one")
    loaded = load_run(run, checkpoint)
    state = checkpoints.load(loaded.path)
    (record,) = read_runs([run])
    settings = published_settings(loaded.config) | {"precision": record.config["precision"]}
    values = {
        "format": FORMAT,
        "trqam_fast": __version__,
        "stage": loaded.stage,
        "step": loaded.step,
        "obs_dim": loaded.agent.obs_dim,
        "act_dim": loaded.agent.act_dim,
        "low": loaded.sizes.low,
        "high": loaded.sizes.high,
        "parts": loaded.sizes.parts,
        "act_shape": loaded.sizes.act_shape,
        "failures": {str(loaded.config.seeds[at]): why for at, why in loaded.failures.items()},
        "settings": settings,
    }
    tensors = {name: tensor.contiguous() for name, tensor in weights(loaded.agent).items()}
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(out / MODEL) as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt", "trqam_fast": __version__}))
    write_text(
        out / CARD, model_card(loaded, record, settings, str(state.get("data", "")), license)
    )
    write_json(out / CONFIG, values | {"sha256": sha256_of(out / MODEL)})
    return out


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


def state_to_start_from(folder: Path, kind: type[Agent]) -> dict[str, Any]:
    """Return an export as a checkpoint to start from, whose optimiser begins anew.

    Args:
        folder: What `write_export` wrote.
        kind: Algorithm of the run that starts, which may be one's own.

    Raises:
        UsageError: as `load_export` raises.
    """
    loaded = load_export(folder, backend="reference", kind=kind)
    return {
        "stage": loaded.stage,
        "step": loaded.step,
        "agent": loaded.agent.state_dict(),
        "shapes": checkpoints.plain_shapes(loaded.agent.online.shapes),
        "sequences": loaded.config.sequences,
        "failures": loaded.failures,
    }


def check_class(algo: str, kind: type[Agent] | None) -> None:
    """Raise `UsageError` unless an algorithm is of this package, or `kind` is its class."""
    if algo not in ALGORITHMS and (
        kind is None or algo != f"{kind.__module__}:{kind.__qualname__}"
    ):
        raise UsageError(
            f"the export is of {algo}, a class that is not of this package; pass it as kind=, or "
            "train with it as --algo"
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


def main(argv: list[str] | None = None) -> int:
    """Write the export and return the exit status."""
    args = tyro.cli(ExportArgs, args=argv, prog="python -m trqam_fast.export")
    out = write_export(args.run, args.out, checkpoint=args.checkpoint, license=args.license)
    size = (out / MODEL).stat().st_size
    print(f"{out}: {MODEL} ({size / 2**20:.1f} MiB), {CONFIG}, {CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
