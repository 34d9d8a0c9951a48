"""Train: python -m trqam_fast.train (see --help).

Longer than 400 lines, as all of it is what one run does from its flags to its summary.
"""

from __future__ import annotations

import signal
import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin(signal.SIGTERM, signal.SIGUSR1)

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trqam_fast.agents import algorithm, declare
from trqam_fast.callable_module import make_callable
from trqam_fast.damage import Unreadable, reading, reason_of
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.load import load_task
from trqam_fast.errors import FAILURE, INTERRUPTED, USAGE, Stopped, UsageError
from trqam_fast.files import expanded, write_json
from trqam_fast.kinds import plain
from trqam_fast.memory import keep_freed_memory
from trqam_fast.policy import Policy
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.runs.plots import write_overview
from trqam_fast.runs.read import read_run
from trqam_fast.simulator.environment import Interface
from trqam_fast.training import start
from trqam_fast.training.backend import check_asked, running_backend
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig
from trqam_fast.training.flags import parse_config, read_choices
from trqam_fast.training.interface import describe, own_interface, write_sizes
from trqam_fast.training.ledger import Ledger
from trqam_fast.training.logger import Logger
from trqam_fast.training.loop import Trainer
from trqam_fast.training.plan import kept_choice, settle_plan, write_choice
from trqam_fast.training.presets import (
    by_one_name,
    check_kinds,
    describe_settings,
    flag_of,
    make_config,
    value_in_words,
    warn_of_unused,
)
from trqam_fast.training.pretrained import load_start
from trqam_fast.training.stopping import OnEvaluation, StopRequest
from trqam_fast.training.summary import format_table, summarise
from trqam_fast.training.trackers import check_packages

