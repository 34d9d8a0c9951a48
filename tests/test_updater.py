"""Updates run eagerly and as graphs."""

import contextlib
import dataclasses

import pytest
import torch

from tests.helpers import draw
from trqam_fast.agents import BCAgent, TRQAMAgent, TRQAMConfig
from trqam_fast.data.dataset import Dataset
from trqam_fast.data.replay import ReplayBuffer
from trqam_fast.errors import RunError, UsageError
from trqam_fast.kernels.dispatch import has_dependent_launches
from trqam_fast.randomness import Randomness
from trqam_fast.training import updater
from trqam_fast.training.history import History
from trqam_fast.training.updater import UPDATES_PER_REPLAY, WARMUP, Updater

CONFIG = TRQAMConfig(
    batch_size=8, actor_hidden_dims=(32,), value_hidden_dims=(32,), num_qs=2, flow_steps=3,
    horizon_length=2,
)  # fmt: skip
WIDE = dataclasses.replace(
    CONFIG, batch_size=100, actor_hidden_dims=(128, 128), actor_layer_norm=True,
    value_hidden_dims=(128, 128),
)  # fmt: skip
"""Launches of every kernel, several tiles of rows and of features in each: for races on a GPU."""
KINDS = [BCAgent, TRQAMAgent]


class GrowingBuffer(ReplayBuffer):
    """Refuses to be sampled in a replay, where it would be sampled as it was at the capture."""

    def sample(self, *arguments):
        assert not FakeGraph.replaying
        return super().sample(*arguments)


def make(
    kind, device="cpu", graph=False, interval=100, growing=False, streams=True, backend="auto",
    config=CONFIG, precision="ieee",
):  # fmt: skip
    arrays = {
        "observations": draw(50, 3, seed=1), "actions": draw(50, 2, seed=2).clamp(-1, 1),
        "rewards": -draw(50, seed=3).abs(), "masks": torch.ones(50), "terminals": torch.zeros(50),
        "next_observations": draw(50, 3, seed=4),
    }  # fmt: skip
    source = Dataset.from_arrays(arrays, device)
    if growing:
        source = GrowingBuffer(source, 2, 50, CONFIG.horizon_length, device=device)
    agent = kind(config, 3, 2, [0, 1], device=device, backend=backend, precision=precision)
    randomness = Randomness((5, 6), device)
    return Updater(agent, source, randomness, History(interval), graph=graph, streams=streams)


def outcome(made):
    made.history.collect()
    state = made.agent.state_dict()
    return [made.history.values, *state.values(), made.randomness.calls]


class FakeGraph:
    """Stands in for a captured graph: a replay runs what was captured."""

    replaying = False

    def __init__(self):
        self.captured = []
        made.append(self)

    def pool(self):
        return self

    def replay(self):
        FakeGraph.replaying = True
        for function in self.captured:
            function()
        FakeGraph.replaying = False


made: list[FakeGraph] = []


