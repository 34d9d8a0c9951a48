"""Train: python -m trqam_fast.train (see --help)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from trqam_fast.cli import run_command
from trqam_fast.errors import RunError, UsageError
from trqam_fast.memory import keep_freed_memory
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.training.backend import check_asked, settle_backend
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import (
    DEFAULT,
    describe_settings,
    flag_value,
    parse_config,
    spell_out_resume,
)
from trqam_fast.training.stopping import StopRequest
from trqam_fast.training.trackers import check_packages

# What may differ between a run and its continuation without changing its mathematics.
RESUMABLE = {
    "preset", "backend", "precision", "graph", "threads", "dataset_dir", "generated_dir",
    "bc_steps", "offline_steps", "online_steps", "log_interval", "eval_interval",
    "eval_episodes", "eval_envs", "eval_workers", "save_interval", "keep",
    "tensorboard", "wandb", "run_dir",
}  # fmt: skip


def resolve(argv: list[str]) -> TrainConfig:
    """Parse the flags; those of a resumed run override the configuration in its folder.

    Raises:
        UsageError: impossible values, no run to resume, or a continuation that would be another
            run.
    """
    argv = spell_out_resume(argv)
    # Other flags are read on top of the run's own, so they are not looked at before it is found.
    resume, named = flag_value(argv, "--resume"), flag_value(argv, "--run-dir")
    if resume in ("yes", "auto") and "--overwrite" in argv:
        raise UsageError("--resume and --overwrite exclude each other; pass one of them")
    env_name = flag_value(argv, "--env-name") or DEFAULT_ENV
    algo = flag_value(argv, "--algo") or DEFAULT.algo
    path = None if named is None else Path(named)
    if path is None and resume in ("yes", "auto"):
        path = RunFolder.newest(env_name, algo)
    if path is None and resume == "yes":
        raise UsageError(f"--resume found no run of {algo} on {env_name}; name one with --run-dir")
    path = path or RunFolder.default_path(env_name, algo)
    folder = RunFolder(path)
    if resume != "yes" and not (resume == "auto" and folder.exists):
        return dataclasses.replace(parse_config(argv), run_dir=path, resume="no")
    try:
        base = TrainConfig.from_dict(folder.read_config())
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}/config.json is of another version ({error}); start a new run"
        ) from None
    config = dataclasses.replace(parse_config(argv, base), run_dir=path)
    before, now = base.to_dict(), config.to_dict()
    changed = [name for name in now if name not in RESUMABLE and now[name] != before[name]]
    if changed:
        differences = ", ".join(
            f"--{name.replace('_', '-')} {now[name]} (the run has {before[name]})"
            for name in changed
        )
        raise UsageError(f"cannot resume {path} with {differences}; drop these flags")
    return config


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status."""
    config = resolve(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    check_asked(config)
    if config.pretrained is not None:
        checkpoint.check_exists(config.pretrained)
    check_packages(config.tensorboard, config.wandb)
    folder = RunFolder(config.run_dir)
    if config.resume == "no":
        folder.check_free(config.overwrite)
    stop = StopRequest()
    with stop.listening():
        trainer = Trainer(config, folder, stop)
        print(describe_settings(config), flush=True)
        with stop.at_once():
            trainer.load_data()
            begun = config.resume != "no" and checkpoint.newest(folder.checkpoints) is not None
            if config.pretrained is not None and not begun:
                trainer.load_pretrained()
        trainer.config = settle_backend(config, trainer.dataset.act_dim)
        with folder.held():
            if config.resume == "no":
                folder.create(config.to_dict())
            try:
                return trainer.run()
            except KeyboardInterrupt:
                raise RunError(
                    f"interrupted; continue with --resume --run-dir {folder.path}"
                ) from None


if __name__ == "__main__":
    sys.exit(run_command(main))
