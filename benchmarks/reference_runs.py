"""Runs of the authors' JAX code, each kept in a folder, from which it goes on."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning_curves import AUTHORS, Curve, evaluated, events
from benchmarks.records import commit
from benchmarks.reference import Reference
from trqam_fast.agents import algorithm
from trqam_fast.data.dataset import Transitions
from trqam_fast.errors import UsageError
from trqam_fast.evaluation import Evaluator
from trqam_fast.files import locked, write_json
from trqam_fast.runs.values import load_json
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.loop import EVALUATION_SEED
from trqam_fast.training.presets import flag_of, value_in_words

WITHOUT_USE = ("kl_budget_per_dim", "kl_budget_online")
"""Settings that say nothing of an offline agent: one sets another setting, one is for later."""


def check_settings(config: TrainConfig, theirs: list[str]) -> None:
    """Raise `UsageError` for what the authors' code cannot do, or not here.

    Args:
        config: Of a run.
        theirs: Names in the authors' configuration of its algorithm.
    """
    neutral = {"online_steps": 0, "pretrained": None, "best_of_n": 1}
    for entry in fields(config.agent):
        if entry.name not in (*theirs, *WITHOUT_USE) and entry.default is not MISSING:
            neutral[entry.name] = entry.default
    values = vars(config) | vars(config.agent)
    for name, value in neutral.items():
        if values[name] != value:
            raise UsageError(
                f"{flag_of(name)} is {value_in_words(values[name])}, which has no counterpart in "
                f"the authors' agents or in this comparison; use {value_in_words(value)}"
            )


class AuthorsPolicy:
    """The policy of the authors' agent, with what an evaluator asks of an agent."""

    candidates = 1
    policy_graphs = None
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, reference: Reference, act_dim: int, chunk_length: int) -> None:
        self.reference, self.act_dim = reference, act_dim
        self.noise_dim = act_dim * chunk_length

    def act(self, observations: Tensor, noise: Tensor, run: int) -> Tensor:
        """Return actions `[1, n, H A]` for observations `[1, n, O]`, noise `[1, n, 1, H A]`."""
        answer = self.reference.ask(
            do="act", observations=observations[0].tolist(), noise=noise[0, :, 0].tolist()
        )
        return torch.tensor(answer["actions"]).unsqueeze(0)


class AuthorsRuns:
    """Trains the authors' agents on one dataset, one seed at a time.

    Args:
        checkout: Of the authors' repository.
        python: Interpreter that has JAX.
        out: Folder of the runs.
        config: What the runs have in common: the task and its evaluation.
        data: The transitions; they are written to `out` for the other interpreter.
    """

    def __init__(
        self, checkout: Path, python: Path, out: Path, config: TrainConfig, data: Transitions
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.checkout, self.out = checkout, out
        self.reference = Reference(checkout, python, "cpu")
        self.versions = self.reference.ask(do="describe") | {"commit": commit(checkout)}
        self.evaluator = Evaluator(
            config.env_name, min(config.eval_envs, config.eval_episodes), config.eval_workers,
            env_options=config.env_options,
        )  # fmt: skip
        self.data, self.act_dim = data.fingerprint(), data.act_dim
        self.transitions = out.resolve() / "transitions.npz"
        np.savez(self.transitions, **data.tail(len(data)))

    def close(self) -> None:
        """End the authors' process and the episodes."""
        self.evaluator.close()
        self.reference.close()

    def check(self, config: TrainConfig) -> None:
        """Raise `UsageError` unless the authors' code can do such a run."""
        check_settings(config, self.reference.ask(do="settings", algo=config.algo)["names"])

    def train(self, config: TrainConfig) -> Curve:
        """Train the one seed of a configuration, or what is left of it.

        Raises:
            UsageError: its folder holds a run with other settings.
        """
        (seed,) = config.seeds
        folder = self.out / f"{config.algo}-seed_{seed}"
        folder.mkdir(exist_ok=True)
        with locked(folder / "run.lock"):
            return Training(self, folder, config).run()


class Training:
    """One run in its folder, which is held."""

    def __init__(self, runs: AuthorsRuns, folder: Path, config: TrainConfig) -> None:
        self.runs, self.ask, self.config = runs, runs.reference.ask, config
        self.folder = folder.resolve()
        self.settings = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(config.agent).items()
        }
        self.policy = AuthorsPolicy(runs.reference, runs.act_dim, config.agent.chunk_length)
        self.curve, self.done = self.begun()

    @property
    def identity(self) -> dict[str, Any]:
        """What may not change when the run goes on."""
        names = ("bc_steps", "log_interval", "eval_interval", "eval_episodes")
        values = {name: getattr(self.config, name) for name in names}
        return self.settings | values | {"data": self.runs.data}

    def begun(self) -> tuple[Curve, int]:
        """Return what the run has come to, and after how many updates."""
        path = self.folder / "curve.json"
        if not path.exists():
            return Curve(versions=self.runs.versions), 0
        values = load_json(path)
        before, done = values.pop("settings"), values.pop("done")
        changed = [name for name, value in self.identity.items() if before.get(name) != value]
        if changed:
            raise UsageError(
                f"{self.folder} holds a run with another {', '.join(changed)}; name another --out"
            )
        for name in ("success", "rows"):
            values[name] = {int(step): value for step, value in values[name].items()}
        return Curve(**values), done

    def run(self) -> Curve:
        """Do what is left."""
        config, updates = self.config, self.config.offline_steps
        if self.done >= updates or self.curve.failure is not None:
            return self.curve
        (seed,) = config.seeds
        data = str(self.runs.transitions)
        self.ask(do="learn", algo=config.algo, seed=seed, settings=self.settings, data=data)
        if self.done > 0:
            self.ask(do="load", path=str(self.state))
        else:
            self.ask(do="start", cloning_updates=config.bc_steps)
            self.evaluate()
        due = evaluated(config.eval_interval, updates)
        for step in events(config, updates):
            if step > self.done and self.curve.failure is None:
                self.advance(step)
                if step in due or self.curve.failure is not None:
                    self.keep()
        return self.curve

    def advance(self, step: int) -> None:
        """Train up to a step and note what was reported."""
        found = self.ask(do="train", updates=step - self.done)["means"]
        if np.isfinite(list(found.values())).all():
            names = algorithm(self.config.algo).recorded.infos
            self.curve.rows[step] = {names[k]: value for k, value in found.items() if k in names}
        else:
            self.curve.failure = f"not finite between updates {self.done} and {step}"
        self.done = step

    def evaluate(self) -> None:
        """Play the evaluation's episodes."""
        episodes = self.config.eval_episodes
        found = self.runs.evaluator.evaluate(self.policy, 0, episodes, EVALUATION_SEED)
        success = float(np.mean([episode.success for episode in found]))
        self.curve.success[self.done] = success
        print(
            f"{AUTHORS}, {self.config.algo}, seed {self.config.seeds[0]}: success {success:.0%} "
            f"after {self.done:,} updates",
            flush=True,
        )

    def keep(self) -> None:
        """Evaluate unless it failed, and write agent and curve."""
        if self.curve.failure is None:
            self.evaluate()
            self.ask(do="save", path=str(self.state))
        values = {"settings": self.identity, "done": self.done} | vars(self.curve)
        write_json(self.folder / "curve.json", values)
        for path in self.folder.glob("state_*.npz"):
            if path != self.state:
                path.unlink()

    @property
    def state(self) -> Path:
        """File with the agent after the updates that are done."""
        return self.folder / f"state_{self.done}.npz"