@pytest.fixture
def graphs_on_the_cpu(monkeypatch):
    """Capture records calls of `update` instead of doing them."""
    made.clear()

    @contextlib.contextmanager
    def capture(graph, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local" and pool is (
            None if len(made) == 1 else made[0]
        )
        real = Updater.update
        monkeypatch.setattr(
            Updater,
            "update",
            lambda self, count=1: graph.captured.append(lambda: real(self, count)),
        )
        yield
        monkeypatch.setattr(Updater, "update", real)

    monkeypatch.setattr(updater.torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(updater.torch.cuda, "graph", capture)
    monkeypatch.setattr(updater.torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(updater.torch.cuda, "set_stream", lambda _: None)
    monkeypatch.setattr(updater.torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Updater, "warm_up", lambda self: self.update())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [(1,), (WARMUP + UPDATES_PER_REPLAY,), (2, 25, 1, 14, 40)])
def test_counts_and_order_of_replays(kind, calls, graphs_on_the_cpu):
    eager, replayed = make(kind), make(kind)
    replayed.graph = True
    for count in calls:
        eager.run(count)
        replayed.run(count)
        assert replayed.done == eager.done
    for ours, theirs in zip(outcome(replayed), outcome(eager), strict=True):
        assert torch.equal(ours, theirs)
    assert replayed.history.values.shape[0] == sum(calls)
    assert len(made) == len(replayed.graphs) <= 2


def add_transition(buffer, number):
    shapes = {name: storage[:, 0].shape for name, storage in buffer.online.items()}
    buffer.add({name: draw(*shape, seed=number).numpy() for name, shape in shapes.items()})


@pytest.mark.parametrize("utd_ratio", [1, 12])
def test_replays_of_a_source_that_grows(utd_ratio, graphs_on_the_cpu):
    """As in the online stage: every replay has one update, of a batch sampled before it."""
    eager, replayed = (make(TRQAMAgent, growing=True) for _ in range(2))
    replayed.graph = True
    for step in range(7):
        for updating in (eager, replayed):
            add_transition(updating.source, step)
            updating.run(utd_ratio)
    for ours, theirs in zip(outcome(replayed), outcome(eager), strict=True):
        assert torch.equal(ours, theirs)
    assert replayed.graphs.keys() == {1}
    assert [len(graph.captured) for graph in made] == [1]


def test_a_failing_capture_names_the_way_out(graphs_on_the_cpu, monkeypatch):
    @contextlib.contextmanager
    def refuse(graph, pool, stream, capture_error_mode):
        try:
            yield
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        finally:  # as the end of a capture does
            raise RuntimeError("operation failed due to a previous error during capture")

    left = []
    monkeypatch.setattr(updater.torch.cuda, "current_stream", lambda _: "the one before")
    monkeypatch.setattr(updater.torch.cuda, "set_stream", left.append)

    monkeypatch.setattr(updater.torch.cuda, "graph", refuse)
    updating = make(BCAgent)
    updating.graph = True
    with pytest.raises(RunError, match="run with --no-graph .operation not permitted") as raised:
        updating.run(WARMUP + 1)
    assert "more lines" in str(raised.value) and left == ["the one before"]


@pytest.mark.parametrize("kind", KINDS)
def test_state_stays_where_it_is(kind):
    """A graph writes to addresses: no update may replace a tensor that outlives it."""
    updating = make(kind)
    updating.run(WARMUP)

    def addresses():
        agent, history = updating.agent, updating.history
        moments = {"m": agent.exp_avg, "v": agent.exp_avg_sq, "step": agent.steps}
        tensors = [agent.online.flat, *moments.values(), history._buffer, history._position]
        tensors += [value for value in vars(agent).values() if isinstance(value, torch.Tensor)]
        if kind is TRQAMAgent:
            tensors.append(agent.target.flat)
            assert len(tensors) >= 8
        return [tensor.data_ptr() for tensor in tensors]

    before = addresses()
    updating.run(2)
    updating.history.collect()
    updating.run(2)
    assert addresses() == before


class OwnSampling(Dataset):
    """Samples as every data set does, in a method of its own."""

    sampled = 0

    def sample(self, *arguments):
        type(self).sampled += 1
        return super().sample(*arguments)


class OwnNoise(TRQAMAgent):
    """Draws as every algorithm does, in a method of its own."""

    drawn = 0

    def draw_noise(self, randomness):
        type(self).drawn += 1
        return super().draw_noise(randomness)


def test_batch_and_noise_are_drawn_at_once_unless_somebody_has_an_own_way(monkeypatch):
    """With the numbers of one after the other, and the position."""
    expected = make(TRQAMAgent)
    assert expected.draws_alike
    expected.run(3)
    noisy = make(OwnNoise)
    noisy.run(3)
    assert OwnNoise.drawn == 3 and not noisy.draws_alike
    monkeypatch.setattr("tests.test_updater.Dataset", OwnSampling)
    sampling = make(TRQAMAgent)
    sampling.run(3)
    assert OwnSampling.sampled == 3 and not sampling.draws_alike
    for other in (noisy, sampling):
        assert all(map(torch.equal, outcome(other), outcome(expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_history_keeps_every_update_in_order(dtype):
    history, b = History(3), torch.full((2,), -1.0, dtype=dtype)
    for value in range(3):
        history.record({"a": torch.full((2,), value, dtype=dtype), "b": b})
        history.advance(1)
    assert history.collect()[:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    history.record({"a": torch.full((2,), 3, dtype=dtype), "b": b})
    history.advance(1)
    assert history.collect()[:, 1, 0].tolist() == [3.0]
    assert history.values[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    history.clear()
    # Nor is memory kept for what was there, which a checkpoint would hold too.
    assert len(history.values) == 0 and history.values.untyped_storage().nbytes() == 0


def test_history_keeps_metrics_of_any_type():
    whole, wide = torch.tensor([3, 4]), torch.tensor([0.1, 0.2], dtype=torch.float64)
    for others in ({}, {"b": wide}):
        history = History(2)
        history.record({"a": whole, **others, "c": torch.ones(2)})
        history.advance(1)
        (row,) = history.collect()
        assert torch.equal(row[:, 0], whole.double()) and row[:, -1].eq(1).all()
    assert torch.equal(row[:, 1], wide)


def test_history_tells_metrics_apart_by_name():
    history, a, b = History(3), torch.ones(2, requires_grad=True), torch.zeros(2)
    history.record({"a": a, "b": b})
    history.record({"b": b, "a": a})
    for metrics in ({"a": a}, {"a": a, "c": b}):
        new = "c" if "c" in metrics else "none"
        with pytest.raises(UsageError, match=rf"\(missing: b; new: {new}\); log the same"):
            history.record(metrics)
    history.advance(2)
    assert history.collect()[:, 0].tolist() == [[1.0, 0.0]] * 2 and history.names == ["a", "b"]
    assert not history.values.requires_grad  # or the graphs of all updates would be kept


def test_a_continued_history_keeps_its_names():
    before, after = History(3), History(3)
    before.record({"a": torch.ones(2), "b": torch.zeros(2)})
    before.advance(1)
    before.collect()
    after.restore(before.values, 2, before.names)
    after.record({"b": torch.zeros(2), "a": torch.ones(2)})
    after.advance(1)
    after.collect()
    assert after.names == ["a", "b"] and after.values[:, 0].tolist() == [[1.0, 0.0]] * 2
    with pytest.raises(ValueError, match="names 1 of 2 metrics"):
        History(3).restore(before.values, 2, ["a"])
    unnamed = History(3)
    unnamed.restore(before.values, 2, [])  # of an older checkpoint, saved again before an update
    unnamed.record({"a": torch.ones(2), "b": torch.zeros(2)})
    assert unnamed.names == ["a", "b"]
    later = History(3)
    later.restore(before.values[:0], 2, ["old"])  # nothing is left of the interval
    later.record({"a": torch.ones(2)})
    assert later.names == ["a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growing", [False, True])
def test_replay_equals_eager_on_a_gpu(kind, growing):
    """With the branches side by side, and one after another."""
    how = {"growing": growing, "backend": "triton", "config": WIDE, "precision": "tf32"}
    eager, replayed = (
        make(kind, "cuda", graph=graph, streams=graph, **how) for graph in (False, True)
    )
    for step, count in enumerate((2, 25, 1, 14)):
        for updating in (eager, replayed):
            if growing:
                add_transition(updating.source, step)
            updating.run(count)
    assert replayed.graphs
    for ours, theirs in zip(outcome(replayed), outcome(eager), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.skipif(
    not torch.cuda.is_available() or not has_dependent_launches(torch.device("cuda")),
    reason="needs a GPU with dependent launches",
)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_dependent_launches_give_the_same_bits_on_a_gpu(graph, streams, precision):
    """A launch that did not wait for the one before would read what is not there yet."""
    how = {"config": WIDE, "precision": precision}
    ordinary = make(TRQAMAgent, "cuda", backend="triton", streams=False, **how)
    dependent = make(TRQAMAgent, "cuda", backend="triton_pdl", graph=graph, streams=streams, **how)
    for updating in (ordinary, dependent):
        updating.run(42)
    for ours, theirs in zip(outcome(dependent), outcome(ordinary), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
