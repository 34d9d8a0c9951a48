"""What a run may start from, and how: pretrained weights, or its own checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from trqam_fast.agents import Agent
from trqam_fast.agents.base import Shapes
from trqam_fast.agents.config import CloningConfig, TrustRegionConfig
from trqam_fast.damage import reading
from trqam_fast.errors import UsageError
from trqam_fast.kernels.mlp.weights import packed_size
from trqam_fast.packages import version_of
from trqam_fast.runs.checkpoint import PROGRESS, newest, plain_shapes
from trqam_fast.runs.folder import RunFolder, is_export
from trqam_fast.runs.read import read_sound
from trqam_fast.runs.versions import go_on
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.presets import flag_of, value_in_words

RESUMABLE = {
    "backend", "plan", "graph", "streams", "threads", "dataset",
    "dataset_dir", "generated_dir",
    "bc_steps", "offline_steps", "online_steps", "log_interval", "eval_interval",
    "eval_episodes", "eval_envs", "eval_workers", "save_interval", "keep",
    "tensorboard", "wandb", "wandb_project", "wandb_group", "wandb_name", "wandb_tags", "run_dir",
}  # fmt: skip
"""What may differ between a run and its continuation without changing its mathematics."""

MISFIT = "does not fit this run", "move it away to go on from the one before"
"""What is said of a checkpoint whose contents contradict the run's, and what helps."""

PRETRAINED = (
    "name another one with --pretrained; for a policy of your own see docs/your_own_policy.md"
)
"""What helps where ``--pretrained`` names no checkpoint."""


def check_shapes(saved: dict[str, list], expected: dict[str, list], path: Path) -> None:
    """Raise `UsageError` where a network of a checkpoint differs from what the flags ask for."""
    for name in expected:
        for found, wanted in zip(saved.get(name, []), expected[name], strict=False):
            if found != wanted:
                raise UsageError(
                    f"{path}: a tensor of {name} has shape {found}, but the flags ask for "
                    f"{wanted}; set --actor-hidden-dims, --value-hidden-dims, --horizon-length, "
                    "--action-chunking and --num-qs as in the checkpoint"
                )
        if len(saved.get(name, [])) != len(expected[name]):
            raise UsageError(
                f"{path}: {name} has {len(saved.get(name, []))} tensors, but the flags ask for "
                f"{len(expected[name])}; set the depth and LayerNorm flags as in the checkpoint"
            )


def restore(agent: Agent, state: dict[str, Any], path: Path) -> None:
    """Load the agent's part of a checkpoint.

    Raises:
        UsageError: it was made with other networks or another number of seeds.
    """
    check_shapes(state["shapes"], plain_shapes(agent.online.shapes), path)
    runs = state["agent"]["online"].shape[0]
    if runs != agent.runs:
        raise UsageError(
            f"{path} holds {runs} runs, but --seeds names {agent.runs}; pass the same seeds"
        )
    with reading(path, *MISFIT):
        agent.load_state_dict(state["agent"])


def field_of(state: dict[str, Any]) -> Tensor:
    """Return the cloned field of a checkpoint, packed weights `[S, p]`."""
    start = 0
    for name, shapes in state["shapes"].items():
        size = packed_size(shapes)
        if name == "actor_slow":
            return state["agent"]["online"][:, start : start + size]
        start += size
    raise UsageError("the checkpoint holds no cloned field actor_slow; name another --pretrained")