Curves = dict[str, dict[int, np.ndarray]]


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

    @property
    def curves(self) -> Curves:
        """What the run logged: for each metric and seed, steps and values, `[n, 2]`."""
        curves: dict[str, dict[int, list[tuple[int, float]]]] = {}
        run = read_run(self.run_dir, self.run_dir.name)
        for row in (*run.metrics, *run.evaluations):
            for name, value in row.values.items():
                of_seed = curves.setdefault(name, {}).setdefault(int(row.seed), [])
                of_seed.append((row.step, value))
        return {
            name: {seed: np.array(points) for seed, points in by_seed.items()}
            for name, by_seed in curves.items()
        }

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy of the first seed at the end of the run, read once."""
        return Policy.load(self.run_dir)


def resolve(argv: list[str]) -> TrainConfig:
    """Parse the flags; those of a resumed run override the configuration in its folder.

    Raises:
        UsageError: impossible values, no run to resume, or a continuation that would be another
            run.
    """
    chosen, _ = read_choices(argv)
    folder = folder_to_resume(chosen)
    if folder is None:
        return parse_config(argv)
    before = read_config(folder)
    return continued(before, dataclasses.replace(parse_config(argv, before), run_dir=folder.path))


def folder_to_resume(flags: Mapping[str, Any]) -> RunFolder | None:
    """Return the folder of the run that flags by name continue, None where they begin one.

    Raises:
        UsageError: there is no run to resume.
    """
    resume, path = flags.get("resume", "no"), flags.get("run_dir")
    if resume == "no":
        return None
    if flags.get("overwrite"):
        raise UsageError("--resume and --overwrite exclude each other; pass one of them")
    if path is None:
        env_name, algo = flags.get("env_name", DEFAULT_ENV), flags.get("algo", "trqam")
        path = RunFolder.newest(env_name, algo)
        if path is None and resume == "yes":
            raise UsageError(
                f"--resume found no run of {algo} on {env_name}; name one with --run-dir"
            )
    if path is None:
        return None
    folder = RunFolder(expanded(Path(path)))
    return None if resume == "auto" and not folder.exists else folder


def read_config(folder: RunFolder) -> TrainConfig:
    """Return the configuration of a run that is to be continued.

    Raises:
        UsageError: it is missing, damaged or of another version.
        Unreadable: the system refuses.
    """
    values = folder.read_config()
    path = folder.path / "config.json"
    with reading(path, "is damaged or of another version", "use the version that made the run"):
        return TrainConfig.from_dict(values)


def continued(before: TrainConfig, config: TrainConfig) -> TrainConfig:
    """Return `config`, which continues a run that began as `before`.

    Raises:
        UsageError: it would be another run.
    """
    old, new = before.to_dict(), config.to_dict()
    # The budget follows from the other flag once the data have told the width of an action.
    follows = {"kl_budget"} if new.get("kl_budget_per_dim") is not None else set()
    compared = new.keys() - start.RESUMABLE - follows
    if moved_together(before, config):
        compared -= {"pretrained"}
    changed = [name for name in new if name in compared and new[name] != old.get(name)]
    if changed:
        differences = ", ".join(
            f"{flag_of(name)} {value_in_words(new[name])} (the run has "
            f"{value_in_words(old.get(name))})"
            for name in changed
        )
        raise UsageError(f"cannot resume {config.run_dir} with {differences}; drop these flags")
    return dataclasses.replace(config, resume="yes")


def moved_together(before: TrainConfig, config: TrainConfig) -> bool:
    """Whether a run and what it started from lie to each other as they did, as in a moved sweep."""
    places = [
        os.path.relpath(expanded(each.pretrained), expanded(each.run_dir))
        for each in (before, config)
        if each.pretrained is not None and each.run_dir is not None
    ]
    return len(places) == 2 and places[0] == places[1]


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


def load_data(
    config: TrainConfig, interface: Interface | None, logger: Logger, ledger: Ledger
) -> Transitions:
    """Load the task's transitions, generating them first if the configuration says so.

    Args:
        config: The run's configuration.
        interface: Of an environment of one's own.
        logger: The run's logs.
        ledger: Its account.

    Raises:
        UsageError: no such task, no data for it, or not enough.
    """
    recipe = config.recipe
    if recipe is not None and not recipe.is_stored(config.generated_dir):
        logger.say(f"generating {recipe.transitions} transitions")
    with ledger.timed("data"):
        try:
            dataset, path = load_task(
                config.env_name,
                dataset=config.dataset,
                interface=interface,
                dataset_dir=config.dataset_dir,
                recipe=recipe,
                generated_dir=config.generated_dir,
                sparse=config.sparse,
                device=config.device,
                progress=sys.stderr.isatty(),
                say=logger.say,
            )
        except Unreadable as error:
            if error.status != USAGE or config.resume != "yes" or config.dataset is None:
                raise
            raise UsageError(f"{error}, or name with --dataset where the data are now") from None
    for note in dataset.check_length(config.agent.horizon_length):
        logger.say(f"note: {note}")
    logger.say(f"data: {len(dataset)} transitions from {path}")
    return dataset


def run(config: TrainConfig, on_evaluation: OnEvaluation | None = None) -> Result:
    """Do one run: a new one, or with ``resume`` what is left of it.

    Its folder is held from before the data are loaded, so nobody else writes to it meanwhile.

    Args:
        config: What to do; without ``run_dir`` a new folder is made.
        on_evaluation: See `train`.

    Raises:
        UsageError: something in the configuration cannot work here.
        RunError: something failed while running.
        Stopped: the run was asked to stop; its checkpoint is written.
    """
    keep_freed_memory()
    check_asked(config)
    check_packages(config.tensorboard, config.wandb)
    columns = (*algorithm(config.algo).metrics, "grad_norm")
    stop = StopRequest(on_evaluation)
    with torch_settings(config), stop.listening(), held_folder(config, columns) as folder:
        config = settled_resume(dataclasses.replace(config, run_dir=folder.path), folder)
        try:
            return run_in(folder, config, stop)
        except KeyboardInterrupt:
            raise Stopped(f"interrupted; {stop.way_on}", INTERRUPTED) from None


@contextlib.contextmanager
def torch_settings(config: TrainConfig) -> Iterator[None]:
    """Let torch have the run's threads; what they and its precision were is restored."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if config.threads > 0:
            torch.set_num_threads(config.threads)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


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
    logger.say(describe_settings(config))
    with stop.at_once():
        interface = own_interface(config, trying=True)
        if interface is not None:
            logger.say("\n".join(describe(config, interface)))
        dataset = load_data(config, interface, logger, ledger)
        # What an algorithm's networks lack is told before its field is pretrained.
        algorithm(config.algo).stored_shapes(config.agent, dataset.obs_dim, dataset.act_dim)
        pretrained = None
        if config.pretrained is not None and not begun:
            pretrained = load_start(config.pretrained, config, dataset, logger, ledger)
    asked, config = config, start.settle_budget(config, dataset.act_dim)
    if config is not asked:
        logger.say(
            f"--kl-budget is {config.to_dict()['kl_budget']:g}, --kl-budget-per-dim times the "
            f"{dataset.act_dim} numbers of an action"
        )
    plan = folder.path / "update_plan.json"
    with stop.at_once():
        kept = kept_choice(plan, config) if begun else None
        settled, choice = settle_plan(config, dataset, kept)
    if not resuming:
        declaration = declare(algorithm(config.algo))._asdict()
        folder.create(config.to_dict(), declaration, config.overwrite)
        write_sizes(folder.path, dataset, interface)
    stop.way_on = f"continue with --resume --run-dir {folder.path}"
    logger.say(f"run folder: {folder.path}")
    if choice is not None:
        write_choice(plan, choice)
        logger.say(choice.in_words())
    logger.start_trackers()
    try:
        Trainer(settled, config, dataset, folder, logger, stop, ledger, pretrained).run()
    finally:
        logger.close()
    return finish(settled, folder, logger, ledger)


