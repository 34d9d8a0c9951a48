"""Agents with the interface of the authors', whose learning is known beforehand.

An update counts; the flow that cloning leaves is the number of its updates. Fine-tuned agents stand
still until five updates are done, and then solve `tests.own_tasks:Reach`. Seed 9 diverges there.
"""

from types import SimpleNamespace

import numpy as np


class Network(SimpleNamespace):
    def replace(self, params):
        return Network(params=params)


class Agent:
    def __init__(self, config, seed, count, lam, flow):
        self.config, self.leaves = config, (int(seed), int(count), lam, flow)
        self.network = Network(params={"modules_actor_slow": flow, "modules_critic": 0.5})

    @classmethod
    def create(cls, seed, observation, action, config):
        assert observation.shape == (2,) and action.shape == (1,)
        assert config["lr"] == 0.005 and config["actor_hidden_dims"] == (8, 8)
        return cls(dict(config), seed, 0, 1.0, np.float32(-1))

    def replace(self, network):
        assert network.params.pop("modules_critic") == 0.5
        assert network.params.keys() == {
            f"modules_{target}actor_{name}"
            for target in ("", "target_")
            for name in ("slow", "fast")
        }
        (flow,) = set(network.params.values())
        seed, count, lam, _ = self.leaves
        return type(self)(self.config, seed, count, lam, flow)

    def update(self, batch):
        seed, count, lam, flow = self.leaves
        assert isinstance(lam, (np.floating, np.ndarray))
        assert batch["observations"].shape == (4, 2)
        count += 1
        if self.config["bc_only"]:
            return type(self)(self.config, seed, count, lam, np.float32(count)), {}
        info = {
            "actor/flow_loss": float(flow),
            "critic/q_mean": float(batch["observations"].mean()),
            "critic/critic_loss": np.nan if seed == 9 and count > 5 else 1.0,
        }
        return type(self)(self.config, seed, count, lam, flow), info | self.extra(count)

    def extra(self, count):
        return {}

    def compute_flow_actions(self, observations, noises, model):
        assert model == "fast" and noises.shape == (len(observations), 1)
        _, count, _, _ = self.leaves
        if count < 5:
            return np.full_like(noises, -0.5)  # of -10 to 30, so nothing moves
        point, goal = observations.T
        return np.clip((goal - point - 10) / 20, -1, 1)[:, None]


class TRQAMAgent(Agent):
    def extra(self, count):
        return {"actor/path_kl": float(count), "dual/lambda": 3.0 * count}


agents = {"qam": Agent, "trqam": TRQAMAgent}
