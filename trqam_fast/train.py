"""Train: python -m trqam_fast.train (see --help)."""

from __future__ import annotations

import dataclasses
import sys

import torch

from trqam_fast.cli import run_command
from trqam_fast.data.names import parse_task
from trqam_fast.data.sources import official_file
from trqam_fast.errors import UsageError
from trqam_fast.kernels.dispatch import check_backend
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import parse_config
from trqam_fast.training.run_folder import RunFolder

# What may differ between a run and its continuation without changing its mathematics.
RESUMABLE = {
    "preset", "device", "backend", "threads", "dataset_dir", "generated_dir", "offline_steps",
    "log_interval", "eval_interval", "eval_episodes", "eval_envs", "save_interval", "keep",
    "run_dir", "resume", "overwrite",
}  # fmt: skip


def check_possible(config: TrainConfig) -> None:
    """Find out what cannot work before a folder is made.

    Raises:
        UsageError: unknown task, or no data for it.
        BackendError: the backend asked for cannot run.
    """
    task = parse_task(config.env_name)
    if config.recipe is None:
        official_file(task, config.dataset_dir)
    check_backend(config.backend, torch.device(config.device))


def prepare(argv: list[str]) -> tuple[TrainConfig, RunFolder]:
    """Parse the flags and make, or find, the run folder.

    A resumed run takes its configuration from its folder; flags on the command line override it.
    """
    config = parse_config(argv)
    check_possible(config)
    if not config.resume:
        path = config.run_dir or RunFolder.default_path(config.env_name, config.algo)
        folder = RunFolder(path)
        config = dataclasses.replace(config, run_dir=path)
        folder.create(config.to_dict(), config.overwrite)
        return config, folder
    folder = RunFolder(config.run_dir or RunFolder.newest(config.env_name, config.algo))
    stored = folder.read_config()
    try:
        base = TrainConfig.from_dict(stored)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{folder.path}/config.json is of another version ({error}); start a new run"
        ) from None
    config = dataclasses.replace(parse_config(argv, base), run_dir=folder.path)
    before, now = base.to_dict(), config.to_dict()
    changed = [name for name in now if name not in RESUMABLE and now[name] != before[name]]
    if changed:
        differences = ", ".join(
            f"--{name.replace('_', '-')} {now[name]} (the run has {before[name]})"
            for name in changed
        )
        raise UsageError(f"cannot resume {folder.path} with {differences}; drop these flags")
    return config, folder


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status."""
    config, folder = prepare(sys.argv[1:] if argv is None else argv)
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    return Trainer(config, folder).run()


if __name__ == "__main__":
    sys.exit(run_command(main))
