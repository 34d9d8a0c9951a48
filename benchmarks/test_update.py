"""One complete update: losses, gradients, clip, Adam, targets, dual variable."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import draw, synchronised
from trqam_fast.agents import AgentConfig, Batch, TRQAMAgent


@pytest.mark.parametrize("algo", ["trqam", "qam"])
def test_update(benchmark, size, device, backend, algo):
    config = AgentConfig(
        batch_size=size.batch,
        actor_hidden_dims=(size.width,) * size.depth,
        value_hidden_dims=(size.width,) * size.depth,
        num_qs=size.ensemble,
        horizon_length=size.horizon,
        action_chunking=size.horizon > 1,
        flow_steps=size.flow_steps,
    )
    agent = TRQAMAgent(
        config, size.obs_dim, size.act_dim, [0], algo=algo, device=device, backend=backend
    )
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