def check_exists(path: Path) -> Path:
    """Return what ``--pretrained`` names: a checkpoint, the newest of a run folder, or an export.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir() and not is_export(path):
        found = newest(path / "checkpoints")
        if found is None:
            raise UsageError(
                f"--pretrained {path} holds no checkpoint; name a run, an export or a file"
            )
        return found
    if not path.exists():
        raise UsageError(
            f"--pretrained {path} does not exist; name a checkpoint, a run folder or an export"
        )
    return path


def task_sizes(field: list[list[int]]) -> tuple[int, int]:
    """Widths of an observation and of a policy's output, from a field's tensor shapes."""
    kernels = [shape for shape in field if len(shape) == 2]
    outputs = kernels[-1][1]
    return kernels[0][0] - outputs - 1, outputs


def check_start(
    state: dict[str, Any],
    path: Path,
    shapes: Shapes,
    sequences: dict[str, Any],
    runs: int,
) -> None:
    """Raise `UsageError` unless a run of the flags can start from `state`.

    Args:
        state: The checkpoint.
        path: Its file.
        shapes: Networks of the run.
        sequences: Flags of the run that say what a sequence of actions is.
        runs: Its seeds.
    """
    made_with = sequences | state.get("sequences", {})
    for name, value in sequences.items():
        if made_with[name] != value:
            raise UsageError(
                f"{path} was made with --{name.replace('_', '-')} {made_with[name]}, but the flags "
                f"ask for {value}; use the checkpoint's"
            )
    if "actor_slow" not in shapes:
        raise UsageError(
            f"{path} starts a field actor_slow, but the networks of --algo are "
            f"{', '.join(shapes)}; name a checkpoint of pretraining"
        )
    if not any(len(shape) == 2 for shape in state["shapes"].get("actor_slow", [])):
        raise UsageError(f"{path} holds no velocity field actor_slow; name another checkpoint")
    found, wanted = (task_sizes(s["actor_slow"]) for s in (state["shapes"], plain_shapes(shapes)))
    if found != wanted:
        raise UsageError(
            f"{path} was made for observations of {found[0]} numbers and policy outputs of "
            f"{found[1]}, but this task and its chunks have {wanted[0]} and {wanted[1]}; name the "
            "checkpoint's --env-name, --horizon-length and --action-chunking"
        )
    saved = state["agent"]["online"].shape[0]
    if saved not in (1, runs):
        raise UsageError(
            f"{path} holds {saved} runs, but --seeds names {runs}; use as many, or name the seed "
            "of one with --pretrained-seed"
        )
    if not state["agent"]["online"].isfinite().all():
        raise UsageError(f"{path} holds weights that are not finite; name another checkpoint")
    if state["stage"] == "pretrain":
        shapes = {"actor_slow": shapes["actor_slow"]}
    elif len(shapes) > 1 and list(shapes) != list(state["shapes"]):
        raise UsageError(
            f"{path} holds the networks {', '.join(state['shapes'])}, but --algo needs "
            f"{', '.join(shapes)}; use the algorithm of the checkpoint, or "
            f"{pretraining_of(state, path)}"
        )
    check_shapes(state["shapes"], plain_shapes(shapes), path)


def pretraining_of(state: dict[str, Any], path: Path) -> str:
    """Return what is said of the checkpoint that ended a run's pretraining: its name if kept."""
    kept = RunFolder(path.parent.parent).checkpoint(state.get("ends", {}).get("pretrain", 0))
    if kept.parent == path.parent and kept.exists():
        return f"--pretrained {kept}, which ends pretraining"
    return "a checkpoint that ends pretraining"


def check_first_updates(
    kind: type[Agent], config: CloningConfig, state: dict[str, Any], path: Path
) -> None:
    """Raise `UsageError` if settings of first updates go with fine-tuned weights, past them.

    Args:
        kind: The algorithm.
        config: Its hyperparameters.
        state: The checkpoint, which fine-tuning went on to.
        path: Its file.
    """
    for name in kind.first_updates:
        value, default = getattr(config, name), getattr(kind.Config, name)
        if value != default:
            flag = flag_of(name)
            raise UsageError(
                f"{flag} is {value}, which is for the first updates of fine-tuning, but {path} is "
                f"past them; use {flag} {default}, or {pretraining_of(state, path)}"
            )


def inherited_failures(state: dict[str, Any], path: Path) -> dict[int, str]:
    """Return why runs that start from a checkpoint are lost already: theirs diverged there.

    Raises:
        UsageError: all are.
    """
    saved, failures = state["agent"]["online"].shape[0], state.get("failures", {})
    if len(failures) == saved:
        reason = next(iter(failures.values()))
        raise UsageError(f"all runs in {path} diverged ({reason}); name another checkpoint")
    return {run: f"its pretraining diverged: {reason}" for run, reason in failures.items()}


