"""What ``--pretrained`` names, read for a run that starts from it, and told apart from that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trqam_fast.agents import algorithm
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.names import known_tasks, parse_task
from trqam_fast.errors import UsageError
from trqam_fast.runs import checkpoint
from trqam_fast.runs.read import read_sound
from trqam_fast.training import start
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.ledger import Ledger
from trqam_fast.training.load_run import LoadedRun, load_export
from trqam_fast.training.logger import Logger
from trqam_fast.training.presets import flag_of, value_in_words

MEANING = ("discount", "sparse", "reward_scale", "flow_steps")
"""Settings that say what fine-tuned critics and fields mean, and may be others all the same."""


def load_start(
    path: Path, config: TrainConfig, dataset: Transitions, logger: Logger, ledger: Ledger
) -> dict[str, Any]:
    """Read what --pretrained names, `path`, and take over which seeds diverged there.

    Raises:
        UsageError: there is none, it is damaged, or has other networks than the flags.
    """
    path = start.check_exists(path)
    state, settings = read_start(path, config)
    if config.bc_steps > 0 and state["stage"] != "pretrain" and algorithm(config.algo).fine_tunes:
        raise UsageError(
            f"--bc-steps is {config.bc_steps}, but {path} is fine-tuned, and of that only the "
            f"cloned field would be left; use --bc-steps 0, or {start.pretraining_of(state, path)}"
        )
    cloned_alone = config.bc_steps > 0 or state["stage"] == "pretrain"
    kind = algorithm("bc" if cloned_alone else config.algo)
    shapes = kind.stored_shapes(config.agent, dataset.obs_dim, dataset.act_dim)
    start.check_start(state, path, shapes, config.sequences, len(config.seeds))
    if state["stage"] != "pretrain":
        start.check_first_updates(kind, config.agent, state, path)
    ledger.failures = start.inherited_failures(state, path)
    seeds = seeds_in_words(state, settings, config)
    logger.say(f"starting from {path}, stage {state['stage']}{seeds}")
    differences = differences_in_words(settings, config, cloned_alone)
    if differences:
        logger.say(f"note: its run had {differences}")
    for run, reason in ledger.failures.items():
        logger.say(f"error: seed {config.seeds[run]}: {reason}", error=True)
    return {name: state[name] for name in checkpoint.WEIGHTS}


def read_start(path: Path, config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a run starts from, of one seed if that is asked for, and the settings of its run.

    Those are in an export, and beside a checkpoint in its run folder; of another file none are.

    Args:
        path: A checkpoint, or the folder of an export.
        config: The run that starts.

    Raises:
        UsageError: it is damaged, or has no such seed.
    """
    settings: dict[str, Any] = {}
    if path.is_dir():
        loaded = load_export(path, backend="reference", kind=algorithm(config.algo))
        state, settings = state_of(loaded), loaded.config.to_dict()
    else:
        state = checkpoint.load(path, start.PRETRAINED)
        folder = path.resolve().parent
        if folder.name == "checkpoints":
            settings = read_sound(folder.parent / "config.json", []) or {}
    if config.pretrained_seed is not None:
        state = of_one_seed(state, settings, config.pretrained_seed, path)
    return state, settings


def state_of(loaded: LoadedRun) -> dict[str, Any]:
    """Return an export as a checkpoint to start from, whose optimiser begins anew."""
    return {
        "stage": loaded.stage,
        "step": loaded.step,
        "agent": loaded.agent.state_dict(),
        "shapes": checkpoint.plain_shapes(loaded.agent.online.shapes),
        "sequences": loaded.config.sequences,
        "failures": loaded.failures,
    }


def seeds_of(state: dict[str, Any], settings: dict[str, Any]) -> list[int]:
    """Return the seeds of the runs in a checkpoint, none where its settings do not tell them."""
    seeds = list(settings.get("seeds", ()))
    return seeds if len(seeds) == state["agent"]["online"].shape[0] else []


def of_one_seed(
    state: dict[str, Any], settings: dict[str, Any], seed: int, path: Path
) -> dict[str, Any]:
    """Return a checkpoint of several runs as one of the run of a seed alone.

    Raises:
        UsageError: there is none, or it diverged.
    """
    asked, seeds = f"--pretrained-seed is {seed}", seeds_of(state, settings)
    if not seeds:
        raise UsageError(
            f"{asked}, but {path} has no sound config.json of its run beside it to tell its seeds; "
            "drop the flag, or name the file in its run's folder"
        )
    if seed not in seeds:
        known = ", ".join(map(str, seeds))
        raise UsageError(f"{asked}, but {path} has the seeds {known}; name one of them")
    run = seeds.index(seed)
    if run in state.get("failures", {}):
        raise UsageError(
            f"{asked}, which diverged in {path} ({state['failures'][run]}); name another seed"
        )
    # Copies, so that the others' weights need not stay in memory.
    agent = {name: tensor[run : run + 1].clone() for name, tensor in state["agent"].items()}
    return state | {"agent": agent, "failures": {}}


def seeds_in_words(state: dict[str, Any], settings: dict[str, Any], config: TrainConfig) -> str:
    """Return what is said of the seeds that a run starts from: which, where others go on."""
    if config.pretrained_seed is not None:
        return f", seed {config.pretrained_seed}"
    seeds = seeds_of(state, settings)
    if len(seeds) < 2 or seeds == list(config.seeds):
        return ""
    pairs = zip(seeds, config.seeds, strict=True)
    return f"; its seeds go on as others: {', '.join(f'{old} as {new}' for old, new in pairs)}"


def differences_in_words(settings: dict[str, Any], config: TrainConfig, cloned_alone: bool) -> str:
    """Return where the run of a checkpoint and one that starts from it differ in what it means.

    Args:
        settings: Those of the checkpoint's run that are known.
        config: The run that starts.
        cloned_alone: Whether it takes the cloned field alone.
    """
    before, now = settings, config.to_dict()
    names = () if cloned_alone else MEANING
    changed = [n for n in names if n in before and n in now and before[n] != now[n]]
    # OGBench's tasks that share a dataset share its cloned field.
    same = data_of if cloned_alone else str
    if "env_name" in before and same(before["env_name"]) != same(now["env_name"]):
        changed.insert(0, "env_name")
    return ", ".join(
        f"{flag_of(n)} {value_in_words(before[n])} (here {value_in_words(now[n])})" for n in changed
    )


def data_of(env_name: str) -> str:
    """Return the dataset of a task of OGBench, or the environment of one's own."""
    return parse_task(env_name).dataset_name if env_name in known_tasks() else env_name
