"""Evaluate a trained run: python -m trqam_fast.evaluate RUN (see --help)."""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import contextlib
import csv
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import tyro

from trqam_fast import streams
from trqam_fast.agents import algorithm
from trqam_fast.callable_module import make_callable
from trqam_fast.damage import reading
from trqam_fast.data.names import nearest
from trqam_fast.data.tasks import find_task
from trqam_fast.devices import check_device
from trqam_fast.errors import RunError, UsageError
from trqam_fast.evaluation import EpisodeResult, Evaluator, NotFinite
from trqam_fast.evaluation.statistics import success_interval, wilson_interval
from trqam_fast.evaluation.video import RENDERERS, check_encoder, find_renderer, render_options
from trqam_fast.files import expanded, make_folder, open_log, write_json, write_text
from trqam_fast.kernels import Backend
from trqam_fast.kinds import check_kind, plain
from trqam_fast.runs.folder import check_out, is_export
from trqam_fast.training.config import MAX_EPISODES, check_shared
from trqam_fast.training.load_run import LoadedRun, load_run
from trqam_fast.training.loop import EVALUATION_SEED
from trqam_fast.training.presets import flag_of

COLUMNS = ("seed", "episode", "success", "return", "length")
Table = dict[int, list[EpisodeResult]]
HELP = "'python -m trqam_fast.evaluate --help' names them all"


