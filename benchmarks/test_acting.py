"""Sampling actions and playing episodes."""

from __future__ import annotations

import pytest

from benchmarks.sizes import GRID, QUICK, draw, make_agent
from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.agents.acting import act
from trqam_fast.evaluation import Evaluator

TASK = "pointmaze-medium-navigate-singletask-task1-v0"
OBS_DIM, ACT_DIM = 2, 2


@pytest.mark.parametrize("observations", [1, 50])
def test_act(measure, size, variant, observations):
    agent = make_agent(size, variant.device, variant.backend, variant.precision)
    shape = (size.runs, observations)
    s = draw(*shape, size.obs_dim, device=variant.device)
    noise = draw(*shape, 1, agent.dim, device=variant.device, seed=1)
    measure(f"act on {observations}", lambda: act(agent, s, noise))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, marks=[pytest.mark.quick] if size.name in QUICK else [])
        for size in GRID
        if (size.batch, size.runs) == (64, 1)
    ],
    ids=lambda size: size.name,
    indirect=True,
)
def test_evaluate(measure, size, variant):
    """Two episodes of an untrained policy in two environments, 1000 steps each."""
    config = TRQAMConfig(actor_hidden_dims=(size.width,) * 4, value_hidden_dims=(8,), num_qs=1)
    evaluator = Evaluator(TASK, 2)
    agent = TRQAMAgent(config, OBS_DIM, ACT_DIM, [0], device=variant.device, **variant.options)
    try:
        measure("evaluate", lambda: evaluator.evaluate(agent, 0, 2, seed=0))
    finally:
        evaluator.close()
