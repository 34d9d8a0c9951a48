"""Rate of evaluation with worker processes against this process alone.

python -m benchmarks.evaluation. Both play the same episodes of an untrained policy, in turns, after
a first one that is not timed: environments and workers stay.

On a machine that others use too, the clock also shows their work. Linux counts how long a process
ran and how long it waited for a processor; what is left of a turn is idle by design, not by load.
The ratio of running times, that of the serial turn over that of the busiest process, is what the
clock would show with processors to spare.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.records import describe, save
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.cli import run_command
from trqam_fast.data.names import parse_task
from trqam_fast.errors import RunError
from trqam_fast.evaluation import Evaluator
from trqam_fast.simulator.environment import env_sizes


@dataclass(frozen=True)
class EvaluationArgs:
    """Measure what worker processes gain."""

    env_name: str = "cube-double-play-singletask-task2-v0"
    """OGBench single task."""
    widths: tuple[int, ...] = (512, 128)
    """Hidden widths of the policies, four layers each."""
    workers: int = 2
    """Worker processes."""
    envs: int = 24
    """Environments that play at the same time."""
    episodes: int = 24
    """Episodes of a turn."""
    steps: int = 100
    """Length of an episode."""
    rounds: int = 10
    """Pairs of turns."""
    json: Path | None = None
    """File for the result."""


def scheduled(pid: int) -> tuple[float, float]:
    """Return seconds that a process has run, and waited for a processor, on its main thread."""
    ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return 1e-9 * int(ran), 1e-9 * int(waited)


def workers_of(evaluator: Evaluator) -> list[int]:
    """Return the process numbers of an evaluator's workers that have started."""
    processes = [getattr(player, "process", None) for player in evaluator.players]
    return [process.pid for process in processes if process is not None]


def compare(args: EvaluationArgs, width: int) -> dict[str, object]:
    """Return environment steps per second of both, and the ratio over the pairs of turns.

    Raises:
        RunError: the two play different episodes.
    """
    obs_dim, act_dim = env_sizes(parse_task(args.env_name).env_id)
    config = TRQAMConfig(
        actor_hidden_dims=(width,) * 4,
        value_hidden_dims=(8,),
        num_qs=1,
        horizon_length=5,
        action_chunking=True,
    )
    agent = TRQAMAgent(config, obs_dim, act_dim, [0])
    options = {"max_episode_steps": args.steps}
    players = {
        "serial": Evaluator(args.env_name, args.envs, env_options=options),
        "workers": Evaluator(args.env_name, args.envs, args.workers, env_options=options),
    }
    rates: dict[str, list[float]] = {name: [] for name in players}
    running: dict[str, list[float]] = {name: [] for name in players}
    idle = []
    try:
        for turn in range(args.rounds + 1):
            results = {}
            for name, evaluator in players.items():
                pids = [os.getpid(), *workers_of(evaluator)]
                before, start = [scheduled(pid) for pid in pids], time.perf_counter()
                results[name] = evaluator.evaluate(agent, 0, args.episodes, seed=turn)
                seconds = time.perf_counter() - start
                if turn == 0:
                    continue
                rates[name].append(sum(r.length for r in results[name]) / seconds)
                after = [scheduled(pid) for pid in pids]
                ran = [new[0] - old[0] for old, new in zip(before, after, strict=True)]
                running[name].append(max(ran))
                idle += [
                    1 - (sum(new) - sum(old)) / seconds
                    for old, new in zip(before[1:], after[1:], strict=True)
                ]
            if results["serial"] != results["workers"]:
                raise RunError("the workers play other episodes than this process")
    finally:
        for evaluator in players.values():
            evaluator.close()
    ratios = [w / s for s, w in zip(rates["serial"], rates["workers"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "serial steps/s": round(statistics.median(rates["serial"]), 1),
        "workers steps/s": round(statistics.median(rates["workers"]), 1),
        "ratio": round(median, 2),
        "ratio quartiles": [round(low, 2), round(high, 2)],
        "ratio range": [round(min(ratios), 2), round(max(ratios), 2)],
        "ratio of running times": round(
            statistics.median(running["serial"]) / statistics.median(running["workers"]), 2
        ),
        "share of time that workers idle": round(statistics.mean(idle), 3),
        "rounds": args.rounds,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = tyro.cli(EvaluationArgs, args=argv, prog="python -m benchmarks.evaluation")
    results = {}
    for width in args.widths:
        results[f"width {width} x 4"] = result = compare(args, width)
        print(f"width {width} x 4: {result}", flush=True)
    if args.json is not None:
        what = f"evaluation on {args.env_name} with {args.workers} workers against none, in turns"
        sizes = {"envs": args.envs, "episodes": args.episodes, "steps": args.steps}
        save(args.json, {**describe(what), **sizes, "results": results})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
