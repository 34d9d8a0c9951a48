"""The stages of a run: pretraining, offline and online fine-tuning, their evaluations."""

from __future__ import annotations

import functools
import math
import sys
import time
from typing import Any

from torch import Tensor
from tqdm import tqdm

from trqam_fast.agents import ALGORITHMS, Agent, algorithm
from trqam_fast.agents.trial import try_out
from trqam_fast.damage import reading
from trqam_fast.data.dataset import Transitions
from trqam_fast.errors import RunError, Stopped
from trqam_fast.evaluation import Evaluator, NotFinite
from trqam_fast.files import PARTIAL, write_json
from trqam_fast.runs import checkpoint
from trqam_fast.runs.folder import RunFolder
from trqam_fast.training import start
from trqam_fast.training.backend import make_agent
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.estimate import estimate
from trqam_fast.training.history import History
from trqam_fast.training.intervals import Intervals
from trqam_fast.training.ledger import Ledger
from trqam_fast.training.logger import Logger
from trqam_fast.training.online import OnlineDriver, make_online_driver
from trqam_fast.training.seeding import make_randomness
from trqam_fast.training.stage import Stage
from trqam_fast.training.stopping import StopRequest
from trqam_fast.training.updater import Updater

# Evaluations use seeds of their own, the same for every run, so that runs meet the same episodes.
EVALUATION_SEED = 1_000_000


