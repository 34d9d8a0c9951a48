"""The policy as a captured graph, with stand-ins for CUDA's: what is replayed is computed again."""

import contextlib

import pytest
import torch

from tests.factories import SMALL, make
from tests.helpers import draw
from trqam_fast.agents import TRQAMConfig, acting
from trqam_fast.agents.acting import CapturedPolicy, act


class FakeGraph:
    """A replay computes what was captured, from and to the same memory, and maybe wrongly."""

    policy = None
    wrong = 0.0
    replays = 0

    def replay(self):
        FakeGraph.replays += 1
        self.policy.actions.copy_(self.policy.compute() + self.wrong)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on the CPU; what is captured is the newest policy."""

    class Stream:
        def __init__(self, device=None):
            pass

        def wait_stream(self, other):
            pass

    init = CapturedPolicy.__init__

    def remember(self, *arguments):
        FakeGraph.policy = self
        init(self, *arguments)

    monkeypatch.setattr(CapturedPolicy, "__init__", remember)
    for name, value in {
        "CUDAGraph": FakeGraph, "Stream": Stream, "current_stream": lambda device: Stream(),
        "graph": lambda graph: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(acting.torch.cuda, name, value)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(FakeGraph, "wrong", 0.0)


def agent_and_inputs():
    agent = make(TRQAMConfig(**SMALL, best_of_n=2), (0, 1))
    agent.captures = True
    inputs = [
        (draw(2, 3, agent.obs_dim, seed=n), draw(2, 3, 2, agent.noise_dim, seed=n + 9))
        for n in range(5)
    ]
    return agent, inputs


def test_a_shape_that_comes_again_is_replayed(gpu):
    """With the weights of the moment; what was returned before stays as it was."""
    agent, inputs = agent_and_inputs()
    found = []
    for observations, noise in inputs:
        found.append(act(agent, observations, noise))
        assert torch.equal(found[-1], agent.act(observations, noise))
        kept = [tensor.clone() for tensor in found]
        agent.online.flat.data.mul_(1.01)
    assert all(map(torch.equal, found, kept))
    assert FakeGraph.replays == 1 + len(inputs) - 1  # the first one is held to the agent
    # Another shape, and one run alone, are captured for themselves.
    (observations, noise), _ = inputs[:2]
    for _ in range(3):
        one = act(agent, observations[:1], noise[:1], 1)
        assert torch.equal(one, agent.act(observations[:1], noise[:1], 1))
    assert len(agent.captured) == 2


def fails(graph):
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [("wrong", 1e-3, "a replay gave other actions"), ("graph", fails, "operation not permitted")],
)
def test_an_agent_that_cannot_be_replayed_acts_by_itself(
    gpu, monkeypatch, capsys, attribute, value, why
):
    agent, inputs = agent_and_inputs()
    monkeypatch.setattr(FakeGraph if attribute == "wrong" else torch.cuda, attribute, value)
    for observations, noise in inputs:
        assert torch.equal(act(agent, observations, noise), agent.act(observations, noise))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: the policy is not replayed as a graph on cpu ({why}), so acting takes longer"
    )


def test_without_graphs_nothing_is_captured(gpu):
    agent, inputs = agent_and_inputs()
    agent.captures = False
    for observations, noise in inputs:
        act(agent, observations, noise)
    assert agent.captured == {} and FakeGraph.replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_replays_equal_the_agent_on_a_gpu(backend, capsys):
    agent = make(TRQAMConfig(**SMALL, best_of_n=2), (0, 1), device="cuda", backend=backend,
                 dtype=torch.float32)  # fmt: skip
    for n in range(5):
        inputs = [
            draw(*shape, seed=n, dtype=torch.float32).cuda()
            for shape in ((2, 3, agent.obs_dim), (2, 3, 2, agent.noise_dim))
        ]
        assert torch.equal(act(agent, *inputs), agent.act(*inputs))
        agent.online.flat.data.mul_(1.01)
    assert agent.captured and capsys.readouterr().err == ""
