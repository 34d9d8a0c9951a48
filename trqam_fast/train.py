"""Train: python -m trqam_fast.train (see --help)."""

from __future__ import annotations

import dataclasses
import sys

import torch

from trqam_fast.cli import run_command
from trqam_fast.errors import RunError, UsageError
from trqam_fast.memory import keep_freed_memory
from trqam_fast.training.backend import check_asked, settle_backend
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import parse_config
from trqam_fast.training.run_folder import RunFolder

# What may differ between a run and its continuation without changing its mathematics.
RESUMABLE = {
    "preset", "backend", "precision", "graph", "threads", "dataset_dir", "generated_dir",
    "offline_steps", "log_interval", "eval_interval", "eval_episodes", "eval_envs",
    "save_interval", "keep", "run_dir",
}  # fmt: skip


def resolve(argv: list[str]) -> TrainConfig:
    """Parse the flags; those of a resumed run override the configuration in its folder.

    Raises:
        UsageError: impossible values, or a continuation that would be another run.
    """
    config = parse_config(argv)
    if not config.resume:
        path = config.run_dir or RunFolder.default_path(config.env_name, config.algo)
        return dataclasses.replace(config, run_dir=path)
    folder = RunFolder(config.run_dir or RunFolder.newest(config.env_name, config.algo))
    try:
        base = TrainConfig.from_dict(folder.read_config())
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
    return config


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status."""
    config = resolve(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    check_asked(config)
    folder = RunFolder(config.run_dir)
    if not config.resume:
        folder.check_free(config.overwrite)
    trainer = Trainer(config, folder)
    trainer.load_data()
    trainer.config = settle_backend(config, trainer.dataset.act_dim)
    if config.resume:
        folder.write_json("config.json", config.to_dict())
    else:
        folder.create(config.to_dict())
    try:
        return trainer.run()
    except KeyboardInterrupt:
        raise RunError(f"interrupted; continue with --resume --run-dir {folder.path}") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
