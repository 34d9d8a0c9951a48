import numpy as np
import pytest
import torch

from trqam_fast.agents import AgentConfig, TRQAMAgent
from trqam_fast.evaluation import Evaluator

CONFIG = AgentConfig(
    actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=2, flow_steps=2, horizon_length=5,
    action_chunking=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_episodes(monkeypatch):
    """Episodes of 40 steps."""
    import gymnasium

    make = gymnasium.make
    monkeypatch.setattr(
        gymnasium, "make", lambda name, **options: make(name, max_episode_steps=40, **options)
    )


def draw_from_the_global_generator(env):
    """Make every step depend on numpy's global generator, as a teleporter's does."""
    step = env.step

    def noisy(action):
        observation, *rest = step(action)
        return observation + np.random.standard_normal(2), *rest

    env.step = noisy


def test_outcomes_do_not_depend_on_the_number_of_environments():
    name = "pointmaze-teleport-navigate-singletask-task1-v0"
    agent = TRQAMAgent(CONFIG, 2, 2, [0, 1])
    outcomes = []
    for envs in (1, 3, 5):
        evaluator = Evaluator(name, envs)
        np.random.seed(envs)
        before = np.random.get_state()[1].copy()
        trace = []
        for slot in evaluator.slots:
            draw_from_the_global_generator(slot.env)
            step = slot.step

            def traced(slot=slot, step=step, trace=trace):
                result = step()
                trace.append((slot.episode, slot.length, tuple(slot.observation)))
                return result

            slot.step = traced
        results = evaluator.evaluate(agent, 1, 5, seed=7)
        outcomes.append((results, sorted(trace)))
        assert np.array_equal(np.random.get_state()[1], before)
        evaluator.close()
    for results, trace in outcomes[1:]:
        assert results == outcomes[0][0]
        # Batched and single policy calls may differ in the last bit.
        for ours, first in zip(trace, outcomes[0][1], strict=True):
            assert ours[:2] == first[:2]
            np.testing.assert_allclose(ours[2], first[2], atol=1e-4)
    assert all(result.length == 40 for result in outcomes[0][0])


def test_chunks_are_executed_open_loop():
    agent = TRQAMAgent(CONFIG, 2, 2, [0])
    calls = []
    act = agent.act

    def counted(observations, noise, run=None):
        calls.append(observations.shape[1])
        return act(observations, noise, run=run)

    agent.act = counted
    evaluator = Evaluator("pointmaze-medium-navigate-singletask-task1-v0", 4)
    evaluator.evaluate(agent, 0, 4, seed=0)
    evaluator.close()
    assert calls == [4] * 8  # 40 steps in chunks of 5, all environments in one call


def test_each_run_acts_with_its_own_weights():
    agent = TRQAMAgent(CONFIG, 2, 2, [0, 1])
    evaluator = Evaluator("pointmaze-medium-navigate-singletask-task1-v0", 2)
    first = evaluator.evaluate(agent, 0, 2, seed=0)
    with torch.no_grad():
        agent.online.flat[1].add_(1.0)
    assert evaluator.evaluate(agent, 0, 2, seed=0) == first
    evaluator.close()
