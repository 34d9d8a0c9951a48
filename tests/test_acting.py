"""The policy as a captured graph, with stand-ins for CUDA's: what is replayed is computed again."""

import contextlib

import pytest
import torch

from tests.factories import SMALL, make
from tests.helpers import draw
from trqam_fast.agents import TRQAMConfig, acting
from trqam_fast.agents.acting import CapturedPolicy, PolicyGraphs, act


class Stream(str):
    """A stream's name, which can wait."""

    def wait_stream(self, other):
        pass


class FakeGraph:
    """A replay computes what was captured, from and to the same memory, and maybe wrongly."""

    policy, agent, run = None, None, None
    wrong, replays = 0.0, 0

    def replay(self):
        FakeGraph.replays += 1
        self.policy.actions.copy_(self.policy.compute(self.agent, self.run) + self.wrong)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on the CPU; returns its streams, of which the last one is the current."""
    streams, compute = ["caller"], CapturedPolicy.compute

    def remember(self, agent, run):
        self.graph.policy, self.graph.agent, self.graph.run = self, agent, run
        return compute(self, agent, run)

    @contextlib.contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        streams.append("capture")
        yield
        streams.pop()

    monkeypatch.setattr(CapturedPolicy, "compute", remember)
    for name, value in {
        "CUDAGraph": FakeGraph, "Stream": lambda device: Stream("side"),
        "current_stream": lambda device: Stream(streams[-1]),
        "set_stream": lambda stream: streams.append(stream), "graph": capture,
        "graph_pool_handle": lambda: None, "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(acting.torch.cuda, name, value)
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(FakeGraph, "wrong", 0.0)
    return streams


def agent_and_inputs():
    agent = make(TRQAMConfig(**SMALL, best_of_n=2), (0, 1))
    agent.policy_graphs = PolicyGraphs(agent.device)
    inputs = [
        (draw(2, 3, agent.obs_dim, seed=n), draw(2, 3, 2, agent.noise_dim, seed=n + 9))
        for n in range(5)
    ]
    return agent, inputs


def test_a_shape_that_comes_again_is_replayed(gpu):
    """With the weights of the moment; what was returned before stays as it was."""
    agent, inputs = agent_and_inputs()
    found, kept = [], []
    for observations, noise in inputs:
        found.append(act(agent, observations, noise))
        kept.append(found[-1].clone())
        assert torch.equal(found[-1], agent.act(observations, noise))
        agent.online.flat.data.mul_(1.01)
    assert all(map(torch.equal, found, kept))
    assert FakeGraph.replays == 1 + len(inputs) - 1  # the first one is held to the agent
    # Another shape, and one run alone, are captured for themselves.
    (observations, noise), _ = inputs[:2]
    for _ in range(3):
        one = act(agent, observations[:1], noise[:1], 1)
        assert torch.equal(one, agent.act(observations[:1], noise[:1], 1))
    assert len(agent.policy_graphs.policies) == 2


def test_numbers_that_are_none_are_replayed_too(gpu, capsys):
    """Those of a run that has diverged, among others."""
    agent, inputs = agent_and_inputs()
    agent.online.flat.data[0] = torch.nan
    for observations, noise in inputs[:3]:
        assert act(agent, observations, noise)[0].isnan().all()
    assert FakeGraph.replays == 3 - 1 + 1 and capsys.readouterr().err == ""


def test_a_policy_of_all_runs_need_not_know_of_one(gpu):
    agent, inputs = agent_and_inputs()
    whole = agent.act
    agent.act = lambda observations, noise: whole(observations, noise)
    for observations, noise in inputs:
        assert torch.equal(act(agent, observations, noise), whole(observations, noise))


@contextlib.contextmanager
def fails_at_its_end(graph, **_):
    torch.cuda.set_stream("capture")
    yield
    raise RuntimeError("operation not permitted\nwhen stream is capturing")


@pytest.mark.parametrize(
    ("attribute", "value", "why"),
    [
        ("wrong", 1e-3, "a replay gave other actions"),
        ("graph", fails_at_its_end, "operation not permitted"),
    ],
)
def test_an_agent_that_cannot_be_replayed_acts_by_itself(
    gpu, monkeypatch, capsys, attribute, value, why
):
    """On the stream that it was on, after one warning for all of its runs and shapes."""
    agent, inputs = agent_and_inputs()
    monkeypatch.setattr(FakeGraph if attribute == "wrong" else torch.cuda, attribute, value)
    for observations, noise in inputs:
        assert torch.equal(act(agent, observations, noise), agent.act(observations, noise))
        one = act(agent, observations[:1], noise[:1], 1)
        assert torch.equal(one, agent.act(observations[:1], noise[:1], 1))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: the policy is not replayed as a graph on cpu ({why}), so acting takes longer"
    )
    assert gpu[-1] == "caller" and agent.policy_graphs is None


def test_on_a_cpu_nothing_is_captured():
    assert make(TRQAMConfig(**SMALL), (0, 1)).policy_graphs is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["triton", "triton_pdl", "reference"])
def test_replays_equal_the_agent_on_a_gpu(backend, capsys):
    agent = make(TRQAMConfig(**SMALL, best_of_n=2), (0, 1), device="cuda", backend=backend,
                 dtype=torch.float32)  # fmt: skip
    found, kept = [], []
    for n in range(5):
        observations, noise = (
            draw(*shape, seed=n, dtype=torch.float32).cuda()
            for shape in ((2, 3, agent.obs_dim), (2, 3, 2, agent.noise_dim))
        )
        for run in (None, 0, 1):
            own = slice(None) if run is None else slice(1)
            found.append(act(agent, observations[own], noise[own], run))
            kept.append(agent.act(observations[own], noise[own], run))
        agent.online.flat.data.mul_(1.01)
    assert all(map(torch.equal, found, kept))
    assert agent.policy_graphs is not None and capsys.readouterr().err == ""
