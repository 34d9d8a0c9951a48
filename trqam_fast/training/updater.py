"""Runs updates: one after another, or on a GPU as a captured graph of several."""

from __future__ import annotations

import torch

from trqam_fast.agents import Agent
from trqam_fast.data.dataset import Dataset
from trqam_fast.errors import RunError
from trqam_fast.training.history import History

WARMUP = 3
"""Updates run eagerly before the capture: they compile kernels and allocate Adam's state."""

UPDATES_PER_REPLAY = 10


class Updater:
    """Samples a batch and its noise, updates the agent, records the metrics.

    On a GPU the same code is captured once and replayed, `UPDATES_PER_REPLAY` updates at a time.
    The generators' states are registered with the graphs, so the numbers drawn, and everything
    else, are those of eager updates. Nothing is read back to the host.
    """

    def __init__(
        self,
        agent: Agent,
        dataset: Dataset,
        generators: list[torch.Generator],
        history: History,
        *,
        graph: bool,
    ) -> None:
        self.agent, self.dataset = agent, dataset
        self.generators, self.history = generators, history
        self.graph = graph and agent.device.type == "cuda"
        self.stream: torch.cuda.Stream | None = None
        self.done = 0
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    @property
    def stride(self) -> int:
        """Updates that are worth asking for at a time."""
        return UPDATES_PER_REPLAY if self.graph else 1

    def run(self, updates: int) -> None:
        """Do `updates` updates."""
        while updates > 0:
            count = self.step(updates)
            self.history.advance(count)
            self.done += count
            updates -= count

    def step(self, at_most: int) -> int:
        """Do some updates, no more than `at_most`; return how many."""
        if not self.graph:
            self.update()
            return 1
        if self.done < WARMUP:
            self.warm_up()
            return 1
        count = UPDATES_PER_REPLAY if at_most >= UPDATES_PER_REPLAY else 1
        if count not in self.graphs:
            self.graphs[count] = self.capture(count)
        self.graphs[count].replay()
        return count

    def update(self) -> None:
        """Do one update."""
        config = self.agent.config
        batch = self.dataset.sample(
            self.generators, config.batch_size, config.horizon_length, config.discount
        )
        terms = self.agent.update(batch, self.agent.draw_noise(self.generators))
        self.history.record(terms.metrics)

    def warm_up(self) -> None:
        """Do one update on another stream, as capture requires of what precedes it."""
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.agent.device)
        current = torch.cuda.current_stream(self.agent.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            self.update()
        current.wait_stream(self.stream)

    def capture(self, count: int) -> torch.cuda.CUDAGraph:
        """Capture `count` updates without executing them.

        Raises:
            RunError: something in the update cannot be captured.
        """
        pools = [graph.pool() for graph in self.graphs.values()]
        # Registration allocates on the current device.
        with torch.cuda.device(self.agent.device):
            graph = torch.cuda.CUDAGraph()
            for generator in self.generators:
                graph.register_generator_state(generator)
            try:
                with torch.cuda.graph(graph, pool=pools[0] if pools else None):
                    for _ in range(count):
                        self.update()
            except RuntimeError as error:
                raise RunError(
                    f"the update cannot be captured as a graph ({str(error).splitlines()[0]}); "
                    "run with --no-graph"
                ) from error
        return graph
