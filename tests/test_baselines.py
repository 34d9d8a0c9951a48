from pathlib import Path

import pytest
import torch

from benchmarks.baselines import CompiledAgent, EagerAgent, EagerUpdate, GraphedAgent
from tests.factories import ACT, OBS, SMALL, make_batch
from trqam_fast import parity
from trqam_fast.agents import Agent, TRQAMAgent, TRQAMConfig, algorithm
from trqam_fast.agents.config import select
from trqam_fast.randomness import Randomness

DATA = Path(__file__).parent / "data"
RECORDINGS = ["trqam_chunked", "trqam_single_step", "qam_chunked"]


class TogetherUpdate(EagerUpdate):
    """What a GPU gets: batched products, and the field once more for its gradient."""

    batched = True
    stepwise = False


class BatchedStepwiseUpdate(EagerUpdate):
    batched = True
    stepwise = True


class LoopedTogetherUpdate(EagerUpdate):
    batched = False
    stepwise = False


def standing_in(kind, algo):
    """The class of an algorithm with another update; one that is whole already as it is."""
    return kind if issubclass(kind, Agent) else type(kind.__name__, (kind, algorithm(algo)), {})


def worst_of_replay(name, kind):
    args = parity.ParityArgs(DATA / f"{name}.npz", backend="reference")
    worst = parity.replay(args, standing_in(kind, name.partition("_")[0]))
    assert len(worst) >= 120
    return max(worst.values())


def make_update(config, kind, runs, algo, device="cpu"):
    """An agent, and a function that does its n-th update."""
    options = {"dtype": torch.float64, "device": device, "backend": "reference"}
    kind = standing_in(kind, algo)
    own = {"inv_temp": 2.0} if algo == "qam" else {}
    values = kind.Config(**select(kind.Config, vars(config)) | own)
    agent = kind(values, OBS, ACT, list(range(runs)), **options)
    randomness = Randomness(range(runs), device)

    def update(index):
        batch = make_batch(index, runs, config)
        batch = type(batch)(*(tensor.to(device) for tensor in batch))
        return agent.update(batch, agent.draw_noise(randomness))

    return agent, update


def assert_same_updates(config, kind, runs, algo, count=1, device="cpu"):
    """`kind` and the reference agree in everything that some updates return and leave behind."""
    ours, update = make_update(config, kind, runs, algo, device)
    reference, expected_update = make_update(config, algorithm(algo), runs, algo, device)
    for index in range(count):
        terms, expected = update(index), expected_update(index)
        assert terms.metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            torch.testing.assert_close(terms.metrics[name], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(terms.outputs, expected.outputs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("kind", [EagerUpdate, TogetherUpdate])
def test_replay(name, kind):
    assert worst_of_replay(name, kind) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.inductor)]
)
def test_replay_compiled(compiler):
    """The graph that is compiled, run as it is; by PyTorch's compiler with `-m inductor`.

    Loops are unrolled, and g++ takes minutes for the hundreds of kernels that come of it.
    """
    kind = type("Compiled", (CompiledAgent,), {"compiler": compiler})
    assert worst_of_replay("trqam_chunked", kind) < 1e-11


@pytest.mark.parametrize(
    "kind", [EagerUpdate, TogetherUpdate, BatchedStepwiseUpdate, LoopedTogetherUpdate]
)
@pytest.mark.parametrize("algo", ["trqam", "qam"])
@pytest.mark.parametrize("runs", [1, 2])
def test_update_equals_the_reference(kind, algo, runs):
    config = TRQAMConfig(**SMALL, actor_layer_norm=True, best_of_n=3)
    assert_same_updates(config, kind, runs, algo)


@pytest.mark.parametrize("kind", [EagerUpdate, TogetherUpdate])
@pytest.mark.parametrize(
    "changes",
    [
        {"clip_adj": False, "rho": 0.0},
        {"target_actor": False, "use_target_grad": False},
        {"clip_grad": False, "value_layer_norm": False},
        {"num_qs": 1, "flow_steps": 2},
        {"action_chunking": False, "horizon_length": 3},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_option_is_honoured(kind, changes):
    assert_same_updates(TRQAMConfig(**{**SMALL, **changes}), kind, 2, "trqam", count=2)


def test_acting_is_that_of_the_agent():
    config = TRQAMConfig(**SMALL, best_of_n=3)
    ours, _ = make_update(config, EagerAgent, 2, "trqam")
    reference, _ = make_update(config, TRQAMAgent, 2, "trqam")
    generator = torch.Generator().manual_seed(7)
    observations = torch.randn(2, 5, OBS, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 5, 3, ours.dim, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours.act(observations, noise), reference.act(observations, noise))


def test_a_graph_needs_a_gpu():
    with pytest.raises(ValueError, match="device is cpu"):
        make_update(TRQAMConfig(**SMALL), GraphedAgent, 1, "trqam")


def test_other_precisions_are_the_callers():
    with pytest.raises(ValueError, match="precision is 'tf32'"):
        EagerAgent(TRQAMConfig(**SMALL), OBS, ACT, [0], precision="tf32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a captured graph needs a GPU")
@pytest.mark.parametrize("runs", [1, 2])
def test_graphed_updates_equal_the_reference(runs):
    """Three updates before the capture, three replayed."""
    config = TRQAMConfig(**SMALL, best_of_n=2)
    assert_same_updates(config, GraphedAgent, runs, "trqam", count=6, device="cuda")
