"""Train: python -m trqam_fast.train (see --help)."""

from __future__ import annotations

import signal
import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin(signal.SIGTERM, signal.SIGUSR1)

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trqam_fast.agents import algorithm, declare
from trqam_fast.damage import reading
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.load import load_task
from trqam_fast.errors import FAILURE, INTERRUPTED, Stopped, UsageError
from trqam_fast.files import write_json
from trqam_fast.memory import keep_freed_memory
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.runs.plots import write_overview
from trqam_fast.training import start
from trqam_fast.training.backend import check_asked, running_backend, settle_backend
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig
from trqam_fast.training.flags import parse_config, read_choices
from trqam_fast.training.ledger import Ledger
from trqam_fast.training.logger import Logger
from trqam_fast.training.loop import Trainer
from trqam_fast.training.presets import describe_settings, flag_of, value_in_words
from trqam_fast.training.stopping import StopRequest
from trqam_fast.training.summary import format_table, summarise
from trqam_fast.training.trackers import check_packages

# What may differ between a run and its continuation without changing its mathematics.
RESUMABLE = {
    "preset", "backend", "precision", "graph", "threads", "dataset_dir", "generated_dir",
    "bc_steps", "offline_steps", "online_steps", "log_interval", "eval_interval",
    "eval_episodes", "eval_envs", "eval_workers", "save_interval", "keep",
    "tensorboard", "wandb", "wandb_project", "wandb_group", "wandb_name", "wandb_tags", "run_dir",
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        run_dir: Its folder.
        summary: What summary.json holds.
    """

    run_dir: Path
    summary: dict[str, Any]

    @property
    def success(self) -> float | None:
        """Mean success of the final evaluation, from 0 to 1; None if all seeds diverged."""
        return self.summary["final_success"]


def resolve(argv: list[str]) -> TrainConfig:
    """Parse the flags; those of a resumed run override the configuration in its folder.

    Raises:
        UsageError: impossible values, no run to resume, or a continuation that would be another
            run.
    """
    chosen, _ = read_choices(argv)
    resume = chosen.get("resume", "no")
    if resume != "no" and chosen.get("overwrite"):
        raise UsageError("--resume and --overwrite exclude each other; pass one of them")
    env_name, algo = chosen.get("env_name", DEFAULT_ENV), chosen.get("algo", "trqam")
    path = chosen.get("run_dir")
    if path is None and resume != "no":
        path = RunFolder.newest(env_name, algo)
    if path is None and resume == "yes":
        raise UsageError(f"--resume found no run of {algo} on {env_name}; name one with --run-dir")
    begun = path is not None and RunFolder(path).exists
    if resume == "no" or (resume == "auto" and not begun):
        return dataclasses.replace(parse_config(argv), run_dir=path)
    before = read_config(RunFolder(path))
    return continued(before, dataclasses.replace(parse_config(argv, before), run_dir=path))


def read_config(folder: RunFolder) -> TrainConfig:
    """Return the configuration of a run that is to be continued.

    Raises:
        UsageError: it is missing, damaged or of another version.
        Unreadable: the system refuses.
    """
    values = folder.read_config()
    path = folder.path / "config.json"
    with reading(path, "is damaged or of another version", "start a new run in another folder"):
        return TrainConfig.from_dict(values)


def continued(before: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Return `config`, which continues a run that began as `before`.

    Raises:
        UsageError: it would be another run.
    """
    old, new = before.to_dict(), config.to_dict()
    changed = [name for name in new if name not in RESUMABLE and new[name] != old.get(name)]
    if changed:
        differences = ", ".join(
            f"{flag_of(name)} {value_in_words(new[name])} (the run has "
            f"{value_in_words(old.get(name))})"
            for name in changed
        )
        raise UsageError(f"cannot resume {config.run_dir} with {differences}; drop these flags")
    return dataclasses.replace(config, resume="yes")


def settled_resume(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """Return `config` for its folder, which is held, with ``resume`` "yes" or "no".

    Raises:
        UsageError: the run there is another one, or there is one although none was expected.
    """
    if config.resume == "auto":
        config = dataclasses.replace(config, resume="yes" if folder.exists else "no")
    if config.resume == "yes":
        return continued(read_config(folder), config)
    folder.check_free(config.overwrite)
    return config


def load_data(config: TrainConfig, logger: Logger, ledger: Ledger) -> Transitions:
    """Load the task's transitions, generating them first if the configuration says so.

    Raises:
        UsageError: no such task, no data for it, or not enough.
    """
    recipe = config.recipe
    if recipe is not None and not recipe.path(config.generated_dir).exists():
        logger.say(f"generating {recipe.transitions} transitions")
    with ledger.timed("data"):
        dataset, path = load_task(
            config.env_name,
            dataset_dir=config.dataset_dir,
            recipe=recipe,
            generated_dir=config.generated_dir,
            sparse=config.sparse,
            device=config.device,
            progress=sys.stderr.isatty(),
        )
    dataset.check_length(config.agent.horizon_length)
    logger.say(f"data: {len(dataset)} transitions from {path}")
    return dataset


def load_pretrained(
    config: TrainConfig, dataset: Transitions, logger: Logger, ledger: Ledger
) -> dict[str, Any]:
    """Read what --pretrained names, and take over which seeds diverged there.

    Raises:
        UsageError: there is none, it is damaged, or has other networks than the flags.
    """
    state, path = start.load_pretrained(config.pretrained)
    kind = algorithm(config.algo)
    shapes = kind.stored_shapes(config.agent, dataset.obs_dim, dataset.act_dim)
    if config.bc_steps > 0:
        shapes = {"actor_slow": shapes["actor_slow"]}
    start.check_start(state, path, shapes, config.sequences, len(config.seeds))
    ledger.failures = start.inherited_failures(state, path)
    logger.say(f"starting from {path}, stage {state['stage']}")
    for run, reason in ledger.failures.items():
        logger.say(f"error: seed {config.seeds[run]}: {reason}", error=True)
    return {name: state[name] for name in checkpoint.WEIGHTS}


def run(config: TrainConfig) -> Result:
    """Do one run: a new one, or with ``resume`` what is left of it.

    Its folder is held from before the data are loaded, so nobody else writes to it meanwhile.

    Args:
        config: What to do; without ``run_dir`` a new folder is made.

    Raises:
        UsageError: something in the configuration cannot work here.
        RunError: something failed while running.
        Stopped: the run was asked to stop; its checkpoint is written.
    """
    keep_freed_memory()
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    check_asked(config)
    check_packages(config.tensorboard, config.wandb)
    columns = (*algorithm(config.algo).metrics, "grad_norm")
    stop = StopRequest()
    with stop.listening(), held_folder(config, columns) as folder:
        config = settled_resume(dataclasses.replace(config, run_dir=folder.path), folder)
        try:
            return run_in(folder, config, stop)
        except KeyboardInterrupt:
            raise Stopped(f"interrupted; {stop.way_on}", INTERRUPTED) from None


@contextlib.contextmanager
def held_folder(config: TrainConfig, columns: Sequence[str]) -> Iterator[RunFolder]:
    """Hold the folder of a run, a new one if none is named.

    Args:
        config: The run's configuration.
        columns: Columns of its metrics.
    """
    if config.run_dir is None:
        folder = RunFolder.new(config.env_name, config.algo, columns)
    else:
        folder = RunFolder(config.run_dir, columns)
    with folder.held():
        yield folder


def run_in(folder: RunFolder, config: TrainConfig, stop: StopRequest) -> Result:
    """Do one run in its folder, which is held; see `run`."""
    resuming = config.resume == "yes"
    begun = resuming and checkpoint.newest(folder.checkpoints) is not None
    if config.pretrained is not None and not begun:
        start.check_exists(config.pretrained)
    ledger, logger = Ledger(), Logger(config, folder)
    print(describe_settings(config), flush=True)
    with stop.at_once():
        dataset = load_data(config, logger, ledger)
        pretrained = None
        if config.pretrained is not None and not begun:
            pretrained = load_pretrained(config, dataset, logger, ledger)
    config = start.settle_budget(config, dataset.act_dim)
    settled = settle_backend(config, dataset.act_dim)
    if not resuming:
        declaration = declare(algorithm(config.algo))._asdict()
        folder.create(config.to_dict(), declaration, config.overwrite)
    stop.way_on = f"continue with --resume --run-dir {folder.path}"
    logger.say(f"run folder: {folder.path}")
    logger.start_trackers()
    try:
        Trainer(settled, config, dataset, folder, logger, stop, ledger, pretrained).run()
    finally:
        logger.close()
    return finish(settled, folder, logger, ledger)


def finish(config: TrainConfig, folder: RunFolder, logger: Logger, ledger: Ledger) -> Result:
    """Write the summary and the curves, print the table."""
    summary = summarise(config, running_backend(config), ledger)
    write_json(folder.path / "summary.json", summary)
    write_overview(folder.path, folder.path / "curves.png")
    logger.say(format_table(config, summary))
    logger.say(f"run folder: {folder.path}")
    return Result(folder.path, summary)


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status: 1 if a seed diverged."""
    result = run(resolve(sys.argv[1:] if argv is None else argv))
    return FAILURE if result.summary["failures"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