@dataclass(frozen=True)
class EvaluateArgs:
    """Play episodes with the policies of a run, or of an export; report success, return, length.

    The default seed and number of episodes are those of the run's own evaluations. Intervals are
    95 %: Wilson's for the episodes of a seed and for all together, a bootstrap over seeds for
    their mean, at least as wide as Wilson's for all.
    """

    run: tyro.conf.Positional[Path]
    """Run folder, or an export."""
    checkpoint: Path | None = None
    """Checkpoint; the run's newest by default."""
    algo: str | None = None
    """Of an export its algorithm, where that is a class of your own, MODULE:CLASS. What a file
    names is not imported unless you name it too."""
    env_name: str | None = None
    """Of an export its environment, where that is MODULE:FACTORY, likewise."""
    episodes: int | None = None
    """Episodes for each seed of the run; by default its --eval-episodes, of an export 50."""
    workers: int = 0
    """Processes that step the environments; 0 steps them in this one. Outcomes do not depend on
    it."""
    envs: int = 16
    """Environments that play at the same time. Outcomes do not depend on it."""
    seed: int = EVALUATION_SEED
    """Seed of the episodes; the same for every seed of the run."""
    device: str = "cpu"
    """Torch device of the policy."""
    backend: Backend = "auto"
    """Implementation of the ops; auto takes the fastest one that works."""
    video: int = 0
    """Episodes of each seed to write as mp4 files, the first ones."""
    out: Path | None = None
    """Folder for the results; evaluation/step_<step>-seed_<seed>-episodes_<episodes> in the run
    folder by default. An export's go elsewhere."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(EvaluateArgs).items():
            check_kind(name, getattr(self, name), kind)
        for name in ("run", "checkpoint", "out"):
            path = getattr(self, name)
            object.__setattr__(self, name, None if path is None else expanded(Path(path)))
        bounds = {"episodes": 1, "workers": 0, "envs": 1, "seed": 0, "video": 0}
        for name, bound in bounds.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"--{name} is {value}; use {bound} or more")
        if self.episodes is not None and self.episodes > MAX_EPISODES:
            raise UsageError(f"--episodes is {self.episodes}; use 1 to {MAX_EPISODES}")
        check_device(self.device)


def episodes_of(loaded: LoadedRun, args: EvaluateArgs) -> int:
    """Return the episodes of each seed."""
    return args.episodes or loaded.config.eval_episodes


def load(args: EvaluateArgs) -> LoadedRun:
    """Return the run or export to evaluate.

    Raises:
        UsageError: there is none, it is another one than named, or it names what would be imported.
    """
    kind = None if args.algo is None else algorithm(args.algo)
    loaded = load_run(args.run, args.checkpoint, args.device, args.backend, kind)
    for name in ("algo", "env_name"):
        asked, found = getattr(args, name), getattr(loaded.config, name)
        if asked not in (None, found):
            raise UsageError(f"{flag_of(name)} is {asked}, but {args.run} is of {found}; drop it")
    env_name = loaded.config.env_name
    if args.workers > 0:
        check_shared(env_name, "--workers", args.workers)
    if args.env_name is None and ":" in env_name and is_export(args.run):
        raise UsageError(
            f"{args.run} is of {env_name}, an environment that is not of this package; name it "
            "with --env-name"
        )
    return loaded


def results_folder(loaded: LoadedRun, args: EvaluateArgs) -> Path:
    """Return the folder for the results.

    Raises:
        UsageError: it holds something else, or is of an export, which is published as it is.
    """
    name = f"step_{loaded.step:09d}-seed_{args.seed}-episodes_{episodes_of(loaded, args)}"
    out = args.out or args.run / "evaluation" / name
    if is_export(args.run) and args.run.resolve() in out.resolve().parents:
        raise UsageError(
            f"{args.run} is an export, which nothing is written to; name another folder with --out"
        )
    if args.out is not None:
        check_out(out)
        check_episodes(out)
    return out


def describe(results: list[EpisodeResult]) -> dict[str, Any]:
    """Means over episodes, and the interval of success."""
    success, total, length = np.mean([tuple(result) for result in results], axis=0)
    successes = sum(result.success > 0 for result in results)
    return {
        "episodes": len(results),
        "success": float(success),
        "success_interval": list(wilson_interval(successes, len(results))),
        "return": float(total),
        "length": float(length),
    }


def summarise(loaded: LoadedRun, args: EvaluateArgs, table: Table) -> dict[str, Any]:
    """Return what summary.json holds."""
    by_seed = {str(seed): describe(results) for seed, results in table.items()}
    summary = {
        "env_name": loaded.config.env_name,
        "algo": loaded.config.algo,
        "checkpoint": loaded.path.name,
        "stage": loaded.stage,
        "step": loaded.step,
        "evaluation_seed": args.seed,
        "intervals": "95 %: Wilson over episodes; bootstrap over seeds, at least as wide",
        "by_seed": by_seed,
        "failures": {str(loaded.config.seeds[run]): why for run, why in loaded.failures.items()},
        "pooled": describe([result for results in table.values() for result in results]),
    }
    if len(table) > 1:
        means = [row["success"] for row in by_seed.values()]
        summary["over_seeds"] = {
            "seeds": len(means),
            "success": float(np.mean(means)),
            "success_interval": list(success_interval(means, sum(map(len, table.values())))),
        }
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Return the closing table."""

    def percent(value: float) -> str:
        return f"{100 * value:.1f}"

    lines = [
        "",
        f"{summary['env_name']}, {summary['algo']}, stage {summary['stage']}, "
        f"step {summary['step']}; 95 % intervals",
        "",
        f"{'seed':>10}  {'episodes':>8}  {'success %':>9}  {'Wilson':>14}  {'return':>9}  "
        f"{'length':>7}",
    ]
    for name, row in [*summary["by_seed"].items(), ("pooled", summary["pooled"])]:
        interval = " to ".join(percent(end) for end in row["success_interval"])
        lines.append(
            f"{name:>10}  {row['episodes']:>8}  {percent(row['success']):>9}  {interval:>14}  "
            f"{row['return']:>9.2f}  {row['length']:>7.1f}"
        )
    if "over_seeds" in summary:
        row = summary["over_seeds"]
        low, high = (percent(end) for end in row["success_interval"])
        lines += [
            "",
            f"mean over {row['seeds']} seeds: {percent(row['success'])} %, from {low} to {high} % "
            "(bootstrap over seeds)",
        ]
    return "\n".join(lines) + "\n"


def check_episodes(folder: Path) -> None:
    """Raise `UsageError` if a folder holds an episodes.csv of something else than evaluations."""
    path = folder / "episodes.csv"
    if path.exists():
        with reading(path, "is not of evaluate", "name another folder with --out"):
            with open_log(path) as file:
                if next(csv.reader(file), None) != list(COLUMNS):
                    raise ValueError("it has other columns")


