"""Acting by captured graphs: an action takes a GPU some fifty launches of a few microseconds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent


class CapturedPolicy:
    """An agent's policy for inputs of one shape, captured once and replayed.

    Weights are read where they lie, so a replay acts with what training has made of them. The first
    replay is held to what the agent computes by itself; where they differ, or nothing can be
    captured, the agent goes on by itself.

    Args:
        agent: Whose policy it is, on a GPU, whose kernels have been compiled by a call before.
        observations: As of `Agent.act`, like the rest; the first inputs.
        noise: Likewise.
        run: Likewise.
    """

    def __init__(self, agent: Agent, observations: Tensor, noise: Tensor, run: int | None) -> None:
        self.agent, self.run = agent, run
        self.observations, self.noise = observations.clone(), noise.clone()
        self.graph: torch.cuda.CUDAGraph | None = None
        try:
            self.capture()
        except RuntimeError as error:
            self.give_up(str(error).splitlines()[0])

    def compute(self) -> Tensor:
        """Return the actions for the inputs that lie in the graph's memory."""
        return self.agent.act(self.observations, self.noise, self.run)

    def capture(self) -> None:
        """Capture the policy, and hold it to itself."""
        device = self.agent.device
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):  # as a capture requires of what precedes it
                expected = self.compute()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.actions = self.compute()
            graph.replay()
            if torch.equal(self.actions, expected):
                self.graph = graph
            else:
                self.give_up("a replay gave other actions")

    def give_up(self, why: str) -> None:
        """Say that the agent acts by itself."""
        print(
            f"warning: the policy is not replayed as a graph on {self.agent.device} ({why}), so "
            "acting takes longer",
            file=sys.stderr,
        )

    def __call__(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Return the actions for inputs of the shape that was captured."""
        self.observations.copy_(observations)
        self.noise.copy_(noise)
        if self.graph is None:
            return self.compute()
        self.graph.replay()
        return self.actions.clone()


def act(agent: Agent, observations: Tensor, noise: Tensor, run: int | None = None) -> Tensor:
    """Return what `Agent.act` returns; on a GPU from a graph once a shape has come twice."""
    if not agent.captures:
        return agent.act(observations, noise, run)
    key = run, observations.shape, noise.shape
    if key not in agent.captured:
        agent.captured[key] = None
        return agent.act(observations, noise, run)
    policy = agent.captured[key]
    if policy is None:
        policy = agent.captured[key] = CapturedPolicy(agent, observations, noise, run)
    return policy(observations, noise)
