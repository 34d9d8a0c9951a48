"""The model card of an export: what the weights are, how well they do, how to act with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trqam_fast import __version__
from trqam_fast.agents import ALGORITHMS
from trqam_fast.damage import reading
from trqam_fast.data.tasks import single_task
from trqam_fast.errors import RunError, UsageError
from trqam_fast.evaluation.statistics import wilson_interval
from trqam_fast.runs.progress import mean
from trqam_fast.runs.read import Row, Run, success_of
from trqam_fast.runs.values import LARGEST_COUNT, load_json, number
from trqam_fast.runs.versions import MACHINE
from trqam_fast.simulator.bounds import bounds_in_words
from trqam_fast.text import count_of
from trqam_fast.training.config import DEFAULT_ENV, TrainConfig
from trqam_fast.training.load_run import LoadedRun
from trqam_fast.training.presets import (
    PRESETS,
    default_preset,
    flag_of,
    make_config,
    preset_settings,
    value_in_words,
)

MEASURED = ("success", "episodes")
TRAINER = "the trainer, at this update"

HOW_TO_ACT = """\
```python
import numpy as np
{imports}

{load}
observation = np.zeros({obs_dim})  # one of the environment
action = policy(observation)
```

`action` has the {act_dim} numbers of one environment step, within the environment's own bounds
{bounds}. The policy decides on {decides}; `policy.reset()` begins an
episode. `pip install 'trqam_fast[export]'` installs what this needs; nothing in the folder is
executed."""

LOAD = (
    "import trqam_fast as tf",
    'policy = tf.Policy.load(".", train_seed={seed})  # the folder of this file',
)
LOAD_OWN = (
    """\
from {module} import {name}
from trqam_fast import Policy
from trqam_fast.export import load_export""",
    """\
loaded = load_export(".", kind={kind})  # the folder of this file
policy = Policy(loaded.agent, loaded.sizes, run=0)  # of seed {seed}""",
)
"""Imports and the making of the policy; its class is given where the algorithm is one's own."""


def model_card(
    loaded: LoadedRun, run: Run, settings: dict[str, Any], data: str, license: str | None
) -> str:
    """Return the card, Markdown after a header for hubs.

    Args:
        loaded: The agent and its checkpoint.
        run: What its run folder holds.
        settings: Those that are published.
        data: What the checkpoint says of its data.
        license: Licence of the weights, as hubs name it.
    """
    config, found = loaded.config, evaluations(loaded, run)
    label, task = type(loaded.agent).label, config.env_name
    seeds = " ".join(map(str, config.seeds))
    home = "[OGBench](https://github.com/seohongpark/ogbench)"
    purpose = home if of_ogbench(config) else f"`{task}`"
    held = f"{len(config.seeds)} policies, one for each seed: {seeds}"
    held = held if len(config.seeds) > 1 else f"the policy of seed {seeds}"
    parts = [
        header(loaded, found, license),
        f"# {label} on {task}",
        f"A flow policy for {purpose}, trained by {label} "
        f"with trqam_fast {run.versions.get('trqam_fast', 'of unknown version')}: stage "
        f"{loaded.stage}, step {loaded.step:,} from the start of pretraining. It holds {held}."
        + (" They started from another run's checkpoint." if config.pretrained else ""),
        "## Success",
        success_table(found) or "These weights have not been evaluated.",
        *failures(loaded, run),
        "## Acting",
        how_to_act(loaded),
        "## Settings",
        table(["flag", "value", "where it comes from"], setting_rows(config, settings)),
        "## Data",
        data_in_words(config, data),
        "## Versions",
        table(["", ""], [[n, str(v)] for n, v in run.versions.items() if n not in MACHINE]),
        "## Files",
        "`model.safetensors` holds the networks layer by layer, `[S, in, out]` for S seeds, "
        "critics `[S, E, in, out]`; `config.json` what builds them. Written by trqam_fast "
        f"{__version__}, which implements Trust Region Q-Adjoint Matching "
        "([arXiv 2605.27079](https://arxiv.org/abs/2605.27079)) and its relatives.",
    ]
    return "\n\n".join(parts) + "\n"


def of_ogbench(config: TrainConfig) -> bool:
    """Whether a run's environment is one of OGBench's tasks."""
    return single_task(config.env_name) is not None


def how_to_act(loaded: LoadedRun) -> str:
    """Return how the export is loaded and asked for an action."""
    config, sizes = loaded.config, loaded.sizes
    module, _, kind = config.algo.partition(":")
    imports, load = (
        part.format(module=module, name=kind.partition(".")[0], kind=kind, seed=config.seeds[0])
        for part in (LOAD if config.algo in ALGORITHMS else LOAD_OWN)
    )
    chunk = config.agent.chunk_length
    return HOW_TO_ACT.format(
        imports=imports, load=load, obs_dim=sizes.obs_dim, act_dim=sizes.act_dim,
        bounds=bounds_in_words(sizes.low, sizes.high),
        decides=f"{chunk} steps at a time" if chunk > 1 else "every step",
    )  # fmt: skip


def evaluations(loaded: LoadedRun, run: Run) -> dict[str, list[Row]]:
    """Return a row for each seed of every evaluation of a checkpoint, by who evaluated."""
    key = (loaded.stage, loaded.step)
    found = {TRAINER: [row for row in run.evaluations if (row.stage, row.step) == key]}
    for path in sorted(run.path.glob("evaluation/*/summary.json")):
        try:
            found[f"`evaluate`, {path.parent.name}"] = read_summary(path, *key)
        except (UsageError, RunError) as error:
            run.problems.append(str(error))
    sound = {
        who: [row for row in rows if math.isfinite(row.values.get("success", math.nan))]
        for who, rows in found.items()
    }
    return {who: rows for who, rows in sound.items() if rows}


