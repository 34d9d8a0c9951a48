"""Plays episodes in several environments at once, in this process or in workers."""

from __future__ import annotations

import time
from collections import Counter, deque
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trqam_fast.data.tasks import find_task
from trqam_fast.errors import RunError
from trqam_fast.evaluation.episodes import EpisodeResult, Order, Request, Start
from trqam_fast.evaluation.pool import Here, Worker
from trqam_fast.streams import say

if TYPE_CHECKING:
    from trqam_fast.agents import Agent

REPEATS = 3
GROUPS = 2
PATIENCE = 60.0
"""Seconds without an end of an episode after which an evaluation says so, once."""


class NotFinite(RunError):
    """A policy acted with numbers that are not finite, with which no environment is stepped."""


class _Group:
    """Slots of one player that get their orders, and reply, in one message."""

    def __init__(self, player: Here | Worker, slots: list[int]) -> None:
        self.player, self.slots = player, slots
        self.orders: dict[int, Order] = {}
        self.playing: dict[int, Start] = {}
        self.sent: list[int] = []

    def start(self, slot: int, order: Start) -> None:
        """Begin an episode with the next message."""
        self.playing[slot] = self.orders[slot] = order

    def send(self) -> None:
        """Send the orders."""
        self.sent = list(self.orders)
        self.player.send(list(self.orders.items()))
        self.orders = {}


class Evaluator:
    """Plays episodes in several environments at once, with batched policy calls.

    Environments and workers are kept between evaluations. Episode i of an evaluation depends on
    the policy, the evaluation's seed and i alone, bit for bit: not on how many environments play,
    nor where.
    """

    def __init__(
        self,
        env_name: str,
        envs: int,
        workers: int = 0,
        *,
        env_options: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Prepare; environments and processes are made when an episode needs them.

        Args:
            env_name: Task; see `find_task`.
            envs: Environments that play at the same time.
            workers: Processes that share the environments; 0 plays in this process.
            env_options: Further arguments of `make_env`.
            environment: Environment variables of the workers.

        Raises:
            UsageError: there is no such task.
        """
        self.env_name, self.told = env_name, False
        env_id, options = find_task(env_name).env_id, env_options or {}
        self.envs = envs
        self.players: list[Here | Worker] = [Here(env_id, options)]
        if workers > 0:
            self.players = [Worker(env_id, options, environment) for _ in range(min(workers, envs))]

    def close(self) -> None:
        """Close all environments and end all workers."""
        for player in self.players:
            player.close()

    def evaluate(
        self, agent: Agent, run: int, episodes: int, seed: int, *, video_dir: Path | None = None
    ) -> list[EpisodeResult]:
        """Play `episodes` episodes with the policy of one run.

        Args:
            agent: The agent; its acting field is used.
            run: Index of the run in [0, S).
            episodes: Number of episodes.
            seed: Seed of the episodes' environments and of the policy's noise.
            video_dir: Folder for a video of every episode; needs environments that render.

        Returns:
            One result per episode, in order.

        Raises:
            NotFinite: an action of the policy is not finite.
            RunError: an environment failed in a worker, or the worker of an episode died more
                than three times.
        """
        # Here and not above, because the workers import this package without torch.
        from trqam_fast.evaluation.policy import choose_chunks, single_thread

        shape = (agent.candidates, agent.noise_dim)
        waiting = deque(
            Start(
                episode,
                seed,
                shape,
                None if video_dir is None else str(video_dir / f"episode_{episode:03d}.mp4"),
            )
            for episode in range(episodes)
        )
        groups = self._groups(min(self.envs, episodes))
        in_flight: dict[Here | Worker, deque[_Group]] = {player: deque() for player in self.players}
        results: dict[int, EpisodeResult] = {}
        deaths: Counter[int] = Counter()
        began = time.monotonic()
        try:
            with single_thread():
                for group in groups:
                    for slot in group.slots:
                        group.start(slot, waiting.popleft())
                    self._send(group, in_flight)
                while len(results) < episodes:
                    if not (results or self.told) and time.monotonic() - began > PATIENCE:
                        self._tell()
                    answered, asking = [], []
                    for player in self._ready(in_flight):
                        replies = player.receive()
                        if replies is None:
                            assert isinstance(player, Worker)  # as processes alone die
                            in_flight[player].clear()
                            own = [group for group in groups if group.player is player]
                            answered += self._restart(player, own, deaths)
                            continue
                        group = in_flight[player].popleft()
                        answered.append(group)
                        for slot, reply in zip(group.sent, replies, strict=True):
                            if isinstance(reply, Request):
                                asking.append((group, slot, reply))
                                continue
                            results[group.playing.pop(slot).episode] = reply
                            if waiting:
                                group.start(slot, waiting.popleft())
                    chunks = choose_chunks(agent, run, [request for *_, request in asking])
                    if not all(np.isfinite(chunk).all() for chunk in chunks):
                        raise NotFinite("its actions are not finite")
                    for (group, slot, _), chunk in zip(asking, chunks, strict=True):
                        group.orders[slot] = chunk
                    for group in answered:
                        self._send(group, in_flight)
        except BaseException:
            self.close()  # What is under way would answer the next evaluation.
            raise
        return [results[episode] for episode in range(episodes)]

    def _tell(self) -> None:
        """Say that no episode has ended yet, which may never happen."""
        self.told = True
        say(
            f"note: no episode of {self.env_name} has ended in the first {PATIENCE:.0f} s of an "
            "evaluation; if its episodes have no limit, stop, and train with --max-episode-steps",
            "stderr",
        )

    def _groups(self, envs: int) -> list[_Group]:
        """Share `envs` environments out among the players.

        A worker has two groups: it plays one while the policy decides for the other. In this
        process nothing overlaps, so one group makes the largest batches.
        """
        count = len(self.players)
        parts = GROUPS if isinstance(self.players[0], Worker) else 1
        groups = [
            _Group(player, list(range(index + count * part, envs, count * parts)))
            for part in range(parts)
            for index, player in enumerate(self.players)
        ]
        return [group for group in groups if group.slots]

    @staticmethod
    def _send(group: _Group, in_flight: dict[Here | Worker, deque[_Group]]) -> None:
        """Send a group's orders, if its slots have anything to do."""
        if group.orders:
            in_flight[group.player].append(group)
            group.send()

    @staticmethod
    def _ready(in_flight: dict[Here | Worker, deque[_Group]]) -> list[Here | Worker]:
        """Wait for players that have replied or died."""
        busy = [player for player, groups in in_flight.items() if groups]
        workers = [player for player in busy if isinstance(player, Worker)]
        if not workers:
            return busy
        answering = wait([worker.connection for worker in workers])
        return [worker for worker in workers if worker.connection in answering]

    def _restart(self, worker: Worker, groups: list[_Group], deaths: Counter[int]) -> list[_Group]:
        """Give a dead worker's episodes, all of them lost, to a new process.

        Raises:
            RunError: one of them has been repeated three times.
        """
        assert worker.process is not None  # as it had orders
        for group in groups:
            for slot, order in group.playing.items():
                deaths[order.episode] += 1
                if deaths[order.episode] > REPEATS:
                    raise RunError(
                        f"the worker playing episode {order.episode} of {self.env_name} died "
                        f"{REPEATS + 1} times (last exit status {worker.process.wait()}); play "
                        "with fewer workers and environments, or without workers to see why"
                    )
                group.start(slot, order)
        worker.close()
        return groups
