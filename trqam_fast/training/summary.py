"""What a run came to: summary.json and the closing table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from trqam_fast.agents import algorithm
from trqam_fast.kernels import Backend
from trqam_fast.runs.read import Row
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.ledger import Ledger


def summarise(
    config: TrainConfig, backend: Backend, ledger: Ledger, evaluations: Iterable[Row]
) -> dict[str, Any]:
    """Return success and return by stage and seed, seconds, rates, failures, as plain values.

    Args:
        config: The run's configuration.
        backend: What computed the networks' passes.
        ledger: The account of the run.
        evaluations: Rows of eval.csv, which has the returns.
    """
    seconds = ledger.seconds
    rates = {name: count / seconds[name] for name, count in ledger.updates.items() if count}
    result: dict[str, Any] = {
        "env_name": config.env_name,
        "algo": config.algo,
        "backend": backend,
        "precision": config.precision,
        "seeds": list(config.seeds),
    }
    final: dict[str, list[float]] = {"success": [], "return": []}
    newest = {(row.stage, row.seed): row.values.get("return", math.nan) for row in evaluations}
    for stage, name in (("pretrain", "pretrained"), ("offline", "offline"), ("online", "online")):
        successes = ledger.success.get(stage, [])
        # A seed that diverged since its last row was not evaluated at the end of the stage.
        returns = [
            newest.get((stage, str(seed)), math.nan) if math.isfinite(success) else math.nan
            for seed, success in zip(config.seeds, successes, strict=False)
        ]
        for measure, values in (("success", successes), ("return", returns)):
            final[measure] = values or final[measure]
            result |= of_seeds(f"{name}_{measure}", values)
    for measure, values in final.items():
        result |= of_seeds(f"final_{measure}", values)
    result |= {
        "episodes": config.eval_episodes,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "updates_per_second": {name: round(value, 2) for name, value in rates.items()},
        "online_seconds": {name: round(value, 2) for name, value in ledger.online_seconds.items()},
        "failures": {str(config.seeds[run]): why for run, why in ledger.failures.items()},
    }
    return result


def of_seeds(name: str, values: list[float]) -> dict[str, Any]:
    """Return a measure's mean over the seeds, and its value of each."""
    by_seed = [finite_or_none(value) for value in values]
    return {name: mean_of_finite(values), f"{name}_by_seed": by_seed}


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None for a run that diverged (JSON has no NaN)."""
    return value if math.isfinite(value) else None


def mean_of_finite(values: list[float]) -> float | None:
    """Return the mean over the runs that did not diverge, None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def format_table(config: TrainConfig, summary: dict[str, Any]) -> str:
    """Return the closing table: success after each stage, time and rate by stage.

    With data of one's own there is the return, too; of OGBench's tasks it tells the steps alone.
    """
    label = algorithm(config.algo).label
    offline = label if config.online_steps == 0 else f"{label} offline"
    columns = {"pretrained": "pretrained", "offline": offline, "online": f"{label} online"}
    columns = {n: title for n, title in columns.items() if summary[f"{n}_success_by_seed"]}
    width = max(13, *map(len, columns.values()))

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    def plain(value: float | None) -> str:
        return "-" if value is None else f"{value:.6g}"

    def row(first: Any, cells: list[str]) -> str:
        return "  ".join([f"{first:>6}", *(f"{cell:>{width}}" for cell in cells)])

    lines = []
    measures = {"success": percent} | ({} if config.dataset is None else {"return": plain})
    for measure, text in measures.items():
        lines += ["", f"{config.env_name}, {measure} over {summary['episodes']} episodes", ""]
        lines.append(row("seed", list(columns.values())))
        for run, seed in enumerate(config.seeds):
            by_seed = [summary[f"{name}_{measure}_by_seed"][run] for name in columns]
            lines.append(row(seed, list(map(text, by_seed))))
        lines.append(row("mean", [text(summary[f"{name}_{measure}"]) for name in columns]))
    lines += ["", f"{'stage':>10}  {'seconds':>8}  {'updates/s':>9}"]
    for stage, seconds in summary["seconds"].items():
        if seconds == 0:
            continue
        rate = summary["updates_per_second"].get(stage)
        shown = "" if rate is None else f"{rate:.1f}"
        lines.append(f"{stage:>10}  {seconds:>8.1f}  {shown:>9}")
    lines.append(f"{'total':>10}  {sum(summary['seconds'].values()):>8.1f}")
    online = summary["online_seconds"]
    if online:
        total = max(summary["seconds"]["online"], 1e-9)
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in online.items())
        lines += ["", f"share of the online stage (the simulator steps beside it): {shares}"]
    return "\n".join(lines) + "\n"
