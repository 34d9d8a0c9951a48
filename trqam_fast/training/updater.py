"""Runs updates: one after another, or on a GPU as a captured graph of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch

from trqam_fast.agents import Agent
from trqam_fast.agents.base import Noise
from trqam_fast.agents.branches import Branches
from trqam_fast.data.batch import Batch
from trqam_fast.data.dataset import Transitions
from trqam_fast.errors import RunError
from trqam_fast.randomness import Randomness
from trqam_fast.training.history import History

WARMUP = 3
"""Updates run eagerly before the capture: they compile kernels and allocate Adam's state."""

UPDATES_PER_REPLAY = 10


GoOn = Callable[[int], bool]


class Source(Protocol):
    """Where batches come from: a dataset or a replay buffer.

    Attributes:
        capturable: Whether a captured graph may sample: on the device alone, the same every time.
    """

    capturable: bool

    def sample(
        self, randomness: Randomness, batch_size: int, horizon: int, discount: float
    ) -> Batch:
        """Sample one batch for every run."""
        ...


class Updater:
    """Samples a batch and its noise, updates the agent, records the metrics.

    On a GPU the same code is captured once and replayed, `UPDATES_PER_REPLAY` updates at a time. A
    source that cannot be captured, as it grows or lies on the host, is sampled before every replay
    of a single update, into the memory that the graph reads. The counter of the random numbers lies
    on the device, so the numbers drawn, and everything else, are those of eager updates. Nothing is
    read back to the host.

    Args:
        agent: What is updated.
        source: Where batches come from.
        randomness: Where random numbers come from.
        history: Where metrics go.
        graph: Capture updates, if the agent is on a GPU.
        streams: Let the branches of an update run side by side, likewise.
    """

    def __init__(
        self,
        agent: Agent,
        source: Source,
        randomness: Randomness,
        history: History,
        *,
        graph: bool,
        streams: bool = True,
    ) -> None:
        self.agent, self.source = agent, source
        self.randomness, self.history = randomness, history
        on_gpu = agent.device.type == "cuda"
        self.graph = graph and on_gpu
        agent.branches = Branches(agent.device if streams and on_gpu else None)
        # Its launches go before those of other branches where both have work.
        self.stream = torch.cuda.Stream(agent.device, priority=-1) if on_gpu else None
        self.batch: Batch | None = None
        self.done = 0
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def run(self, updates: int, go_on: GoOn = lambda count: True) -> int:
        """Do `updates` updates, or fewer when `go_on` says no; return how many.

        `go_on` is called with the number of updates done since the last call.
        """
        done = 0
        while done < updates:
            count = self.step(updates - done)
            self.history.advance(count)
            self.done += count
            done += count
            if not go_on(count):
                break
        return done

    def step(self, at_most: int) -> int:
        """Do some updates, no more than `at_most`; return how many."""
        if not self.graph:
            self.update()
            return 1
        if self.done < WARMUP:
            self.warm_up()
            return 1
        together = self.source.capturable and at_most >= UPDATES_PER_REPLAY
        count = UPDATES_PER_REPLAY if together else 1
        if not self.source.capturable:
            self.load_batch()
        if count not in self.graphs:
            self.graphs[count] = self.capture(count)
        self.graphs[count].replay()
        return count

    def sample(self) -> Batch:
        """Sample the batch of an update."""
        config = self.agent.config
        return self.source.sample(
            self.randomness, config.batch_size, config.horizon_length, self.agent.discount
        )

    def load_batch(self) -> None:
        """Sample the batch of the next replay to where its graph reads it."""
        batch = self.sample()
        if self.batch is None:
            self.batch = Batch(*map(torch.clone, batch))
        else:
            torch._foreach_copy_(list(self.batch), list(batch))

    def draw(self) -> tuple[Batch, Noise]:
        """Draw what an update needs, by one call for a data set; its batch may lie ready."""
        if self.batch is None and self.draws_alike:
            return self.draw_together(cast(Transitions, self.source))
        batch = self.sample() if self.batch is None else self.batch
        return batch, self.agent.draw_noise(self.randomness)

    @property
    def draws_alike(self) -> bool:
        """Whether batch and noise are drawn as `draw_together` does, by nobody's own way."""
        sampled = getattr(type(self.source), "sample", None)
        drawn = type(self.agent).draw_noise
        return sampled is Transitions.sample and drawn is Agent.draw_noise

    def draw_together(self, dataset: Transitions) -> tuple[Batch, Noise]:
        """Draw what `Transitions.sample` and then `Agent.draw_noise` would."""
        agent, horizon = self.agent, self.agent.config.horizon_length
        drawn = self.randomness.draw_two(
            integers=agent.config.batch_size, high=dataset.start_count(horizon),
            **agent.noise_counts(),
        )  # fmt: skip
        backend = self.randomness.backend
        batch = dataset.gather(drawn.integers, horizon, agent.discount, backend)
        return batch, agent.noise_of(drawn)

    def update(self, count: int = 1) -> None:
        """Do some updates, beside each of which what the next one needs is drawn."""
        branches, drawn = self.agent.branches, self.draw()
        for left in reversed(range(count)):
            batch, noise = drawn
            if left > 0:
                with branches.later("sample"):
                    drawn = self.draw()
            terms = self.agent.update(batch, noise)
            branches.keep(terms.metrics)
            with branches.later("log"):
                self.history.record(terms.metrics, self.agent.small_ops)

    def warm_up(self) -> None:
        """Do one update on another stream, as capture requires of what precedes it."""
        assert self.stream is not None  # as graphs are of a GPU alone
        current = torch.cuda.current_stream(self.agent.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream), self.agent.branches.one_after_another():
            self.update()
        current.wait_stream(self.stream)

    def capture(self, count: int) -> torch.cuda.CUDAGraph:
        """Capture `count` updates without executing them.

        Raises:
            RunError: something in the update cannot be captured.
        """
        pools = [graph.pool() for graph in self.graphs.values()]
        current = torch.cuda.current_stream(self.agent.device)
        with torch.cuda.device(self.agent.device):
            graph = torch.cuda.CUDAGraph()
            try:
                pool = pools[0] if pools else None
                # Online, another thread steps the simulator, which may be on the GPU too.
                with torch.cuda.graph(
                    graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"
                ):
                    with self.agent.branches.one_after_another():
                        self.update(count)
            except RuntimeError as error:
                # What failed first is the cause, the end of the capture fails for it; in full, as
                # the first line rarely names the operation.
                cause = error.__context__ or error
                raise RunError(
                    f"the update cannot be captured as a graph; run with --no-graph ({cause})"
                ) from error
            finally:
                torch.cuda.set_stream(current)  # A capture that fails at its end leaves its own.
        return graph