def write_results(folder: Path, table: Table, summary: dict[str, Any]) -> None:
    """Write episodes.csv and summary.json."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for seed, results in table.items():
        for number, result in enumerate(results):
            # repr tells every bit of a return
            success, total, length = result
            writer.writerow([seed, number, f"{success:g}", repr(total), length])
    write_text(folder / "episodes.csv", text.getvalue())
    write_json(folder / "summary.json", summary)


def write_videos(loaded: LoadedRun, args: EvaluateArgs, table: Table, folder: Path) -> None:
    """Replay the first episodes of each seed in a process that renders, and film them.

    Raises:
        RunError: a filmed episode is not the one that was evaluated.
    """
    task, count = find_task(loaded.config.env_name), min(args.video, episodes_of(loaded, args))
    options = loaded.config.env_options | render_options(task)
    renderer = find_renderer(task.env_id, options)
    if renderer is None:
        print(
            f"warning: no video, because neither MUJOCO_GL={' nor '.join(RENDERERS)} renders here",
            file=sys.stderr,
        )
        return
    workers = min(max(args.workers, 1), count)
    evaluator = Evaluator(
        task.env_name, workers, workers, env_options=options, environment={"MUJOCO_GL": renderer}
    )
    with contextlib.closing(evaluator):
        for seed, results in table.items():
            run = loaded.config.seeds.index(seed)
            videos = folder / f"seed_{seed}"
            filmed = evaluator.evaluate(loaded.agent, run, count, args.seed, video_dir=videos)
            if filmed != results[:count]:
                raise RunError(f"the episodes in {videos} differ from those in episodes.csv")
            print(f"{count} videos in {videos} (MUJOCO_GL={renderer})", flush=True)


def play(
    loaded: LoadedRun,
    args: EvaluateArgs,
    say: Callable[[int, list[EpisodeResult]], object] = lambda seed, results: None,
) -> Table:
    """Play the episodes of every seed that has not diverged; `say` is called with each seed's.

    One whose actions are not finite has, and joins `loaded.failures`.

    Raises:
        UsageError: all have.
    """
    table: Table = {}
    failures, episodes = loaded.failures, episodes_of(loaded, args)
    evaluator = Evaluator(
        loaded.config.env_name, min(args.envs, episodes), args.workers,
        env_options=loaded.config.env_options,
    )  # fmt: skip
    with contextlib.closing(evaluator):
        for run, seed in enumerate(loaded.config.seeds):
            if run not in failures:
                try:
                    table[seed] = evaluator.evaluate(loaded.agent, run, episodes, args.seed)
                    say(seed, table[seed])
                except NotFinite as error:
                    failures[run] = str(error)
            if run in failures and len(failures) < len(loaded.config.seeds):
                streams.say(f"warning: seed {seed} is not evaluated: {failures[run]}", "stderr")
    if not table:
        reason = next(iter(failures.values()))
        raise UsageError(
            f"every seed of {loaded.path} diverged ({reason}); name another checkpoint"
        )
    return table


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        success: Share of all episodes that succeeded.
        summary: Means and intervals, as the command writes them to summary.json.
        episodes: Success, return and length of every episode, by seed of the run.
    """

    success: float
    summary: dict[str, Any]
    episodes: Table


def evaluate(run: Path | str, **flags: Any) -> Evaluation:
    """Play episodes with the policies of a run, as the command does, without writing anything.

    Args:
        run: Run folder, or an export.
        flags: The command's flags by name but for `video` and `out`, e.g. ``episodes=100``.

    Raises:
        UsageError: an impossible value, or no run.
    """
    for name in ("video", "out"):
        if name in flags:
            raise TypeError(f"evaluate writes nothing; drop {name}, or run the command")
    known = [field.name for field in dataclasses.fields(EvaluateArgs)]
    for name in flags:
        if name not in known:
            raise UsageError(f"evaluate has no flag {name}{nearest(name, known, HELP)}")
    given = {"run": run} | flags
    args = EvaluateArgs(**{name: plain(value) for name, value in given.items()})
    loaded = load(args)
    table = play(loaded, args)
    summary = summarise(loaded, args, table)
    return Evaluation(summary["pooled"]["success"], summary, table)


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    args = tyro.cli(EvaluateArgs, args=argv, prog="python -m trqam_fast.evaluate")
    if args.video > 0:
        check_encoder()
    loaded = load(args)
    folder = results_folder(loaded, args)
    make_folder(folder)

    def say(seed: int, results: list[EpisodeResult]) -> None:
        success = np.mean([result.success for result in results])
        streams.say(f"seed {seed}: success {100 * success:.1f} %")

    table = play(loaded, args, say)
    summary = summarise(loaded, args, table)
    streams.say(format_summary(summary))
    write_results(folder, table, summary)
    streams.say(f"results: {folder}")
    if args.video > 0:
        write_videos(loaded, args, table, folder)
    return 0


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(run_command(main))
