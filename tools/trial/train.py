"""Whole runs: the small default, the paper's sizes, and runs that stop and go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tools.trial.record import Trial

TRAIN = [sys.executable, "-m", "trqam_fast.train"]
SEEDS = [*map(str, range(8))]
PAPER_TASK = [
    "--preset", "paper", "--env-name", "cube-single-play-singletask-task1-v0", "--generated",
    "--generated-transitions", "20000",
]  # fmt: skip
TINY = [
    "--preset", "smoke", "--generated-transitions", "2000", "--bc-steps", "10", "--batch-size",
    "8", "--actor-hidden-dims", "16", "--value-hidden-dims", "16", "--eval-episodes", "1",
    "--eval-envs", "1", "--log-interval", "10", "--online-steps", "0", "--threads", "1",
]  # fmt: skip


def auto_plan(trial: Trial) -> None:
    """A plan chosen by measurement, at the paper's sizes."""
    flags = [*PAPER_TASK, "--bc-steps", "50", "--offline-steps", "200", "--eval-interval", "0"]
    flags += ["--eval-episodes", "1"]
    if trial.dry:
        flags = [*TINY, "--offline-steps", "10"]
    if train(trial, "auto", "auto", flags, plan="auto") is not None and trial.gpu:
        chosen = json.loads((folder(trial, "auto") / "update_plan.json").read_text())
        floor = chosen["plan"] == "layers"
        trial.emit("plan", size={"runs": 1}, ok=not floor, note=json.dumps(chosen))


def default_task(trial: Trial, precision: str) -> None:
    """The default preset for eight seeds at once: what it learns on a CPU it must learn here."""
    if not trial.gpu:
        if precision != "tf32":
            return
        precision = "ieee"
    flags = ["--eval-interval", "0", "--eval-episodes", "16", "--eval-envs", "16"]
    flags += ["--seeds", *SEEDS]
    if trial.dry:
        flags = [*TINY, "--offline-steps", "10", "--seeds", "0", "1"]
    summary = train(trial, f"default_{precision}", precision, flags)
    if summary is None:
        return
    scores = summary["offline_success_by_seed"]
    learned = None not in scores and sum(scores) >= 0.8 * len(scores)
    note = f"success {scores}, {summary['updates_per_second']}, seconds {summary['seconds']}"
    trial.emit(
        "default task", size={"runs": len(scores)}, precision=precision, variant="tiles",
        ok=learned or trial.dry, note=note,
    )  # fmt: skip


def paper_task(trial: Trial, runs: str) -> None:
    """The paper's sizes on generated data: updates a second and memory of whole runs."""
    seeds = ["--seeds", *map(str, range(int(runs)))]
    lengths = ["--bc-steps", "500", "--offline-steps", "20000" if runs == "1" else "6000"]
    evaluation = ["--eval-interval", "0", "--eval-episodes", "4", "--eval-workers", "8"]
    flags = [*PAPER_TASK, *lengths, *evaluation, "--log-interval", "2000", *seeds]
    if trial.dry:
        if runs != "1":
            return
        flags = [*TINY, "--offline-steps", "10"]
    precision = "tf32" if trial.gpu else "ieee"
    summary = train(trial, f"paper_s{runs}", precision, flags)
    if summary is None:
        return
    rate = summary["updates_per_second"]["offline"]
    trial.emit(
        "update in a run", size={"runs": int(runs)}, precision=precision, variant="tiles",
        mode="throughput", seconds=[1 / rate], note=f"seconds {summary['seconds']}",
    )  # fmt: skip


def resume(trial: Trial) -> None:
    """A run in one piece, one that goes on after half, one without graphs: the same weights."""
    from tests.kill_run import differences
    from trqam_fast.runs import checkpoint

    whole, half = ("20", "10") if trial.dry else ("2000", "1000")
    flags = ["--eval-interval", "0", "--eval-episodes", "1", "--save-interval", half]
    flags = [*TINY, *flags] if trial.dry else ["--bc-steps", "100", *flags]
    precision = "tf32" if trial.gpu else "ieee"
    first = train(trial, "whole", precision, [*flags, "--offline-steps", whole])
    train(trial, "halves", precision, [*flags, "--offline-steps", half])
    on = ["--resume", "--run-dir", str(folder(trial, "halves")), "--offline-steps", whole]
    trial.run([*TRAIN, *on], 120)
    if trial.gpu:
        train(trial, "eager", precision, [*flags, "--offline-steps", whole, "--no-graph"])
    if first is None:
        return
    expected = checkpoint.load(checkpoint.newest(folder(trial, "whole") / "checkpoints"))
    for name in ("halves", "eager") if trial.gpu else ("halves",):
        found = checkpoint.newest(folder(trial, name) / "checkpoints")
        if found is not None:
            apart = differences(expected["agent"], checkpoint.load(found)["agent"])
            note = f"different: {', '.join(apart)}" if apart else "equal bit for bit"
            trial.emit(f"whole and {name}", precision=precision, ok=not apart, note=note)


def train(
    trial: Trial, name: str, precision: str, flags: list[str], *, plan: str = "tiles"
) -> dict | None:
    """Train into a folder of its own and return the summary, or None if it failed."""
    plans = ["--plan", plan] if trial.gpu else []
    common = ["--device", trial.device, *plans, "--precision", precision, "--overwrite"]
    into = ["--run-dir", str(folder(trial, name)), "--generated-dir", str(trial.out / "data")]
    if trial.run([*TRAIN, *flags, *common, *into], 300) is None:
        return None
    return json.loads((folder(trial, name) / "summary.json").read_text())


def folder(trial: Trial, name: str) -> Path:
    """Return where a run of the trial lies."""
    return trial.out / "runs" / name
