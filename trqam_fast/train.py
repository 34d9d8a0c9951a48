"""Train: python -m trqam_fast.train (see --help)."""

from __future__ import annotations

import dataclasses
import sys

import torch

from trqam_fast.cli import run_command
from trqam_fast.errors import RunError, UsageError
from trqam_fast.kernels.dispatch import check_backend, triton_problem
from trqam_fast.self_test import triton_problems
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import parse_config
from trqam_fast.training.run_folder import RunFolder

# What may differ between a run and its continuation without changing its mathematics.
RESUMABLE = {
    "preset", "backend", "graph", "threads", "dataset_dir", "generated_dir", "offline_steps",
    "log_interval", "eval_interval", "eval_episodes", "eval_envs", "save_interval", "keep",
    "run_dir",
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


def settle_backend(config: TrainConfig) -> TrainConfig:
    """Replace ``auto`` by what will run, and check that it can.

    On a GPU the Triton kernels must first pass their self-test; otherwise the reference trains.

    Raises:
        BackendError: the backend or the precision asked for cannot run on the device.
    """
    device, backend, precision = torch.device(config.device), config.backend, config.precision
    if backend == "auto" and device.type == "cuda":
        asked = "tf32" if precision == "auto" else precision
        problem = triton_problem(device, torch.float32)
        problems = [problem] if problem else triton_problems(config.device, asked)
        backend = "triton"
        if problems:
            print(
                f"warning: the Triton kernels cannot be used on {config.device}: {problems[0]}; "
                "training with --backend reference",
                file=sys.stderr,
            )
            backend, precision = "reference", "ieee"
    if precision == "auto":
        precision = "tf32" if backend == "triton" else "ieee"
    check_backend(backend, device, precision)
    return dataclasses.replace(config, backend=backend, precision=precision)


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status."""
    config = resolve(sys.argv[1:] if argv is None else argv)
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    config = settle_backend(config)
    folder = RunFolder(config.run_dir)
    if not config.resume:
        folder.check_free(config.overwrite)
    trainer = Trainer(config, folder)
    trainer.load_data()
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
