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

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from trqam_fast import __version__
from trqam_fast.agents.config import groups_of
from trqam_fast.errors import UsageError
from trqam_fast.files import expanded, sha256_of, write_json, write_text, written_whole
from trqam_fast.model_card import model_card
from trqam_fast.runs import checkpoint as checkpoints
from trqam_fast.runs.folder import MODEL
from trqam_fast.runs.read import read_runs
from trqam_fast.training.config import (
    FolderConfig,
    LogConfig,
    MachineConfig,
    TrainConfig,
)
from trqam_fast.training.load_run import (
    CONFIG,
    FORMAT,
    load_export,
    load_run,
    load_safetensors,
    weights,
)

__all__ = ["load_export", "write_export"]

CARD = "README.md"


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


def published_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings of a run that others need: no paths, machine, logs or folders."""
    groups = groups_of(TrainConfig)
    private = {n for kind in (MachineConfig, LogConfig, FolderConfig) for n in groups[kind]}
    private |= {name for name, value in vars(config).items() if isinstance(value, Path)}
    private |= {"dataset", "pretrained_seed"}  # a place on this machine too, and of one
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
    (record,) = read_runs([run])
    state = checkpoints.load(loaded.path)
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


def main(argv: list[str] | None = None) -> int:
    """Write the export and return the exit status."""
    args = tyro.cli(ExportArgs, args=argv, prog="python -m trqam_fast.export")
    out = write_export(args.run, args.out, checkpoint=args.checkpoint, license=args.license)
    size = (out / MODEL).stat().st_size
    print(f"{out}: {MODEL} ({size / 2**20:.1f} MiB), {CONFIG}, {CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
