"""Acting and learning in lockstep; environments restored exactly."""

import numpy as np
import pytest
import torch

from trqam_fast.agents import TRQAMAgent, TRQAMConfig
from trqam_fast.data.dataset import FIELDS, Dataset
from trqam_fast.data.names import parse_task
from trqam_fast.data.replay import ReplayBuffer
from trqam_fast.errors import RunError
from trqam_fast.randomness import Randomness
from trqam_fast.simulator.environment import physics
from trqam_fast.simulator.online import OnlineEnvironment, Step
from trqam_fast.training.history import History
from trqam_fast.training.online import OnlineDriver
from trqam_fast.training.updater import Updater

MAZE = "pointmaze-medium-navigate-singletask-task1-v0"
MAZE_ENV = "pointmaze-medium-singletask-task1-v0"
CUBE = "cube-single-play-singletask-task1-v0"


class Line:
    """A simulator with states 1, 2, 3, ...; the third step solves its first episode."""

    def __init__(self, length):
        self.length, self.episode, self.actions = length, 0, []
        self.observation = np.ones(3)
        self.seen = []

    def step(self, action):
        self.actions.append(action)
        self.seen.append(self.observation)
        solved = self.episode == 0 and len(self.actions) == 3
        ended = solved or len(self.actions) == self.length
        following = self.observation + 1
        transition = {
            "observations": self.observation, "actions": action, "rewards": np.float32(-1),
            "masks": np.float32(not solved), "terminals": np.float32(ended),
            "next_observations": following,
        }  # fmt: skip
        self.observation = following
        if not ended:
            return Step(transition, None)
        outcome = {"episode": self.episode, "success": float(solved), "return": 0.0, "length": 1}
        self.episode, self.actions, self.observation = self.episode + 1, [], np.ones(3)
        return Step(transition, outcome)

    def close(self):
        pass


def make(chunked, start_training=2, utd_ratio=1, length=4, seeds=(0, 1)):
    config = TRQAMConfig(
        batch_size=4, actor_hidden_dims=(8,), value_hidden_dims=(8,), num_qs=2, flow_steps=2,
        horizon_length=3, action_chunking=chunked,
    )  # fmt: skip
    agent = TRQAMAgent(config, 3, 2, list(seeds))
    arrays = {name: np.zeros(12, np.float32) for name in FIELDS}
    for name, width in (("observations", 3), ("next_observations", 3), ("actions", 2)):
        arrays[name] = np.zeros((12, width), np.float32)
    arrays["terminals"][-1] = 1
    buffer = ReplayBuffer(Dataset.from_arrays(arrays), len(seeds), 60, 3)
    randomness = Randomness([10 + seed for seed in seeds])
    acting = Randomness([20 + seed for seed in seeds])
    ended = []
    driver = OnlineDriver(
        agent, buffer, [Line(length) for _ in seeds], acting,
        Updater(agent, buffer, randomness, History(100), graph=False),
        start_training=start_training, utd_ratio=utd_ratio,
        episode_ended=lambda *outcome: ended.append(outcome),
    )  # fmt: skip
    return driver, ended


@pytest.mark.parametrize("utd_ratio", [1, 3])
def test_updates_begin_after_the_first_steps(utd_ratio):
    driver, _ = make(False, start_training=5, utd_ratio=utd_ratio)
    assert driver.run(5) == 5 and driver.updater.done == 0
    assert driver.run(4) == 4 and driver.updater.done == 4 * utd_ratio
    driver.close()


def test_transitions_and_episodes():
    driver, ended = make(True)
    driver.run(8)
    online = {name: tensor[0, 2:10] for name, tensor in driver.buffer.online.items()}
    assert online["observations"][:, 0].tolist() == [1, 2, 3, 1, 2, 3, 4, 1]
    assert online["next_observations"][:, 0].tolist() == [2, 3, 4, 2, 3, 4, 5, 2]
    assert online["terminals"].tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert online["masks"].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert [(steps, run, outcome["success"]) for steps, run, outcome in ended] == [
        (3, 0, 1.0), (3, 1, 1.0), (7, 0, 0.0), (7, 1, 0.0),
    ]  # fmt: skip
    driver.close()