def finish(config: TrainConfig, folder: RunFolder, logger: Logger, ledger: Ledger) -> Result:
    """Write the summary and the curves, print the table."""
    evaluations = read_run(folder.path, only=frozenset()).evaluations
    summary = summarise(config, running_backend(config), ledger, evaluations)
    write_json(folder.path / "summary.json", summary)
    try:
        write_overview(folder.path, folder.path / "curves.png")
    except Exception as error:  # whatever a picture lacks, the run has ended
        said = f"warning: curves.png is not drawn ({reason_of(error)}); the report draws curves too"
        logger.say(said, error=True)
    logger.say(format_table(config, summary))
    logger.say(f"run folder: {folder.path}")
    return Result(folder.path, summary)


def train(
    config: TrainConfig | None = None, *, on_evaluation: OnEvaluation | None = None, **flags: Any
) -> Result:
    """Do one run, as the command does, and return what it came to.

    Args:
        config: What to do, or else flags.
        on_evaluation: Called after each evaluation with its stage, its step and success by seed,
            without those that diverged; step 0 of "pretrain" is what a run starts from. Where it
            returns False the run stops as at a signal; after the last evaluation it is at its end.
            What it raises is raised.
        flags: The command's flags by name, on top of the preset and the task that they name:
            ``train(env_id="Pendulum-v1", dataset="pendulum.npz", seeds=[0, 1])``. With ``resume``
            "yes" or "auto", on top of the configuration of the run that is continued.

    Raises:
        UsageError: something in the configuration cannot work here.
        RunError: something failed while running.
        Stopped: the run was asked to stop; its checkpoint is written.
    """
    if config is not None and flags:
        raise TypeError(f"train takes a configuration or flags, not both; drop {', '.join(flags)}")
    if config is None:
        config = config_from(flags)
    if not isinstance(config, TrainConfig):
        raise TypeError(
            f"config is a {type(config).__name__}, expected a TrainConfig; give flags by name, as "
            "in train(**flags)"
        )
    if on_evaluation is not None and not callable(on_evaluation):
        raise TypeError(
            f"on_evaluation is {on_evaluation!r}, expected a function of stage, step and success"
        )
    return run(config, on_evaluation)


def config_from(flags: dict[str, Any]) -> TrainConfig:
    """Return the configuration of flags by name; see `train`."""
    flags = {name: plain(value) for name, value in by_one_name(flags).items()}
    check_kinds(flags)
    folder = folder_to_resume(flags)
    if folder is None:
        return make_config(**flags)
    before = read_config(folder)
    warn_of_unused(flags.get("algo", before.algo), flags)
    check_kinds({"algo": before.algo} | flags)  # which may be one's own
    config = TrainConfig.from_dict(before.to_dict() | flags)
    return continued(before, dataclasses.replace(config, run_dir=folder.path))


def main(argv: list[str] | None = None) -> int:
    """Train and return the exit status: 1 if a seed diverged."""
    result = run(resolve(sys.argv[1:] if argv is None else argv))
    return FAILURE if result.summary["failures"] else 0


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
