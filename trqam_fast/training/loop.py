"""The stages of a run: pretraining, its evaluation, fine-tuning with evaluations."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trqam_fast.agents import Agent, BCAgent, TRQAMAgent
from trqam_fast.data.sources import load_task
from trqam_fast.evaluation import Evaluator
from trqam_fast.training import checkpoint
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.curves import plot_curves
from trqam_fast.training.history import History
from trqam_fast.training.run_folder import RunFolder
from trqam_fast.training.updater import Updater

# Evaluations use seeds of their own, the same for every run, so that runs meet the same episodes.
EVALUATION_SEED = 1_000_000
STAGE_STREAMS = {"pretrain": 1, "finetune": 2}


def make_generators(
    seeds: tuple[int, ...], stage: str, device: torch.device
) -> list[torch.Generator]:
    """Return one generator for each seed; a stage's random numbers depend on nothing else."""
    generators = []
    for seed in seeds:
        stream = np.random.SeedSequence([seed, STAGE_STREAMS[stage]]).generate_state(1, np.uint64)
        generators.append(torch.Generator(device).manual_seed(int(stream[0] >> np.uint64(1))))
    return generators


class Trainer:
    """One run of S seeds in one folder."""

    def __init__(self, config: TrainConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.bars = sys.stderr.isatty()
        self.seconds = dict.fromkeys(("data", "pretrain", "finetune", "evaluate"), 0.0)
        self.updates = dict.fromkeys(("pretrain", "finetune"), 0)
        self.success: dict[str, list[float]] = {}
        self.evaluated = -1
        self.failures: dict[int, str] = {}
        self.last_good: dict[str, Any] = {}
        self.evaluator: Evaluator | None = None

    def load_data(self) -> None:
        """Load the task's transitions, generating them first if the configuration says so.

        Raises:
            UsageError: no such task, no data for it, or not enough.
        """
        config, recipe = self.config, self.config.recipe
        if recipe is not None and not recipe.path(config.generated_dir).exists():
            self.say(f"generating {recipe.transitions} transitions")
        with self.timed("data"):
            self.dataset, path = load_task(
                config.env_name,
                dataset_dir=config.dataset_dir,
                recipe=recipe,
                generated_dir=config.generated_dir,
                sparse=config.sparse,
                device=config.device,
                progress=self.bars,
            )
        self.dataset.check_length(config.agent.horizon_length)
        self.say(f"data: {len(self.dataset)} transitions from {path}")

    def run(self) -> int:
        """Run all stages; return the exit status, 1 if a seed diverged."""
        config, state = self.config, None
        self.say(f"run folder: {self.folder.path}")
        if config.resume:
            state = self.load_newest()
        field = None
        if config.bc_steps > 0 and (state is None or state["stage"] == "pretrain"):
            self.train("pretrain", self.make_agent(BCAgent), 0, config.bc_steps, state)
            # A run that diverged goes on (without being reported) from its last good weights.
            field, state = self.last_good["online"], None
        if config.algo != "bc":
            agent = self.make_agent(TRQAMAgent, algo=config.algo)
            if field is not None:
                agent.load_pretrained(field)
            last = config.bc_steps + config.offline_steps
            self.train("finetune", agent, config.bc_steps, last, state)
        return self.finish()

    def make_agent(self, kind: type, **options) -> Any:
        """Build an agent for the task's sizes."""
        config = self.config
        return kind(
            config.agent,
            self.dataset.obs_dim,
            self.dataset.act_dim,
            list(config.seeds),
            device=config.device,
            backend=config.backend,
            precision=config.precision,
            **options,
        )

    def train(
        self, stage: str, agent: Agent, offset: int, last: int, state: dict[str, Any] | None
    ) -> None:
        """Update from step `offset` (or the checkpoint's) to `last`.

        Nothing is read back from the device but at log rows, evaluations and checkpoints.
        """
        config = self.config
        generators = make_generators(config.seeds, stage, agent.device)
        history = History(config.log_interval)
        step = offset
        if state is not None:
            checkpoint.restore(agent, state, self.checkpoint_path(state["step"]))
            for generator, saved in zip(generators, state["generators"], strict=True):
                generator.set_state(saved)
            history.values, step = state["history"], state["step"]
        self.last_good = agent.state_dict()
        bar = tqdm(
            desc=stage,
            total=last - offset,
            initial=step - offset,
            unit="update",
            disable=not self.bars,
            file=sys.stderr,
        )
        updater = Updater(agent, self.dataset, generators, history, graph=config.graph)
        clock, counted = time.perf_counter(), step
        while step < last and len(self.failures) < agent.runs:
            count = min(updater.stride, self.until_event(stage, step - offset), last - step)
            updater.run(count)
            step += count
            bar.update(count)
            progress, done = step - offset, step == last
            logging = progress % config.log_interval == 0 or done
            saving = progress % config.save_interval == 0 or done
            due = config.eval_interval > 0 and progress % config.eval_interval == 0
            evaluating = stage == "finetune" and due and not done
            if not (logging or saving or evaluating):
                continue
            self.check_finite(history, step)
            seconds = time.perf_counter() - clock
            self.seconds[stage] += seconds
            self.updates[stage] += step - counted
            if logging:
                self.log(stage, step, history, (step - counted) / seconds, bar)
            if evaluating:
                self.success[stage] = self.evaluate(stage, agent, step)
            if saving:
                self.save(stage, agent, generators, history, step)
            clock, counted = time.perf_counter(), step
        bar.close()
        if stage not in self.success or self.evaluated != step:
            self.success[stage] = self.evaluate(stage, agent, step)
            self.save(stage, agent, generators, history, step)

    def until_event(self, stage: str, progress: int) -> int:
        """Return the updates until the next log row, checkpoint or evaluation of a stage."""
        config = self.config
        intervals = [config.log_interval, config.save_interval]
        if stage == "finetune" and config.eval_interval > 0:
            intervals.append(config.eval_interval)
        return min(interval - progress % interval for interval in intervals)

    def check_finite(self, history: History, step: int) -> None:
        """Stop the runs whose metrics left the finite numbers since the last check."""
        new = history.collect()
        for run, seed in enumerate(self.config.seeds):
            if run in self.failures:
                continue
            bad = (~new[:, run].isfinite()).nonzero()
            if len(bad) == 0:
                continue
            row, metric = bad[0].tolist()
            when = step - len(new) + row + 1
            self.failures[run] = f"{history.names[metric]} is not finite at step {when}"
            self.say(
                f"error: seed {seed}: {self.failures[run]}; this run stops and keeps its last "
                "good checkpoint. Try a smaller --lr or a smaller --inv-temp (QAM)",
                error=True,
            )

    def log(self, stage: str, step: int, history: History, rate: float, bar: tqdm) -> None:
        """Append one row for each live seed to metrics.csv: means over the interval."""
        means = history.values.mean(0)
        history.clear()
        rows = []
        for run, seed in enumerate(self.config.seeds):
            if run in self.failures:
                continue
            values = dict(zip(history.names, means[run].tolist(), strict=True))
            rows.append(
                {"stage": stage, "step": step, "seed": seed, "updates_per_second": f"{rate:.2f}"}
                | {name: f"{value:.6g}" for name, value in values.items()}
            )
        self.folder.metrics.write(rows)
        if rows:
            shown = [n for n in ("bc_loss", "critic_loss", "path_kl", "lam") if n in rows[0]]
            averages = {name: np.mean([float(row[name]) for row in rows]) for name in shown}
            text = "  ".join(f"{name} {value:.6g}" for name, value in averages.items())
            if len(rows) > 1:
                text += f"  (mean of {len(rows)} seeds)"
            left = (bar.total - bar.n) / rate if self.bars else None
            self.say(
                f"{stage} step {step}  {text}  {rate:.1f} updates/s"
                + ("" if left is None else f"  {left:.0f} s left")
            )

    def evaluate(self, stage: str, agent: Agent, step: int) -> list[float]:
        """Play the evaluation episodes with every live run; return success by run."""
        config, success = self.config, []
        with self.timed("evaluate"):
            if self.evaluator is None:
                envs = min(config.eval_envs, config.eval_episodes)
                self.evaluator = Evaluator(config.env_name, envs)
            for run, seed in enumerate(config.seeds):
                if run in self.failures:
                    success.append(math.nan)
                    continue
                results = self.evaluator.evaluate(agent, run, config.eval_episodes, EVALUATION_SEED)
                mean = np.mean([tuple(result) for result in results], axis=0)
                success.append(float(mean[0]))
                row = {"stage": stage, "step": step, "seed": seed, "episodes": len(results)}
                row |= {"success": f"{mean[0]:.4g}", "return": f"{mean[1]:.6g}"}
                self.folder.eval.write([row | {"length": f"{mean[2]:.6g}"}])
                self.say(
                    f"evaluation at step {step}, seed {seed}: success {100 * mean[0]:.0f} % over "
                    f"{len(results)} episodes, mean length {mean[2]:.0f}"
                )
        self.evaluated = step
        return success

    def save(
        self,
        stage: str,
        agent: Agent,
        generators: list[torch.Generator],
        history: History,
        step: int,
    ) -> None:
        """Write a checkpoint; a run that diverged keeps the weights of its last good one."""
        state = agent.state_dict()
        for run in self.failures:
            for name, tensor in state.items():
                tensor[run] = self.last_good[name][run]
        self.last_good = state
        checkpoint.save(
            self.checkpoint_path(step),
            {
                "stage": stage,
                "step": step,
                "agent": {name: tensor.cpu() for name, tensor in state.items()},
                "shapes": checkpoint.network_shapes(agent),
                "generators": [generator.get_state() for generator in generators],
                "history": history.values,
                "success": self.success,
                "evaluated": self.evaluated,
                "seconds": self.seconds,
                "updates": self.updates,
                "failures": self.failures,
            },
        )
        pretrained = self.checkpoint_path(self.config.bc_steps)
        checkpoint.prune(self.folder.checkpoints, self.config.keep, pretrained)

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.folder.checkpoints / f"step_{step:09d}.pt"

    def load_newest(self) -> dict[str, Any] | None:
        """Load the newest checkpoint and drop the log rows after it."""
        path = checkpoint.newest(self.folder.checkpoints)
        state = None if path is None else checkpoint.load(path)
        step = -1
        if state is not None:
            step, self.evaluated = state["step"], state["evaluated"]
            self.success, self.failures = state["success"], state["failures"]
            self.seconds, self.updates = state["seconds"], state["updates"]
        self.folder.metrics.truncate(step)
        self.folder.eval.truncate(self.evaluated)
        self.say(f"resuming from {'the start' if path is None else path}")
        return state

    def finish(self) -> int:
        """Write the summary and the curves, print the table, return the exit status."""
        if self.evaluator is not None:
            self.evaluator.close()
        summary = self.summary()
        self.folder.write_json("summary.json", summary)
        plot_curves(self.folder, self.config)
        self.say(format_table(self.config, summary))
        self.say(f"run folder: {self.folder.path}")
        return 1 if self.failures else 0

    def summary(self) -> dict[str, Any]:
        """Success by stage and seed, seconds, rates, failures."""
        pretrained = self.success.get("pretrain", [])
        final = self.success.get("finetune", pretrained)
        rates = {
            stage: self.updates[stage] / self.seconds[stage]
            for stage in self.updates
            if self.updates[stage]
        }
        return {
            "env_name": self.config.env_name,
            "algo": self.config.algo,
            "backend": self.config.backend,
            "precision": self.config.precision,
            "seeds": list(self.config.seeds),
            "pretrained_success": mean_of_finite(pretrained),
            "final_success": mean_of_finite(final),
            "pretrained_success_by_seed": [finite_or_none(value) for value in pretrained],
            "final_success_by_seed": [finite_or_none(value) for value in final],
            "episodes": self.config.eval_episodes,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "updates_per_second": {name: round(value, 2) for name, value in rates.items()},
            "failures": {
                str(self.config.seeds[run]): reason for run, reason in self.failures.items()
            },
        }

    def say(self, text: str, error: bool = False) -> None:
        """Print a line without tearing a progress bar."""
        tqdm.write(text, file=sys.stderr if error else sys.stdout)
        (sys.stderr if error else sys.stdout).flush()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None for a run that diverged (JSON has no NaN)."""
    return value if math.isfinite(value) else None


def mean_of_finite(values: list[float]) -> float | None:
    """Return the mean over the runs that did not diverge, None if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def format_table(config: TrainConfig, summary: dict[str, Any]) -> str:
    """Return the closing table: success before and after, time and rate by stage."""
    before = summary["pretrained_success_by_seed"] or [None] * len(config.seeds)
    after = summary["final_success_by_seed"] or [None] * len(config.seeds)

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f} %"

    episodes = f"{summary['episodes']} episodes"
    lines = ["", f"{config.env_name}, success over {episodes}", ""]
    lines.append(f"{'seed':>6}  {'pretrained':>10}  {config.algo:>10}")
    for seed, first, second in zip(config.seeds, before, after, strict=True):
        lines.append(f"{seed:>6}  {percent(first):>10}  {percent(second):>10}")
    mean_before, mean_after = summary["pretrained_success"], summary["final_success"]
    lines.append(f"{'mean':>6}  {percent(mean_before):>10}  {percent(mean_after):>10}")
    lines += ["", f"{'stage':>10}  {'seconds':>8}  {'updates/s':>9}"]
    for stage, seconds in summary["seconds"].items():
        rate = summary["updates_per_second"].get(stage)
        shown = "" if rate is None else f"{rate:.1f}"
        lines.append(f"{stage:>10}  {seconds:>8.1f}  {shown:>9}")
    lines.append(f"{'total':>10}  {sum(summary['seconds'].values()):>8.1f}")
    return "\n".join(lines) + "\n"
