"""The stages of a run: pretraining, offline and online fine-tuning, their evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from trqam_fast.agents import Agent, Algorithm, fine_tuning_class, make_agent
from trqam_fast.data.load import load_task
from trqam_fast.errors import RunError, Stopped
from trqam_fast.evaluation import Evaluator
from trqam_fast.files import write_json
from trqam_fast.report import write_overview
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.training.backend import running_backend
from trqam_fast.training.config import STAGES, TrainConfig
from trqam_fast.training.history import History
from trqam_fast.training.intervals import Schedule
from trqam_fast.training.logger import Journal
from trqam_fast.training.online import OnlineDriver, make_online_driver
from trqam_fast.training.seeding import make_generators
from trqam_fast.training.stopping import StopRequest
from trqam_fast.training.summary import format_table, summarise
from trqam_fast.training.updater import Updater

# Evaluations use seeds of their own, the same for every run, so that runs meet the same episodes.
EVALUATION_SEED = 1_000_000


class Trainer:
    """One run of S seeds in one folder."""

    def __init__(self, config: TrainConfig, folder: RunFolder, stop: StopRequest) -> None:
        self.asked, self.config, self.folder, self.stop = config, config, folder, stop
        self.bars = sys.stderr.isatty()
        self.journal = Journal(config, folder)
        self.say = self.journal.say
        self.seconds = dict.fromkeys(("data", *STAGES, "evaluate"), 0.0)
        self.updates = dict.fromkeys(STAGES, 0)
        self.success: dict[str, list[float]] = {}
        self.evaluated = -1
        self.failures: dict[int, str] = {}
        self.last_good: dict[str, Any] = {}
        self.unsaved = False
        self.pretrained: dict[str, Any] | None = None
        self.online_seconds: dict[str, float] = {}
        self.evaluator: Evaluator | None = None
        self.driver: OnlineDriver | None = None

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
        self.data = self.dataset.fingerprint()
        self.say(f"data: {len(self.dataset)} transitions from {path}")

    def load_pretrained(self) -> None:
        """Read what --pretrained names.

        Raises:
            UsageError: there is none, it is damaged, or has other networks than the flags.
        """
        config = self.config
        state, path = checkpoint.load_pretrained(config.pretrained)
        kind = fine_tuning_class(config.algo, config.agent)
        shapes = kind.network_shapes(config.agent, self.dataset.obs_dim, self.dataset.act_dim)
        if config.bc_steps > 0:
            shapes = {"actor_slow": shapes["actor_slow"]}
        checkpoint.check_start(state, path, shapes, config.sequences, len(config.seeds))
        self.pretrained = {name: state[name] for name in checkpoint.WEIGHTS}
        self.failures = checkpoint.inherited_failures(state, path)
        self.say(f"starting from {path}, stage {state['stage']}")
        for run, reason in self.failures.items():
            self.say(f"error: seed {config.seeds[run]}: {reason}", error=True)

    def run(self) -> int:
        """Run all stages; return the exit status, 1 if a seed diverged."""
        config = self.config
        self.say(f"run folder: {self.folder.path}")
        self.journal.start_trackers()
        try:
            self.run_stages(self.load_newest() if config.resume != "no" else None)
        finally:
            for part in (self.driver, self.evaluator, self.journal):
                if part is not None:
                    part.close()
        if self.unsaved:
            raise RunError(
                f"the end of the run could not be saved; make room and continue with --resume "
                f"--run-dir {self.folder.path}"
            )
        return self.finish()

    def run_stages(self, state: dict[str, Any] | None) -> None:
        """Run what is left of the stages after checkpoint `state`."""
        config, ends = self.config, self.config.stage_ends
        stage = "pretrain" if state is None else state["stage"]
        pretrained = self.pretrained if state is None else None
        field = None
        if stage == "pretrain" and config.bc_steps > 0:
            agent = self.make_agent("bc")
            if pretrained is not None:
                checkpoint.start_from(agent, pretrained)
            self.train("pretrain", agent, 0, state)
            if config.algo == "bc":
                return
            # A run that diverged goes on (without being reported) from its last good weights.
            field, state = self.last_good["online"], None
        agent = self.make_agent(config.algo)
        if field is not None:
            agent.load_pretrained(field)
        elif pretrained is not None:
            checkpoint.start_from(agent, pretrained)
            with self.stop.at_once():
                self.success["pretrain"] = self.evaluate("pretrain", agent, 0)
        if stage != "online" and config.offline_steps > 0:
            self.train("offline", agent, ends["pretrain"], state)
            agent.load_state_dict(self.last_good)
            state = None
        if config.online_steps > 0:
            if config.kl_budget_online is not None:
                agent.config = dataclasses.replace(agent.config, kl_budget=config.kl_budget_online)
            self.train("online", agent, ends["offline"], state)

    def make_agent(self, algo: Algorithm) -> Any:
        """Build an agent for the task's sizes."""
        config = self.config
        return make_agent(
            algo,
            config.agent,
            self.dataset.obs_dim,
            self.dataset.act_dim,
            list(config.seeds),
            device=config.device,
            backend=config.backend,
            precision=config.precision,
        )

    def make_driver(
        self, stage: str, agent: Agent, generators: list[torch.Generator], history: History
    ) -> Updater | OnlineDriver:
        """Return what does a stage's steps."""
        if stage != "online":
            graph = self.config.graph and self.dataset.on_device
            return Updater(agent, self.dataset, generators, history, graph=graph)
        self.driver = make_online_driver(
            self.config, agent, self.dataset, generators, history,
            lambda *episode: self.journal.episode(*episode, self.failures),
        )  # fmt: skip
        return self.driver

    def train(self, stage: str, agent: Agent, offset: int, state: dict[str, Any] | None) -> None:
        """Do a stage's steps from `offset`, or from the checkpoint's, to its end.

        Nothing is read back from the device but at log rows, evaluations and checkpoints.
        """
        config, last = self.config, self.config.stage_ends[stage]
        schedule = Schedule.of(config, stage)
        generators = make_generators(config.seeds, stage, agent.device)
        updates_per_step = config.utd_ratio if stage == "online" else 1
        history = History(config.log_interval * updates_per_step)
        step = offset
        if state is not None:
            checkpoint.restore(agent, state, self.folder.checkpoint(state["step"]))
            for generator, saved in zip(generators, state["generators"], strict=True):
                generator.set_state(saved)
            history.values, step = state["history"], state["step"]
            del state["agent"]  # it is as large as the agent itself
        driver = self.make_driver(stage, agent, generators, history)
        if state is not None and isinstance(driver, OnlineDriver):
            driver.load_state_dict(state.pop("online"))
        self.last_good = agent.state_dict()
        bar = tqdm(
            desc=stage,
            total=last - offset,
            initial=step - offset,
            unit="update" if stage != "online" else "step",
            disable=not self.bars,
            file=sys.stderr,
        )

        def go_on(count: int) -> bool:
            bar.update(count)
            return not self.stop

        def save() -> None:
            self.save(stage, agent, generators, history, step)

        # A run that was stopped during an evaluation begins with it.
        if offset < step < last and self.evaluated < step and schedule.evaluates(step - offset):
            self.evaluate_or_stop(stage, agent, step, save)
        clock, rows = time.perf_counter(), len(history.values)
        while step < last and len(self.failures) < agent.runs:
            step += driver.run(min(schedule.until_event(step - offset), last - step), go_on)
            progress, done = step - offset, step == last
            logging = progress % schedule.log == 0 or done
            saving = progress % schedule.save == 0 or done
            evaluating = schedule.evaluates(progress) and not done
            if not (logging or saving or evaluating or self.stop):
                continue
            self.check_finite(history, step, updates_per_step)
            seconds = time.perf_counter() - clock
            self.seconds[stage] += seconds
            self.updates[stage] += len(history.values) - rows
            if logging:
                rate = (len(history.values) - rows) / seconds
                self.journal.timing(stage, step, rate, self.seconds[stage])
                self.journal.metrics(stage, step, history, self.failures)
                self.journal.progress(bar, rate)
            if evaluating:
                self.evaluate_or_stop(stage, agent, step, save)
            # Looked at once more: the signal may have come since.
            stopping = bool(self.stop)
            if saving or stopping:
                save()
            if stopping:
                self.leave(step)
            clock, rows = time.perf_counter(), len(history.values)
        bar.close()
        if stage not in self.success or self.evaluated != step:
            self.evaluate_or_stop(stage, agent, step, save)
            save()

    def evaluate_or_stop(
        self, stage: str, agent: Agent, step: int, save: Callable[[], None]
    ) -> None:
        """Evaluate; a signal abandons the evaluation, which the continued run repeats."""
        try:
            with self.stop.at_once():
                self.success[stage] = self.evaluate(stage, agent, step)
        except Stopped:
            save()
            self.leave(step)

    def leave(self, step: int) -> None:
        """Raise `Stopped`; the checkpoint is written."""
        raise Stopped(
            f"stopped by {self.stop.signal} after step {step}; continue with --resume --run-dir "
            f"{self.folder.path}"
        )

    def check_finite(self, history: History, step: int, updates_per_step: int) -> None:
        """Stop the runs whose metrics left the finite numbers since the last check."""
        new = history.collect()
        if len(new) == 0:
            return
        for run, seed in enumerate(self.config.seeds):
            if run in self.failures:
                continue
            bad = (~new[:, run].isfinite()).nonzero()
            if len(bad) == 0:
                continue
            row, metric = bad[0].tolist()
            when = step - (len(new) - 1 - row) // updates_per_step
            self.failures[run] = f"{history.names[metric]} is not finite at step {when}"
            self.say(
                f"error: seed {seed}: {self.failures[run]}; this run stops and keeps its last "
                "good checkpoint. Try a smaller --lr or a smaller --inv-temp (QAM)",
                error=True,
            )

    def evaluate(self, stage: str, agent: Agent, step: int) -> list[float]:
        """Play the evaluation episodes with every live run; return success by run."""
        config, success = self.config, []
        with self.timed("evaluate"):
            if self.evaluator is None:
                envs = min(config.eval_envs, config.eval_episodes)
                self.evaluator = Evaluator(config.env_name, envs, config.eval_workers)
            for run, seed in enumerate(config.seeds):
                if run in self.failures:
                    success.append(math.nan)
                    continue
                results = self.evaluator.evaluate(agent, run, config.eval_episodes, EVALUATION_SEED)
                success.append(self.journal.evaluation(stage, step, seed, results))
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
        """Write a checkpoint; a run that diverged keeps the weights of its last good one.

        A disk that is full is reported; the checkpoint before stays and the run goes on.
        """
        state = agent.state_dict()
        for run in self.failures:
            for name, tensor in state.items():
                tensor[run] = self.last_good[name][run]
        self.last_good = state
        if self.driver is not None:
            self.online_seconds = dict(self.driver.seconds)
        # A checkpoint counts on the rows before it.
        try:
            if not self.journal.flush():
                raise RunError(f"cannot write the checkpoint of step {step} before its log rows")
            checkpoint.save(
                self.folder.checkpoint(step),
                {
                    "stage": stage,
                    "step": step,
                    "ends": self.config.stage_ends,
                    "data": self.data,
                    "sequences": self.config.sequences,
                    "agent": {name: tensor.cpu() for name, tensor in state.items()},
                    "shapes": checkpoint.plain_shapes(agent.online.shapes),
                    "generators": [generator.get_state() for generator in generators],
                    "history": history.values,
                    "success": self.success,
                    "evaluated": self.evaluated,
                    "seconds": self.seconds,
                    "updates": self.updates,
                    "failures": self.failures,
                    "online": None if self.driver is None else self.driver.state_dict(),
                },
            )
        except RunError as error:
            if self.stop:
                raise
            self.say(f"warning: {error}; the run goes on", error=True)
            self.unsaved = True
            return
        self.unsaved = False
        ends = self.config.stage_ends.values()
        protected = {self.folder.checkpoint(end) for end in ends}
        checkpoint.prune(self.folder.checkpoints, self.config.keep, protected)

    def load_newest(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint and drop the log rows after it.

        Raises:
            UsageError: no checkpoint is whole, or the flags move the end of a stage before it.
        """
        folder = self.folder.checkpoints
        state, name = checkpoint.load_newest(folder, lambda text: self.say(text, error=True))
        step = -1
        if state is not None:
            step, self.evaluated = state["step"], state["evaluated"]
            self.success, self.failures = state["success"], state["failures"]
            self.seconds, self.updates = state["seconds"], state["updates"]
            if state["online"] is not None:
                self.online_seconds = state["online"]["seconds"]
            checkpoint.check_continuation(state, self.config.stage_ends, self.data)
            for path in folder.glob("*.pt"):
                if path.name > name:
                    path.rename(path.with_suffix(".damaged"))
        for path in folder.glob("*.partial"):
            path.unlink()
        write_json(self.folder.path / "config.json", self.asked.to_dict())
        self.folder.truncate(step, self.evaluated)
        self.say(f"resuming from {name or 'the start'}")
        return state

    def finish(self) -> int:
        """Write the summary and the curves, print the table, return the exit status."""
        summary = summarise(
            self.config, running_backend(self.config), self.success, self.seconds, self.updates,
            self.online_seconds, self.failures,
        )  # fmt: skip
        write_json(self.folder.path / "summary.json", summary)
        write_overview(self.folder.path, self.folder.path / "curves.png")
        self.say(format_table(self.config, summary))
        self.say(f"run folder: {self.folder.path}")
        return 1 if self.failures else 0

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