def start_from(agent: Agent, state: dict[str, Any]) -> None:
    """Give a new agent the weights of a checkpoint, whose single run serves for all seeds.

    One that ends pretraining has a cloned field alone, which goes to all fields; from any other a
    fine-tuning agent takes everything that it has a place for, the moments of its optimiser
    included.
    """
    if agent.fine_tunes and state["stage"] != "pretrain":
        saved = {name: t.expand(agent.runs, *t.shape[1:]) for name, t in state["agent"].items()}
        agent.load_state_dict(agent.state_dict() | saved)
        return
    agent.load_pretrained(field_of(state).expand(agent.runs, -1))


def settle_budget(config: TrainConfig, act_dim: int) -> TrainConfig:
    """Return the configuration with the budget that ``--kl-budget-per-dim`` stands for.

    Args:
        config: What was asked for.
        act_dim: Numbers of an action; path KLs are those of an action step.
    """
    agent = config.agent
    if not isinstance(agent, TrustRegionConfig) or agent.kl_budget_per_dim is None:
        return config
    settled = dataclasses.replace(  # type: ignore[call-arg]  # which sees one base's fields alone
        agent, kl_budget=agent.budget_of(act_dim)
    )
    return dataclasses.replace(config, agent=settled)


def check_continuation(state: dict[str, Any], ends: dict[str, int], data: str) -> None:
    """Raise `UsageError` if the flags or the data contradict what a run has done.

    Args:
        state: Its checkpoint.
        ends: Step at which each stage ends by the flags, in order.
        data: Fingerprint of the data that the flags name.
    """
    step, current = state["step"], state["stage"]
    if not set(state) >= set(PROGRESS) or current not in ends or set(state["ends"]) != set(ends):
        raise UsageError(
            "the checkpoint holds weights but no progress; start from it with --pretrained"
        )
    begins = 0
    for stage, end in ends.items():
        planned = state["ends"][stage]
        if end < step if stage == current else end != planned:
            flag = f"--{'bc' if stage == 'pretrain' else stage}-steps"
            fits = f"{step - begins} or more" if stage == current else planned - begins
            raise UsageError(
                f"the flags end stage {stage} at step {end}, but the run planned {planned} and is "
                f"at step {step} in stage {current}; pass {flag} {fits}"
            )
        if stage == current:
            break
        begins = end
    if data != state["data"]:
        raise UsageError(
            f"the run was trained on {state['data']}, but the flags name {data}; name "
            "its data with --dataset, or their folder with --dataset-dir or --generated-dir"
        )


def check_restart(folder: RunFolder) -> None:
    """Raise `UsageError` if a run without a checkpoint had come past its first one.

    One that was killed before it begins again.
    """
    before = TrainConfig.from_dict(folder.read_config())
    first = min(before.save_interval, *filter(None, before.stage_ends.values()))
    logged = folder.logged()
    if logged > first or (folder.path / "summary.json").exists():
        raise UsageError(
            f"{folder.path} has logs up to step {logged} but no checkpoint; put one back, start "
            "again with --overwrite, or remove the folder"
        )


def changes(folder: RunFolder, config: TrainConfig, step: int) -> list[str]:
    """Return what a run goes on with that it did not begin with, in words, and keep account of it.

    Args:
        folder: The run's folder.
        config: What the run goes on with, which its folder does not hold yet.
        step: From which step it does.
    """
    path = folder.path / "versions.json"
    problems: list[str] = []
    known = read_sound(path, problems)
    if not known or problems:
        return []
    notes, before, now = [], folder.read_config(), config.to_dict()
    lacking = [name for name in now if name not in before]
    # Another version had fewer flags, whose defaults are what it did.
    if lacking and known.get("trqam_fast") == version_of("trqam_fast"):
        found = ", ".join(f"{flag_of(name)} {value_in_words(now[name])}" for name in lacking)
        notes.append(f"config.json lacks these flags, which from now on are: {found}")
    other = go_on(path, known, step)
    return [*notes, other] if other else notes
