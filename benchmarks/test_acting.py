"""Sampling actions and playing episodes."""

from __future__ import annotations

import pytest

from benchmarks.sizes import draw, make_agent
from trqam_fast.agents import AgentConfig, TRQAMAgent
from trqam_fast.data.names import parse_task
from trqam_fast.evaluation import Evaluator

TASK = "pointmaze-medium-navigate-singletask-task1-v0"


@pytest.mark.parametrize("observations", [1, 50])
def test_act(measure, size, variant, observations):
    agent = make_agent(size, variant.device, variant.backend, variant.precision)
    shape = (size.runs, observations)
    s = draw(*shape, size.obs_dim, device=variant.device)
    noise = draw(*shape, 1, agent.dim, device=variant.device, seed=1)
    measure(f"act on {observations}", lambda: agent.act(s, noise))


def test_evaluate(measure, size, variant):
    """Two episodes of an untrained policy in two environments, 1000 steps each."""
    if size.batch != 64 or size.runs != 1:
        pytest.skip("evaluation depends on the width alone")
    parse_task(TASK)
    config = AgentConfig(actor_hidden_dims=(size.width,) * 4, value_hidden_dims=(8,), num_qs=1)
    agent = TRQAMAgent(config, 4, 2, [0], device=variant.device, **variant.options)
    evaluator = Evaluator(TASK, 2)
    try:
        measure("evaluate", lambda: evaluator.evaluate(agent, 0, 2, seed=0))
    finally:
        evaluator.close()