def read_summary(path: Path, stage: str, step: int) -> list[Row]:
    """Return what an evaluation says of a checkpoint, nothing if it is of another one.

    Raises:
        UsageError: it is damaged.
        RunError: it cannot be read.
    """
    with reading(path, "is no summary of an evaluation", "evaluate again"):
        values = load_json(path)
        if (values["stage"], values["step"]) != (stage, step):
            return []
        rows = []
        for seed, row in values["by_seed"].items():
            measured = {name: float(row[name]) for name in MEASURED}
            if not all(0 <= value < LARGEST_COUNT for value in measured.values()):
                raise ValueError(f"seed {seed} has {measured}")
            measured["return"] = number(row.get("return"))
            rows.append(Row(stage, step, str(seed), measured))
        return rows


def best_known(found: dict[str, list[Row]]) -> list[Row]:
    """Return the evaluation with the most episodes, nothing if there is none."""
    return max(found.values(), key=episodes, default=[])


def episodes(rows: list[Row]) -> int:
    """Return the episodes of all seeds together."""
    return int(sum(row.values.get("episodes", 0) for row in rows))


def header(loaded: LoadedRun, found: dict[str, list[Row]], license: str | None) -> str:
    """Return what hubs read: YAML, of which JSON is a part."""
    config = loaded.config
    values: dict[str, Any] = {
        "library_name": "trqam_fast",
        "pipeline_tag": "reinforcement-learning",
        "tags": [
            "reinforcement-learning", "offline-rl", "flow-matching",
            *["ogbench"] * of_ogbench(config), config.algo, config.env_name,
        ],
    }  # fmt: skip
    if license is not None:
        values["license"] = license
    rows = best_known(found)
    if rows:
        metric = {
            "type": "success_rate",
            "name": f"success in %, {count_of(episodes(rows), 'episode')} of "
            f"{count_of(len(rows), 'seed')}",
            "value": round(100 * success_of(rows).value, 1),
        }
        result = {
            "task": {"type": "reinforcement-learning"},
            "dataset": {"type": config.env_name, "name": config.env_name},
            "metrics": [metric],
        }
        name = f"{type(loaded.agent).label} on {config.env_name}"
        values["model-index"] = [{"name": name, "results": [result]}]
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def success_table(found: dict[str, list[Row]]) -> str:
    """Return a table of every evaluation: each seed, and their mean."""
    lines = []
    for who, rows in found.items():
        for row in rows:
            count = int(row.values.get("episodes", 0))
            rate = row.values["success"]
            interval = wilson_interval(round(rate * count), count) if count else (0.0, 1.0)
            cells = [*percents(rate, *interval), return_of([row])]
            lines.append([who, f"seed {row.seed}", str(count), *cells])
        if len(rows) > 1:
            cells = [*percents(*success_of(rows)), return_of(rows)]
            lines.append([who, f"mean of {len(rows)} seeds", str(episodes(rows)), *cells])
    titles = ["evaluated by", "", "episodes", "success %", "95 % interval", "return"]
    return table(titles, lines) if lines else ""


def return_of(rows: list[Row]) -> str:
    """Return the mean return over seeds as a cell, a dash where none is known."""
    value = mean(row.values.get("return", math.nan) for row in rows)
    return "-" if value is None else f"{value:.6g}"


def percents(value: float, low: float, high: float) -> list[str]:
    """Return a rate and its interval as two cells."""
    return [f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]


def failures(loaded: LoadedRun, run: Run) -> list[str]:
    """Return a sentence for each seed that diverged, by the checkpoint or later."""
    later = run.summary.get("failures")
    failed = {str(loaded.config.seeds[at]): why for at, why in loaded.failures.items()}
    failed = (later if isinstance(later, dict) else {}) | failed
    return [
        f"Seed {seed} failed ({why}); its weights are the last good ones."
        for seed, why in failed.items()
    ]


def setting_rows(config: TrainConfig, settings: dict[str, Any]) -> list[list[str]]:
    """Return flag, value and origin of each setting."""
    implied = {"env_name": DEFAULT_ENV, "algo": TrainConfig.algo}
    implied["preset"] = default_preset(config.env_name)
    plain = make_config(config.env_name, config.algo, config.preset).to_dict() | implied
    sources = preset_settings(config.preset, config.env_name, config.algo)
    rows = []
    for name, value in settings.items():
        if value is None or name in config.without_use:
            continue
        if value != plain.get(name):
            origin = "chosen for this run"
        elif name in sources:
            origin = sources[name].source
        elif name in PRESETS[config.preset]:
            origin = f"preset {config.preset}, this project"
        else:
            origin = "default"
        rows.append([f"`{flag_of(name)}`", value_in_words(value), origin])
    return rows


def data_in_words(config: TrainConfig, data: str) -> str:
    """Return what the run was trained on."""
    recipe = config.recipe
    origin = "the official OGBench file"
    if config.dataset is not None:
        origin = "data other than OGBench's"
    if recipe is not None:
        corners = ", half of the expert's goals in corners" if recipe.corners else ""
        origin = (
            f"data generated by trqam_fast: {recipe.transitions} transitions of "
            f"{recipe.dataset_name}{corners}, action noise {recipe.noise}, seed {recipe.seed}"
        )
    return f"Trained on {origin}" + (f" ({data})." if data else ".")


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; what would end a cell is escaped."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(titles), line(["---"] * len(titles)), *map(line, rows)])
