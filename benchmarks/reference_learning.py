"""Trains the authors' agents through their public functions; part of reference_worker.py.

Like the worker it runs under an interpreter that has JAX, from a checkout of `yonghdong/trqam`,
without this project.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

CLONER = "trqam"
"""Their agent that can clone alone; the flow it leaves starts any other of theirs."""
FLOWS = ("actor_slow", "target_actor_slow", "actor_fast", "target_actor_fast")
"""Networks that their main program gives the cloned flow to."""


def default_config(algo: str) -> Any:
    """Return their configuration of an algorithm."""
    return importlib.import_module(f"agents.{algo}").get_config()


class Learner:
    """One seed of one of their algorithms on one dataset.

    Args:
        algo: Their name of the algorithm.
        seed: Of the weights, the noise and the batches.
        settings: Hyperparameters by name, of which their configuration takes those that it has.
        data: An npz file with the fields of their `Dataset`.
    """

    structures: dict[tuple[str, bool], Any] = {}
    """What JAX takes agents of an algorithm for. All share the first one's optimiser and modules,
    since the compiled update belongs to them: the others are not compiled again."""

    def __init__(self, algo: str, seed: int, settings: dict[str, Any], data: str) -> None:
        import numpy as np
        from utils.datasets import Dataset

        with np.load(data) as file:
            self.dataset = Dataset.create(**{name: file[name] for name in file.files})
        self.algo, self.seed, self.settings = algo, seed, settings

    def create(self, algo: str, cloning: bool) -> Any:
        """Return a new agent; numpy's generator begins anew, as in their main program."""
        import jax
        import numpy as np
        from agents import agents

        np.random.seed(self.seed)
        config = default_config(algo)
        for name, value in self.settings.items():
            if name in config:
                config[name] = tuple(value) if isinstance(value, list) else value
        config["bc_only"] = cloning
        example = self.dataset.sample(())
        agent = agents[algo].create(self.seed, example["observations"], example["actions"], config)
        # Lambda is a float at first and an array after an update, which would be compiled twice.
        leaves = jax.tree_util.tree_leaves(agent)
        leaves = [np.float32(leaf) if type(leaf) is float else leaf for leaf in leaves]
        structure = jax.tree_util.tree_structure(agent)
        same = self.structures.setdefault((algo, cloning), structure)
        return jax.tree_util.tree_unflatten(same, leaves)

    def start(self, cloning_updates: int) -> None:
        """Clone the data, then make the agent that is fine-tuned, with the cloned flow."""
        flow = None
        if cloning_updates > 0:
            self.agent = self.create(CLONER, cloning=True)
            self.train(cloning_updates)
            flow = self.agent.network.params["modules_actor_slow"]
        self.agent = self.create(self.algo, cloning=False)
        if flow is not None:
            network = self.agent.network
            params = {**network.params, **{f"modules_{name}": flow for name in FLOWS}}
            self.agent = self.agent.replace(network=network.replace(params=params))

    def train(self, updates: int) -> dict[str, float]:
        """Do some updates; return the means of what they report."""
        import jax
        import numpy as np

        settings, infos = self.settings, []
        for _ in range(updates):
            batch = self.dataset.sample_sequence(
                settings["batch_size"], settings["horizon_length"], settings["discount"]
            )
            self.agent, info = self.agent.update(batch)
            infos.append(info)
        infos = jax.device_get(infos)
        means = {name: float(np.mean([info[name] for info in infos])) for name in infos[0]}
        if "dual/lambda" in means:  # theirs is the product
            means["lam_raw"] = means["dual/lambda"] / settings["lam_scale"]
        return means

    def act(self, observations: list, noise: list) -> list:
        """Return the actions `[n, H A]` that the fine-tuned flow makes of noise `[n, H A]`."""
        import numpy as np

        actions = self.agent.compute_flow_actions(
            np.asarray(observations, np.float32), np.asarray(noise, np.float32), model="fast"
        )
        return np.asarray(actions).tolist()

    def save(self, path: str) -> None:
        """Write the agent and numpy's generator, as an npz file."""
        import jax
        import numpy as np

        leaves = map(np.asarray, jax.tree_util.tree_leaves(self.agent))
        arrays = {f"leaf_{index:04d}": leaf for index, leaf in enumerate(leaves)}
        _, keys, place, _, _ = np.random.get_state()
        with open(f"{path}.partial", "wb") as file:
            np.savez(file, keys=keys, place=place, **arrays)
        os.replace(f"{path}.partial", path)

    def load(self, path: str) -> None:
        """Go on from a file that `save` wrote."""
        import jax
        import numpy as np

        self.create(self.algo, cloning=False)
        with np.load(path) as file:
            leaves = [file[name] for name in sorted(file.files) if name.startswith("leaf_")]
            np.random.set_state(("MT19937", file["keys"], int(file["place"]), 0, 0.0))
        structure = self.structures[self.algo, False]
        self.agent = jax.tree_util.tree_unflatten(structure, leaves)
