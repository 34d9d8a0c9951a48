"""One complete update: noise, losses, gradients, clip, Adam, targets, dual variable."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import CompiledAgent, EagerAgent
from benchmarks.conftest import DEVICES
from benchmarks.sizes import GRID, make_agent, make_batch
from trqam_fast.data.dataset import Dataset
from trqam_fast.randomness import Randomness
from trqam_fast.training.history import History
from trqam_fast.training.updater import UPDATES_PER_REPLAY, WARMUP, Updater


def updates(agent, size, device):
    """One update on the same batch with fresh noise."""
    batch = make_batch(size, device)
    randomness = Randomness(range(size.runs), device)
    return lambda: agent.update(batch, agent.draw_noise(randomness))


@pytest.mark.parametrize("algo", ["trqam", "qam"])
def test_update(measure, size, variant, algo):
    agent = make_agent(size, variant.device, variant.backend, variant.precision, algo)
    measure(f"update {algo}", updates(agent, size, variant.device), "update")


def measure_baseline(measure, size, variant, agent_class):
    agent = make_agent(size, variant.device, "reference", "ieee", agent_class=agent_class)
    measure("update trqam", updates(agent, size, variant.device), "update")


def as_variants(name):
    return pytest.mark.parametrize(
        "variant", [(device, name, "ieee") for device in DEVICES], ids="-".join, indirect=True
    )


@as_variants("eager")
def test_update_of_the_eager_baseline(measure, size, variant):
    """The same work in PyTorch as its users write it, in the group of ours."""
    measure_baseline(measure, size, variant, EagerAgent)


# Compilation takes minutes: two sizes, and none of them quick.
@pytest.mark.parametrize(
    "size", [size for size in GRID if size.name in ("w128-b64-s1", "w512-b256-s1")],
    ids=lambda size: size.name, indirect=True,
)  # fmt: skip
@as_variants("compiled")
def test_update_of_the_compiled_baseline(measure, size, variant):
    """The same under torch.compile."""
    measure_baseline(measure, size, variant, CompiledAgent)


def make_updater(
    agent, size, device, graph, interval=UPDATES_PER_REPLAY, streams=True, draws="auto"
):
    """Return the trainer's loop body on random data, warmed up.

    `interval` is of its history, `draws` the backend of its random numbers.
    """
    count = 10_000
    arrays = {
        "observations": torch.randn(count, size.obs_dim),
        "actions": torch.rand(count, size.act_dim) * 2 - 1,
        "rewards": -torch.ones(count),
        "masks": torch.ones(count),
        "terminals": torch.zeros(count),
        "next_observations": torch.randn(count, size.obs_dim),
    }
    dataset = Dataset.from_arrays(arrays, device)
    randomness = Randomness(range(size.runs), device, draws)
    history = History(interval)
    updater = Updater(agent, dataset, randomness, history, graph=graph, streams=streams)
    updater.run(WARMUP)
    history.collect()
    return updater


def measure_ten(measure, size, variant, agent):
    updater = make_updater(agent, size, variant.device, graph=variant.device == "cuda")

    def step():
        updater.run(UPDATES_PER_REPLAY)
        updater.history.collect()

    measure("ten updates of the trainer", step, *["update"] * UPDATES_PER_REPLAY)


def test_ten_updates_of_the_trainer(measure, size, variant):
    """Sampling and logging included; on a GPU one replay of the captured graph."""
    agent = make_agent(size, variant.device, variant.backend, variant.precision)
    measure_ten(measure, size, variant, agent)


@pytest.fixture
def products(variant):
    """PyTorch's products in the variant's precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if variant.precision == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a captured graph needs a GPU")
@pytest.mark.parametrize(
    "variant", [("cuda", "graphed", precision) for precision in ("ieee", "tf32")],
    ids="-".join, indirect=True,
)  # fmt: skip
def test_ten_updates_of_the_graphed_baseline(measure, size, variant, products):
    """The eager update in the trainer's graph: one launch for each layer."""
    agent = make_agent(size, "cuda", "reference", "ieee", agent_class=EagerAgent)
    measure_ten(measure, size, variant, agent)
