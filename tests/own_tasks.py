"""Environments of one's own, as a user would write them, for tests."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces

NOISE = np.random.default_rng()
"""What no seed sets."""


class Reach(gymnasium.Env):
    """A point moves along a line to a goal, in centimetres; it never ends but by reaching it."""

    observation_space = spaces.Box(-100.0, 100.0, (2,), np.float32)
    action_space = spaces.Box(-10.0, 30.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-100, 100, 2)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.point = np.clip(self.point + action[0], -100, 100)
        reached = bool(abs(self.goal - self.point) < 10)
        return self.observe(), float(reached) - 1.0, reached, False, {}

    def observe(self):
        return np.array([self.point, self.goal], np.float32)


class Failing(Reach):
    """The same with hardware that fails."""

    def step(self, action):
        raise ValueError("motor is off")


FAILING_LINE = Failing.step.__code__.co_firstlineno + 1


class OldReset(Reach):
    """The same with the reset of gym."""

    def reset(self):
        return super().reset()[0]


class OldStep(Reach):
    """The same with the step of gym."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class Wide(Reach):
    """The same with one number more than its space."""

    def observe(self):
        return np.append(super().observe(), 0)


class Fading(Reach):
    """The same with a sensor that fails within an episode."""

    sees = 4

    def reset(self, *, seed=None, options=None):
        self.seen = 0
        return super().reset(seed=seed)

    def observe(self):
        self.seen += 1
        return np.array([0, 0 if self.seen <= self.sees else np.nan], np.float32)


class Blind(Fading):
    """The same from the beginning."""

    sees = 0


class Noisy(Reach):
    """The same with a sensor whose noise differs whenever an episode is played again."""

    def observe(self):
        return super().observe() + NOISE.normal(size=2).astype(np.float32)


class Graded(Reach):
    """The same, with a success of its own and observations in a dict."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(-100.0, 100.0, (1,)), "aim": spaces.Box(-100.0, 100.0, (1,))}
    )

    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"is_success": self.point > 0}

    def observe(self):
        point, goal = super().observe()
        return {"place": np.array([point]), "aim": np.array([goal])}


class Keyed(gymnasium.Env):
    """Observations in a dict of an order of its own, actions in a table with float64 bounds."""

    observation_space = spaces.Dict(
        place=spaces.Box(-9.0, 9.0, (1,)), aim=spaces.Dict(goal=spaces.Box(-9.0, 9.0, (2,)))
    )
    action_space = spaces.Box(-0.1, 0.1, (1, 1), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observe(), -1.0, False, False, {}

    def observe(self):
        draw = self.np_random.normal
        return {"place": draw(size=1), "aim": {"goal": draw(size=2)}}


class Seeing(Reach):
    """The same with a picture."""

    observation_space = spaces.Dict(
        place=Reach.observation_space, camera=spaces.Box(0, 255, (8, 8), np.uint8)
    )

    def observe(self):
        return {"place": super().observe(), "camera": np.zeros((8, 8), np.uint8)}


def blindfold():
    """Return the same without its picture."""
    return gymnasium.wrappers.FilterObservation(Seeing(), ["place"])


class Whole(Reach):
    """Actions are whole numbers."""

    action_space = gymnasium.spaces.Box(0, 3, (2,), np.int64)


def rescaled():
    """Return an environment of OGBench whose actions lie in [0, 1]."""
    env = gymnasium.make("pointmaze-medium-singletask-task1-v0")
    return gymnasium.wrappers.RescaleAction(env, 0.0, 1.0)


def hurried():
    """Return an environment that ends its episodes itself."""
    return gymnasium.wrappers.TimeLimit(Reach(), 20)


def make_reach(**options):
    """A factory, as a user may have one."""
    return Reach(**options)


def broken():
    raise ValueError("no robot\nis connected")


def write_data(path, episodes=20, steps=12):
    """Write trajectories of a noisy controller as a plain npz."""
    env, rng = Reach(), np.random.default_rng(0)
    rows = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        for step in range(steps):
            wanted = observation[1] - observation[0] + rng.normal(0, 10)
            action = np.clip([wanted], -10, 30).astype(np.float32)
            following, reward, terminated, _, _ = env.step(action)
            last = terminated or step == steps - 1
            rows.append((observation, action, reward, last, not terminated, following))
            observation = following
            if last:
                break
    names = ("observations", "actions", "rewards", "terminals", "masks", "next_observations")
    np.savez(path, **dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True)))
    return path


gymnasium.register("Registered-v0", Graded, max_episode_steps=7)
