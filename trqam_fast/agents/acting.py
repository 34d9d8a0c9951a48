"""Acting by captured graphs: an action takes a GPU some fifty launches of a few microseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trqam_fast.streams import say

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent

Key = tuple[int | None, torch.Size, torch.Size]
"""A run, or None for all, and the shapes of observations and noise."""


class CapturedPolicy:
    """A captured graph of a policy, and the memory that it reads and writes.

    Attributes:
        observations: As of `Agent.act`, like the rest.
        noise: Likewise.
        actions: What the last replay returned.
        graph: The graph.
    """

    def __init__(self, observations: Tensor, noise: Tensor) -> None:
        with torch.inference_mode(False):
            self.observations, self.noise = observations.clone(), noise.clone()
        self.actions = torch.empty(0)
        self.graph = torch.cuda.CUDAGraph()

    def compute(self, agent: Agent, run: int | None) -> Tensor:
        """Return the agent's actions for the inputs that lie in the graph's memory."""
        return asked(agent, self.observations, self.noise, run)

    def replay(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Return the actions for other inputs."""
        self.observations.copy_(observations)
        self.noise.copy_(noise)
        self.graph.replay()
        return self.actions.clone()


class PolicyGraphs:
    """Graphs of an agent's policy, which share memory and a stream, as they follow each other.

    Weights are read where they lie, so a replay acts with what training has made of them.

    Args:
        device: The agent's GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.policies: dict[Key, CapturedPolicy | None] = {}
        with torch.cuda.device(device):
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def capture(
        self, agent: Agent, observations: Tensor, noise: Tensor, run: int | None
    ) -> CapturedPolicy:
        """Capture the policy and hold a replay to what the agent computes by itself.

        Raises:
            RuntimeError: they differ, or something cannot be captured.
        """
        policy = CapturedPolicy(observations, noise)
        current = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device):
                self.stream.wait_stream(current)
                with torch.cuda.stream(self.stream):  # as a capture requires of what precedes it
                    expected = policy.compute(agent, run)
                current.wait_stream(self.stream)
                # Other threads of the caller's may allocate meanwhile.
                with torch.cuda.graph(
                    policy.graph, pool=self.pool, stream=self.stream,
                    capture_error_mode="thread_local",
                ):  # fmt: skip
                    policy.actions = policy.compute(agent, run)
                policy.graph.replay()
        finally:
            torch.cuda.set_stream(current)  # A capture that fails at its end leaves its own.
        if not torch.allclose(policy.actions, expected, rtol=0.0, atol=0.0, equal_nan=True):
            raise RuntimeError("a replay gave other actions")
        return policy


def asked(agent: Agent, observations: Tensor, noise: Tensor, run: int | None) -> Tensor:
    """Return what `Agent.act` returns; one of all runs may know no other."""
    one = () if run is None else (run,)
    return agent.act(observations, noise, *one)


def act(agent: Agent, observations: Tensor, noise: Tensor, run: int | None = None) -> Tensor:
    """Return what `Agent.act` returns; on a GPU from a graph once a shape has come twice.

    The first call compiles what the capture records. Where nothing can be captured, or a replay
    differs, the agent acts by itself from then on.
    """
    graphs = agent.policy_graphs
    if graphs is None:
        return asked(agent, observations, noise, run)
    key = run, observations.shape, noise.shape
    if key not in graphs.policies:
        graphs.policies[key] = None
        return asked(agent, observations, noise, run)
    policy = graphs.policies[key]
    if policy is None:
        try:
            policy = graphs.policies[key] = graphs.capture(agent, observations, noise, run)
        except RuntimeError as error:
            agent.policy_graphs = None
            why = (str(error) or type(error).__name__).splitlines()[0]
            say(
                f"warning: the policy is not replayed as a graph on {agent.device} ({why}), so "
                "acting takes longer",
                "stderr",
            )
            return asked(agent, observations, noise, run)
    return policy.replay(observations, noise)
