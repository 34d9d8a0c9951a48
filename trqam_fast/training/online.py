"""Online fine-tuning: S environments, a replay buffer, updates while the simulator steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from trqam_fast.agents import Agent
from trqam_fast.agents.acting import act
from trqam_fast.data.dataset import Transitions
from trqam_fast.data.replay import ReplayBuffer
from trqam_fast.data.tasks import find_task
from trqam_fast.randomness import Randomness
from trqam_fast.simulator.online import OnlineEnvironment, Step
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.history import History
from trqam_fast.training.seeding import make_randomness, stream_seed
from trqam_fast.training.updater import GoOn, Updater

EpisodeEnded = Callable[[int, int, dict[str, float]], None]


class OnlineDriver:
    """Acts and learns in lockstep: one environment step of every run, then its updates.

    An update needs the transition of its own step, a chunk's next action needs no update. So while
    an update runs, the simulator takes the next step in a thread of its own wherever the action is
    known already; only where a chunk has ended does it wait for the updated policy. Numbers do not
    depend on any of this.

    Args:
        agent: S runs.
        buffer: Their replay buffer.
        environments: One for each run.
        randomness: Acting noise, on the CPU: that of a step depends on its number alone.
        updater: Does the updates from `buffer`.
        start_training: Steps before the first update.
        utd_ratio: Updates for each step.
        episode_ended: Called with (steps so far, run, outcome) where an episode ends.
    """

    def __init__(
        self,
        agent: Agent,
        buffer: ReplayBuffer,
        environments: list[OnlineEnvironment],
        randomness: Randomness,
        updater: Updater,
        *,
        start_training: int,
        utd_ratio: int,
        episode_ended: EpisodeEnded,
    ) -> None:
        self.agent, self.buffer, self.environments = agent, buffer, environments
        self.randomness, self.updater = randomness, updater
        self.start_training, self.utd_ratio = start_training, utd_ratio
        self.episode_ended = episode_ended
        self.queues: list[deque[np.ndarray]] = [deque() for _ in environments]
        self.observations = [environment.observation for environment in environments]
        self.seconds = dict.fromkeys(("learning", "acting", "waiting", "simulating"), 0.0)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="simulator")
        self._flying: dict[int, Future[tuple[Step, float]]] = {}

    def run(self, steps: int, go_on: GoOn = lambda count: True) -> int:
        """Do `steps` environment steps and their updates; return how many were done.

        `go_on` is called after each step; when it says no, the step that the simulator has begun
        is finished, its updates included.
        """
        done, going = 0, True
        while done < steps and (going or self._flying):
            self._act()
            self._submit()
            self._collect()
            done += 1
            if going and done < steps:
                self._submit()
            if self.buffer.added > self.start_training:
                start = time.perf_counter()
                self.updater.run(self.utd_ratio)
                self.seconds["learning"] += time.perf_counter() - start
            going = go_on(1) and going
        return done

    def _act(self) -> None:
        """Fill the queues that are empty with one batched policy call."""
        runs = [
            run for run, queue in enumerate(self.queues) if not queue and run not in self._flying
        ]
        if not runs:
            return
        start = time.perf_counter()
        agent, count = self.agent, self.agent.candidates
        self.randomness.seek(self.buffer.added)
        drawn = self.randomness.draw(normals=count * agent.noise_dim, dtype=agent.dtype)
        noise = drawn.normals.view(agent.runs, 1, count, agent.noise_dim)
        observations = torch.as_tensor(
            np.stack(self.observations), dtype=agent.dtype, device=agent.device
        )
        actions = act(agent, observations.unsqueeze(1), noise.to(agent.device))
        chunks = actions[:, 0].cpu().view(agent.runs, -1, agent.act_dim).clamp(-1.0, 1.0)
        for run in runs:
            # A run that diverged goes on with zeros, unreported, so that the others can.
            self.queues[run].extend(np.nan_to_num(chunks[run].float().numpy()))
        self.seconds["acting"] += time.perf_counter() - start

    def _submit(self) -> None:
        """Let the simulator step wherever an action is known and no step is under way."""
        for run, queue in enumerate(self.queues):
            if queue and run not in self._flying:
                step = self._pool.submit(self._timed_step, run, queue.popleft())
                self._flying[run] = step

    def _timed_step(self, run: int, action: np.ndarray) -> tuple[Step, float]:
        start = time.perf_counter()
        step = self.environments[run].step(action)
        return step, time.perf_counter() - start

    def _collect(self) -> None:
        """Wait for the step of every run and add the transitions to the buffer."""
        start = time.perf_counter()
        results = [self._flying[run].result() for run in range(self.agent.runs)]
        self._flying.clear()
        self.seconds["waiting"] += time.perf_counter() - start
        self.seconds["simulating"] += sum(seconds for _, seconds in results)
        steps = [step for step, _ in results]
        names = steps[0].transition
        self.buffer.add({name: np.stack([s.transition[name] for s in steps]) for name in names})
        # Of a new episode where one has ended.
        self.observations = [environment.observation for environment in self.environments]
        for run, step in enumerate(steps):
            if step.episode is not None:
                self.queues[run].clear()
                self.episode_ended(self.buffer.added, run, step.episode)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the stage depends on, between two `run` calls."""
        width = self.agent.act_dim
        return {
            "buffer": self.buffer.state_dict(),
            "environments": [env.state_dict() for env in self.environments],
            "queues": [
                torch.from_numpy(np.asarray(queue, dtype=np.float32).reshape(-1, width).copy())
                for queue in self.queues
            ],
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.buffer.load_state_dict(state["buffer"])
        self.queues = [deque(saved.numpy()) for saved in state["queues"]]
        for run, saved in enumerate(state["environments"]):
            if not self.environments[run].load_state_dict(saved):
                self.queues[run].clear()
                self.buffer.end_trajectory(run)
        self.observations = [environment.observation for environment in self.environments]
        self.seconds = dict(state["seconds"])

    def close(self) -> None:
        """Finish what the simulator is doing and close the environments."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for environment in self.environments:
            environment.close()


def make_online_driver(
    config: TrainConfig,
    agent: Agent,
    dataset: Transitions,
    randomness: Randomness,
    history: History,
    episode_ended: EpisodeEnded,
) -> OnlineDriver:
    """Build the driver of a run's online stage; `randomness` is the updates'."""
    buffer = ReplayBuffer(
        dataset,
        agent.runs,
        config.online_steps,
        config.agent.horizon_length,
        balanced=config.balanced_sampling,
        device=config.device,
    )
    env_id, options = find_task(config.env_name).env_id, config.env_options
    environments = [
        OnlineEnvironment(env_id, stream_seed(seed, "environment"), sparse=config.sparse, **options)
        for seed in config.seeds
    ]
    return OnlineDriver(
        agent,
        buffer,
        environments,
        make_randomness(config.seeds, "acting", "cpu", agent.backend),
        Updater(agent, buffer, randomness, history, graph=config.graph, streams=config.streams),
        start_training=config.start_training,
        utd_ratio=config.utd_ratio,
        episode_ended=episode_ended,
    )