class Trainer:
    """Trains S seeds in one folder.

    Args:
        config: What to do, ``auto`` settled.
        asked: The same as it was asked for, which config.json keeps.
        dataset: The task's transitions.
        folder: The run's folder, held by this process.
        logger: The run's logs.
        stop: Asks the run to stop.
        ledger: The run's account so far.
        pretrained: Checkpoint that a new run starts from, None for none.
    """

    def __init__(
        self,
        config: TrainConfig,
        asked: TrainConfig,
        dataset: Transitions,
        folder: RunFolder,
        logger: Logger,
        stop: StopRequest,
        ledger: Ledger,
        pretrained: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.asked, self.dataset, self.folder = config, asked, dataset, folder
        self.logger, self.stop, self.ledger = logger, stop, ledger
        self.pretrained = pretrained
        self.fingerprint = dataset.fingerprint()
        self.unsaved = False
        self.evaluator: Evaluator | None = None
        self.driver: OnlineDriver | None = None

    def run(self) -> None:
        """Run all stages, or what is left of them.

        Raises:
            RunError: the end of the run could not be saved.
            Stopped: the run was asked to stop; its checkpoint is written.
        """
        try:
            state = self.load_newest() if self.config.resume != "no" else None
            if state is None:
                self.try_algorithm()
            self.say_estimate(0 if state is None else state["step"])
            self.run_stages(state)
        finally:
            for part in (self.driver, self.evaluator):
                if part is not None:
                    part.close()
            # The driver's log is this trainer's: a cycle would keep the transitions of both.
            self.driver = self.evaluator = None
        if self.unsaved:
            way_on = f"continue with --resume --run-dir {self.folder.path}"
            if checkpoint.newest(self.folder.checkpoints) is None:
                way_on = "start again with --overwrite"
            raise RunError(f"the end of the run could not be saved; make room and {way_on}")

    def run_stages(self, state: dict[str, Any] | None) -> None:
        """Run what is left of the stages after checkpoint `state`."""
        config = self.config
        current = "pretrain" if state is None else state["stage"]
        pretrained = self.pretrained if state is None else None
        field = None
        if current == "pretrain" and config.bc_steps > 0:
            field, state = self.pretrain(state, pretrained), None
        if not algorithm(config.algo).fine_tunes:
            return
        agent = self.make_agent(config.algo)
        if field is not None:
            agent.load_pretrained(field)
        elif pretrained is not None:
            start.start_from(agent, pretrained)
            self.evaluate_start(agent, pretrained)
        if current != "online" and config.offline_steps > 0:
            self.fine_tune(agent, state)
            state = None
        if config.online_steps > 0:
            agent.begin_stage("online")
            self.train(self.make_stage("online", agent, state))

    def evaluate_start(self, agent: Agent, pretrained: dict[str, Any]) -> None:
        """Evaluate what a run starts from: where pretraining ended, as that stage itself does."""
        if pretrained["stage"] == "pretrain":
            agent = self.make_agent("bc")
            start.start_from(agent, pretrained)
        del pretrained["agent"]  # it is as large as the agent itself
        self.evaluate("pretrain", agent, 0)

    def pretrain(self, state: dict[str, Any] | None, pretrained: dict[str, Any] | None) -> Tensor:
        """Clone the policy, from a checkpoint on; return its packed weights, `[S, p]`.

        Those of a run that diverged, which goes on without being reported, are its last good ones.
        """
        agent = self.make_agent("bc")
        if pretrained is not None:
            start.start_from(agent, pretrained)
            del pretrained["agent"]
        stage = self.make_stage("pretrain", agent, state)
        self.train(stage)
        return stage.last_good["online"]

    def fine_tune(self, agent: Agent, state: dict[str, Any] | None) -> None:
        """Fine-tune an agent offline; its graphs and copies are gone when the next stage begins."""
        stage = self.make_stage("offline", agent, state)
        self.train(stage)
        agent.load_state_dict(stage.last_good)

    def try_algorithm(self) -> None:
        """Try an algorithm of one's own before pretraining, with agents that are thrown away.

        Raises:
            UsageError: it is not what it must be.
        """
        algo = self.config.algo
        if algo in ALGORITHMS:
            return
        agent = self.make_agent(algo)
        randomness = make_randomness(self.config.seeds, "offline", agent.device, agent.backend)
        updater = Updater(agent, self.dataset, randomness, History(2), graph=False)
        with self.stop.at_once():
            notes = try_out(agent, lambda: self.make_agent(algo), updater.draw, updater.update)
        for note in notes:
            self.logger.say(f"note: {note}")

    def say_estimate(self, step: int) -> None:
        """Print how long the updates after `step` take; a GPU's captured updates are not timed."""
        if self.config.device == "cpu" and not self.stop:
            with self.stop.at_once():
                text = estimate(self.config, step, self.make_agent, self.dataset)
            if text:
                self.logger.say(text)

    def make_agent(self, algo: str) -> Agent:
        """Build an agent for the task's sizes."""
        return make_agent(self.config, algo, self.dataset.obs_dim, self.dataset.act_dim)

    def make_stage(self, name: str, agent: Agent, state: dict[str, Any] | None) -> Stage:
        """Build a stage at its beginning, or where a checkpoint of it goes on."""
        config, online = self.config, name == "online"
        ends = config.stage_ends
        begin = {"pretrain": 0, "offline": ends["pretrain"], "online": ends["offline"]}[name]
        updates_per_step = config.utd_ratio if online else 1
        steps = min(config.log_interval, ends[name] - begin)
        history = History(steps * updates_per_step)
        randomness = make_randomness(config.seeds, name, agent.device, agent.backend)
        step = begin if state is None else state["step"]
        if state is not None:
            path = self.folder.checkpoint(step)
            start.restore(agent, state, path)
            with reading(path, *start.MISFIT):
                randomness.seek(state["drawn"])
                history.restore(state["history"], agent.runs, state.get("metrics"))
            del state["agent"]  # it is as large as the agent itself
        driver: Updater | OnlineDriver
        if online:
            driver = self.driver = make_online_driver(
                config, agent, self.dataset, randomness, history,
                functools.partial(self.logger.episode, failures=self.ledger.failures),
            )  # fmt: skip
            if state is not None:
                with reading(path, *start.MISFIT):
                    driver.load_state_dict(state.pop("online"))
        else:
            driver = Updater(
                agent, self.dataset, randomness, history, graph=config.graph,
                streams=config.streams,
            )  # fmt: skip
        return Stage(
            name, agent, driver, randomness, history, Intervals.of(config, name), begin,
            ends[name], step, updates_per_step,
        )  # fmt: skip

    def train(self, stage: Stage) -> None:
        """Train a stage to its end.

        Nothing is read back from the device but at log rows, evaluations and checkpoints.
        """
        bar = tqdm(
            desc=stage.name,
            total=stage.end - stage.begin,
            initial=stage.step - stage.begin,
            unit="step" if stage.name == "online" else "update",
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
        )
        with bar:
            self.train_steps(stage, bar)
        if stage.name not in self.ledger.success or self.ledger.evaluated != stage.step:
            self.evaluate_or_stop(stage)
            self.save(stage)
            if self.stop and stage.end < self.config.end:
                raise self.stop.stopped(f"after step {stage.step}")

    def train_steps(self, stage: Stage, bar: tqdm) -> None:
        """Do the steps of a stage, its log rows, evaluations and checkpoints on the way."""
        ledger, intervals = self.ledger, stage.intervals

        def go_on(count: int) -> bool:
            bar.update(count)
            return not self.stop

        # A run that was stopped during an evaluation begins with it.
        interrupted = ledger.evaluated < stage.step and stage.begin < stage.step < stage.end
        if interrupted and intervals.evaluates(stage.step - stage.begin):
            self.evaluate_or_stop(stage)
        clock, rows = time.perf_counter(), len(stage.history.values)
        while not stage.done and len(ledger.failures) < stage.agent.runs:
            stage.advance(go_on)
            logging, saving = stage.due(intervals.log), stage.due(intervals.save)
            evaluating = intervals.evaluates(stage.step - stage.begin) and not stage.done
            if not (logging or saving or evaluating or self.stop):
                continue
            self.check_finite(stage)
            seconds, updates = time.perf_counter() - clock, len(stage.history.values) - rows
            ledger.seconds[stage.name] += seconds
            ledger.updates[stage.name] += updates
            if logging:
                rate = updates / seconds
                self.logger.timing(stage.name, stage.step, rate, ledger.seconds[stage.name])
                if stage.name == "offline":
                    self.logger.first_updates(
                        stage.begin, stage.step, stage.history, ledger.failures
                    )
                self.logger.metrics(stage.name, stage.step, stage.history, ledger.failures)
                self.logger.progress(bar, rate)
            if evaluating:
                self.evaluate_or_stop(stage)
            # Looked at once more: the signal may have come since.
            stopping = bool(self.stop)
            if saving or stopping:
                self.save(stage)
            if stopping:
                raise self.stop.stopped(f"after step {stage.step}")
            clock, rows = time.perf_counter(), len(stage.history.values)

    def evaluate_or_stop(self, stage: Stage) -> None:
        """Evaluate; a signal abandons the evaluation, which the continued run repeats."""
        try:
            self.evaluate(stage.name, stage.agent, stage.step)
        except Stopped:
            self.save(stage)
            raise self.stop.stopped(f"after step {stage.step}") from None

    def check_finite(self, stage: Stage) -> None:
        """Stop the runs whose metrics left the finite numbers since the last check."""
        history, failures = stage.history, self.ledger.failures
        new = history.collect()
        if len(new) == 0:
            return
        for run in range(stage.agent.runs):
            if run in failures:
                continue
            bad = (~new[:, run].isfinite()).nonzero()
            if len(bad) == 0:
                continue
            row, metric = bad[0].tolist()
            when = stage.step - (len(new) - 1 - row) // stage.updates_per_step
            self.give_up(run, f"{history.names[metric]} is not finite", when)

    def give_up(self, run: int, what: str, step: int) -> None:
        """Stop a run that diverged, or that started from weights which had."""
        reason = f"{what} at step {step}"
        self.ledger.failures[run] = reason
        kept = "this run stops and keeps its last good checkpoint. Try a smaller --lr"
        if step == 0:
            kept = "this run stops. Name other weights with --pretrained"
        self.logger.say(f"error: seed {self.config.seeds[run]}: {reason}; {kept}", error=True)

    def evaluate(self, stage: str, agent: Agent, step: int) -> None:
        """Play the evaluation episodes with every live run; keep success by run.

        A run whose actions are not finite has diverged, whatever its metrics say.
        """
        config, ledger, success = self.config, self.ledger, [math.nan] * len(self.config.seeds)
        with self.stop.at_once(), ledger.timed("evaluate"):
            if self.evaluator is None:
                envs = min(config.eval_envs, config.eval_episodes)
                self.evaluator = Evaluator(
                    config.env_name, envs, config.eval_workers, env_options=config.env_options
                )
            for run, seed in enumerate(config.seeds):
                if run in ledger.failures:
                    continue
                try:
                    results = self.evaluator.evaluate(
                        agent, run, config.eval_episodes, EVALUATION_SEED
                    )
                except NotFinite as error:
                    self.give_up(run, str(error), step)
                    continue
                success[run] = self.logger.evaluation(stage, step, seed, results)
        ledger.success[stage], ledger.evaluated = success, step
        self.stop.evaluated(stage, step, dict(zip(config.seeds, success, strict=True)))

    def save(self, stage: Stage) -> None:
        """Write a checkpoint; a run that diverged keeps the weights of its last good one.

        A disk that is full is reported; the checkpoint before stays and the run goes on.
        """
        config, ledger = self.config, self.ledger
        if isinstance(stage.driver, OnlineDriver):
            ledger.online_seconds = dict(stage.driver.seconds)
        values = stage.values(ledger.failures) | ledger.values()
        values |= {
            "ends": config.stage_ends, "data": self.fingerprint, "sequences": config.sequences,
        }  # fmt: skip
        try:
            # A checkpoint counts on the rows before it.
            if not self.logger.flush():
                raise RunError(
                    f"cannot write the checkpoint of step {stage.step} before its log rows"
                )
            checkpoint.save(self.folder.checkpoint(stage.step), values)
        except RunError as error:
            if self.stop:
                raise
            self.logger.say(f"warning: {error}; the run goes on", error=True)
            self.unsaved = True
            return
        self.unsaved = False
        protected = {self.folder.checkpoint(end) for end in config.stage_ends.values()}
        checkpoint.prune(self.folder.checkpoints, config.keep, protected)

    def load_newest(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint and drop the log rows after it.

        A run that has more to do has not ended, whatever its folder says so far.

        Raises:
            UsageError: no checkpoint is whole, or the flags move the end of a stage before it.
        """
        folder, ledger = self.folder.checkpoints, self.ledger
        state, name = checkpoint.load_newest(folder, lambda text: self.logger.say(text, error=True))
        step = logged = -1
        if state is None:
            start.check_restart(self.folder)
        else:
            step = logged = state["step"]
            if state["stage"] == "offline":  # updates of its history come with the next log row
                logged -= len(state["history"])
            start.check_continuation(state, self.config.stage_ends, self.fingerprint)
            ledger.restore(state)
            paths = checkpoint.found(folder)
            for path in paths[1 + [path.name for path in paths].index(name) :]:
                path.rename(path.with_suffix(".damaged"))
        for path in folder.glob(f"*{PARTIAL}"):
            path.unlink()
        if step < self.config.end:
            self.folder.reopen()
            for note in start.changes(self.folder, self.asked, max(step, 0)):
                self.logger.say(f"note: {note}", error=True)
        write_json(self.folder.path / "config.json", self.asked.to_dict())
        self.folder.truncate(step, ledger.evaluated, logged)
        self.logger.say(f"resuming from {name or 'the start'}")
        return state
