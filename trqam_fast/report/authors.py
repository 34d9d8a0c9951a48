"""Reads run folders of the authors' code.

They lie at ``<save_dir>/trqam/<run_group>/<env_name>/[<tags>_]<agent>_<env>_s<seed>_<hash>`` and
hold ``flags.json``, ``eval.csv`` (the means of each evaluation: ``success``,
``episode.return`` and so on, and last ``step``), ``offline_agent.csv``, ``online_agent.csv`` and,
once they have ended, ``token.tk``.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

from trqam_fast.agents import ALGORITHMS, declaration
from trqam_fast.files import open_log
from trqam_fast.report.collect import Result, Tracking, updates_in_words
from trqam_fast.runs.read import encodable, fault_of
from trqam_fast.runs.values import LARGEST_COUNT, load_json, number, sound
from trqam_fast.text import printable

NAME = re.compile(r"(?:.*_)?([a-z]+)_[a-z0-9]+_s(\d+)_[0-9a-f]{8}")
AUTHORS = "(authors' code)"
"""What the names of their methods end with, so that they are never mixed with ours."""
EDITED = "-e"
"""What the names of algorithms end with that edit actions; theirs is the same with a scale of 0."""
OWN_COLUMNS = {"stage", "seed", "episodes"}
"""Columns of this project's eval.csv that theirs has not."""
SETTINGS = (
    "offline_steps", "online_steps", "buffer_size", "start_training", "utd_ratio",
    "dataset_proportion", "horizon_length", "sparse", "balanced_sampling", "kl_budget_online",
)  # fmt: skip
"""Their flags that say how a run was trained."""
NO_SETTINGS = {"agent_name", "ob_dims", "action_dim"}
"""What their agent's flags have beside its hyperparameters."""


def is_authors(folder: Path) -> bool:
    """Whether a folder holds a run of the authors' code."""
    if read_flags(folder, [])[1]:
        return True
    if (folder / "config.json").exists():
        return False
    try:
        with open_log(folder / "eval.csv") as file:
            return not OWN_COLUMNS & set(next(csv.reader(file), []))
    except Exception as error:
        fault_of(error)
        return False


def read_flags(folder: Path, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is sound in flags.json, and in what it holds of the agent; note what fails."""
    try:
        flags = load_json(folder / "flags.json")
    except FileNotFoundError:
        return {}, {}
    except Exception as error:
        notes.append(f"{encodable(str(folder))}: flags.json {fault_of(error)}")
        return {}, {}
    agent = flags.pop("agent", {})
    return sound(flags)[0], sound(agent)[0] if isinstance(agent, dict) else {}


def settings_of_flags(flags: dict[str, Any], agent: dict[str, Any]) -> dict[str, Any]:
    """Return what says how a run was trained: SETTINGS of its flags, and those of its agent."""
    chosen = {name: flags[name] for name in SETTINGS if name in flags}
    if flags.get("bc_only"):
        chosen["bc_steps"] = flags.get("offline_steps")
    return chosen | {name: value for name, value in agent.items() if name not in NO_SETTINGS}


def read_authors(folder: Path, notes: list[str]) -> Result | None:
    """Return the result of one of their run folders; None, and a note, if it does not say which."""
    shown = encodable(str(folder))
    flags, agent = read_flags(folder, notes)
    named = NAME.fullmatch(folder.name)
    name = agent.get("agent_name") or (named and named[1])
    seed = flags.get("seed", named and named[2])
    if name is None or seed is None:
        notes.append(f"{shown}: neither flags.json nor its name says what ran, so it is left out")
        return None
    task = printable(flags.get("env_name") or folder.parent.name)
    algo = printable(name)
    if flags.get("bc_only"):
        algo = next(name for name, kind in ALGORITHMS.items() if not kind.fine_tunes)
    if number(agent.get("edit_scale")) > 0:
        algo += EDITED
    method = declaration(algo).label if algo in ALGORITHMS else algo.upper()
    offline, online = flags.get("offline_steps"), flags.get("online_steps")
    rows = read_rows(folder / "eval.csv", ("success",), notes)
    result = Result(
        f"{method} {AUTHORS}", algo, task, printable(seed), "done", folder=shown,
        curve=[(step, values["success"]) for step, values in rows],
        updates=updates_in_words(flags),
        tracking=read_tracking(folder, flags, agent, notes), config=settings_of_flags(flags, agent),
    )  # fmt: skip
    end = None if offline is None or online is None else offline + online
    if not rows:
        result.status, result.reason = "unfinished", "eval.csv has no success yet"
    elif not (folder / "token.tk").exists() and end is not None and rows[-1][0] < end:
        result.status = "unfinished"
        result.reason = f"its last evaluation is at step {rows[-1][0]} of {end}"
    else:
        result.success = rows[-1][1]["success"]
        episodes = flags.get("eval_episodes")
        result.episodes = episodes if isinstance(episodes, int) and episodes > 0 else 0
        if not (folder / "token.tk").exists() and end is None:
            notes.append(
                f"{shown}: nothing says whether it has ended; its last evaluation, at step "
                f"{rows[-1][0]}, counts"
            )
    return result


def read_rows(
    path: Path, columns: tuple[str, ...], notes: list[str]
) -> list[tuple[int, dict[str, float]]]:
    """Return step and `columns` of the rows that hold finite numbers there; none without a file."""
    found: dict[int, dict[str, float]] = {}
    where, damaged = f"{encodable(str(path.parent))}: {path.name}", 0
    try:
        with open_log(path) as file:
            for cells in csv.DictReader(file):
                step, *values = (number(cells.get(name)) for name in ("step", *columns))
                if not 0 <= step < LARGEST_COUNT:
                    damaged += 1
                elif all(map(math.isfinite, values)):
                    found[int(step)] = dict(zip(columns, values, strict=True))
    except FileNotFoundError:
        pass
    except Exception as error:
        notes.append(f"{where} {fault_of(error)}; it counts up to there")
    if damaged:
        notes.append(f"{where} has damaged rows, left out: {damaged}")
    return sorted(found.items())


def read_tracking(
    folder: Path, flags: dict[str, Any], agent: dict[str, Any], notes: list[str]
) -> list[Tracking]:
    """Return the path KL that they log; a value is that of a single update."""
    tracks = []
    scale = number(agent.get("lam_scale"))
    scale = scale if scale > 0 else 1.0
    for stage in ("offline", "online"):
        rows = read_rows(folder / f"{stage}_agent.csv", ("actor/path_kl", "dual/lambda"), notes)
        if not rows or flags.get("bc_only"):
            continue
        online = flags.get("kl_budget_online") if stage == "online" else None
        budget = number(agent.get("kl_budget") if online is None else online)
        start = flags.get("offline_steps", 0) if stage == "online" else 0
        tracks.append(
            Tracking(
                stage, budget if budget > 0 else None, [step - start for step, _ in rows],
                [values["actor/path_kl"] for _, values in rows],
                [values["dual/lambda"] / scale for _, values in rows], start,
            )
        )  # fmt: skip
    return tracks