def test_a_chunk_is_dropped_where_its_episode_ends():
    """Episodes of 4 steps cut every second chunk of 3: the policy is asked anew at each start."""
    driver, _ = make(True, start_training=1000, seeds=(0,))
    asked, act = [], driver.agent.act
    driver.agent.act = lambda s, noise: (asked.append(s[0, 0, 0].item()), act(s, noise))[1]
    driver.run(11)
    assert asked == [1, 1, 4, 1, 4]
    driver.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_numbers_do_not_depend_on_how_the_steps_are_asked_for(chunked):
    """One call lets the simulator run ahead, twelve calls do not."""
    ahead, plain = make(chunked)[0], make(chunked)[0]
    assert ahead.run(12) == 12
    for _ in range(12):
        plain.run(1)
    for name in FIELDS:
        assert torch.equal(ahead.buffer.online[name], plain.buffer.online[name]), name
    assert torch.equal(ahead.agent.online.flat, plain.agent.online.flat)
    for driver in (ahead, plain):
        driver.close()


def test_the_policy_of_a_chunk_is_the_updated_one():
    """Every chunk comes from the weights after the updates of the step before it."""
    driver, _ = make(True, start_training=0, seeds=(0,), length=100)
    used, act = [], driver.agent.act
    driver.agent.act = lambda s, noise: (used.append(driver.updater.done), act(s, noise))[1]
    driver.run(9)
    assert used == [0, 3, 6]
    driver.close()


def test_stopping_finishes_the_step_that_has_begun():
    driver, _ = make(True)
    done = driver.run(50, lambda count: driver.buffer.added < 4)
    assert done == driver.buffer.added == 5 and not driver._flying
    driver.close()


@pytest.mark.parametrize("env_name", [MAZE, CUBE, "scene-play-singletask-task1-v0"])
def test_an_environment_is_restored_exactly(env_name):
    rng = np.random.default_rng(0)
    original = OnlineEnvironment(parse_task(env_name).env_id, 7)
    width = original.env.action_space.shape[0]
    actions = rng.uniform(-1, 1, (40, width)).astype(np.float32)
    for action in actions[:25]:
        original.step(action)
    restored = OnlineEnvironment(parse_task(env_name).env_id, 7)
    start = physics(restored.env)
    restored.step(actions[30])  # whatever it did before
    restored.reset(0)
    assert np.array_equal(physics(restored.env), start)
    restored.load_state_dict(original.state_dict())
    for action in actions[25:]:
        one, other = original.step(action), restored.step(action)
        for name in FIELDS:
            assert np.array_equal(one.transition[name], other.transition[name]), name
    assert np.array_equal(physics(original.env), physics(restored.env))
    for environment in (original, restored):
        environment.close()


def test_episodes_follow_from_the_seed_and_differ():
    environment = OnlineEnvironment(MAZE_ENV, 7)
    first = environment.observation
    environment.reset(1)
    assert not np.array_equal(environment.observation, first)
    environment.reset(0)
    assert np.array_equal(environment.observation, first)
    other = OnlineEnvironment(MAZE_ENV, 8)
    assert not np.array_equal(other.observation, first)


def test_a_simulator_that_does_not_reproduce_is_reported():
    environment = OnlineEnvironment(MAZE_ENV, 7)
    environment.step(np.ones(2, np.float32))
    state = environment.state_dict()
    state["physics"][0] += 1e-9
    with pytest.raises(RunError, match="episode 0 of seed 7 cannot be restored"):
        environment.load_state_dict(state)


def test_sparse_rewards():
    environment = OnlineEnvironment("cube-double-singletask-task2-v0", 0, sparse=True)
    plain = OnlineEnvironment("cube-double-singletask-task2-v0", 0)
    action = np.zeros(5, np.float32)
    assert plain.step(action).transition["rewards"] == -2.0
    assert environment.step(action).transition["rewards"] == -1.0
