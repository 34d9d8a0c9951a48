"""One complete update: losses, gradients, clip, Adam, targets, dual variable."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Variant, draw, synchronised
from trqam_fast.agents import AgentConfig, Batch, TRQAMAgent
from trqam_fast.data.dataset import Dataset
from trqam_fast.training.history import History
from trqam_fast.training.updater import UPDATES_PER_REPLAY, WARMUP, Updater


def make_agent(size, variant, runs=1, algo="trqam"):
    config = AgentConfig(
        batch_size=size.batch,
        actor_hidden_dims=(size.width,) * size.depth,
        value_hidden_dims=(size.width,) * size.depth,
        num_qs=size.ensemble,
        horizon_length=size.horizon,
        action_chunking=size.horizon > 1,
        flow_steps=size.flow_steps,
    )
    return TRQAMAgent(
        config, size.obs_dim, size.act_dim, list(range(runs)), algo=algo, device=variant.device,
        **variant.options,
    )  # fmt: skip


@pytest.mark.parametrize("algo", ["trqam", "qam"])
def test_update(benchmark, size, variant, algo):
    device = variant.device
    agent = make_agent(size, variant, algo=algo)
    batch = Batch(
        draw(1, size.batch, size.obs_dim, device=device, seed=1),
        draw(1, size.batch, size.horizon, size.act_dim, device=device, seed=2).clamp(-1, 1),
        -torch.ones(1, size.batch, device=device),
        torch.ones(1, size.batch, device=device),
        torch.ones(1, size.batch, device=device),
        draw(1, size.batch, size.obs_dim, device=device, seed=3),
    )
    generators = [torch.Generator(device).manual_seed(0)]

    benchmark.group = f"update {algo} {size.name} {device}"
    benchmark.pedantic(
        synchronised(lambda: agent.update(batch, agent.draw_noise(generators)), device),
        warmup_rounds=2,
        rounds=10,
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a captured graph needs a GPU")
@pytest.mark.parametrize("runs", [1, 8])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_captured_updates(benchmark, size, precision, runs):
    """One replay: `UPDATES_PER_REPLAY` updates with their sampling; divide by that number."""
    count = 10_000
    agent = make_agent(size, Variant("cuda", "triton", precision), runs)
    arrays = {
        "observations": torch.randn(count, size.obs_dim),
        "actions": torch.rand(count, size.act_dim) * 2 - 1,
        "rewards": -torch.ones(count),
        "masks": torch.ones(count),
        "terminals": torch.zeros(count),
        "next_observations": torch.randn(count, size.obs_dim),
    }
    dataset = Dataset(**{name: array.cuda() for name, array in arrays.items()})
    generators = [torch.Generator("cuda").manual_seed(seed) for seed in range(runs)]
    history = History(UPDATES_PER_REPLAY)
    updater = Updater(agent, dataset, generators, history, graph=True)
    updater.run(WARMUP)
    history.collect()

    def replay():
        updater.run(UPDATES_PER_REPLAY)
        history.collect()  # waits for the GPU

    benchmark.group = f"captured updates {size.name} cuda"
    benchmark.pedantic(replay, warmup_rounds=3, rounds=20)
