"""A recorded run of the authors' implementation: what it holds, and of which algorithm it is."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.agents import (
    ALGORITHMS,
    MAIN,
    Agent,
    Losses,
    Noise,
    QAMAgent,
    QAMEAgent,
    Terms,
    critics,
)
from trqam_fast.agents.config import CloningConfig
from trqam_fast.damage import reading
from trqam_fast.data.batch import Batch
from trqam_fast.data.npz import read_arrays
from trqam_fast.errors import UsageError
from trqam_fast.text import printable

NO_RECORDING = "is not a recorded run", "give an npz file"
"""What is said of a damaged recording, and what helps."""
LOGGED = ("grad/norm", "grad/max", "grad/min")
"""What is logged of every update."""
UNSUPPORTED = {"fql_alpha": 0.0, "residual": False}
THEIR_DEFAULTS = {"inv_temp": 0.3, "edit_scale": 0.0}
"""Those of the authors that differ from ours, for recordings without them."""


class QAMCriticStage(QAMAgent):
    """QAM's first stage as its authors have it, ``bc_only``: it trains the critics too."""

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the cloning loss, and the noise of the next actions."""
        kept = ("bc_x0", "next_action", "next_edit_eps")
        return {name: shape for name, shape in super().draws().items() if name in kept}

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Return the sum of the losses of critics and cloned field."""
        policy_noise, critic = self.policy_noise(noise), self.online.networks["critic"]
        assert policy_noise is not None  # as `draws` has it
        next_actions = self.act(batch.next_observations, policy_noise)
        next_values = self.critic.next_values(self, batch, next_actions)
        q = self.critic_values(critic, batch.observations, self.policy_actions(batch))
        critic_loss, metrics = critics.temporal_difference(self, q, next_values, batch)
        cloning_loss = self.cloning_loss(batch, noise)
        metrics |= {"bc_loss": cloning_loss.detach()}
        return {MAIN: critic_loss + cloning_loss}, Terms(metrics, {"next_actions": next_actions})


class QAMECriticStage(QAMCriticStage, QAMEAgent):
    """That of QAM-E, whose edit policy acts and rests."""


FIRST_STAGES = {
    "trqam": ALGORITHMS["bc"], "sqam": ALGORITHMS["bc"], "qam": QAMCriticStage,
    "qam-e": QAMECriticStage,
}  # fmt: skip
"""What ``bc_only`` makes of an algorithm; of the others nothing."""


class Recording:
    """A recorded run: initial and final weights, batches, noise, outputs.

    Raises:
        UsageError: it is of a variant that is not part of this package.
        Damaged: it is no recorded run, or what it says of itself contradicts its arrays.
        Unreadable: the system refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays = read_arrays(path, *NO_RECORDING, kinds="biufU")
        with reading(path, *NO_RECORDING):
            self.meta = json.loads(str(self.arrays.pop("meta")))
            if any(array.dtype.kind == "U" for array in self.arrays.values()):
                raise ValueError("an array holds text")
            self.agent_class = self._check_variant(self.meta["config"])
            try:
                rows = len(self.require("update0/batch/observations"))
                self.config = plain_config(self.agent_class, self.meta, rows)
            except UsageError as error:
                raise ValueError(str(error)) from None
            self._check_meta()
            for index in range(len(self.meta["infos"])):
                self._check_update(index)

    def _check_variant(self, recorded: dict[str, Any]) -> type[Agent]:
        for name, neutral in UNSUPPORTED.items():
            if recorded.get(name, neutral) != neutral:
                raise UsageError(
                    f"{self.path}: {name} is {printable(recorded[name])}, a variant of QAM that is "
                    f"not part of this package; record a run with {name} = {neutral}"
                )
        algo = str(self.meta["algo"]).replace("_", "-")
        if algo == "qam" and recorded.get("edit_scale", 0.0) > 0:
            algo = "qam-e"
        if algo not in ALGORITHMS:
            raise UsageError(
                f"{self.path}: {printable(algo)} is no algorithm of this package; record one of "
                f"{', '.join(ALGORITHMS)}"
            )
        stages = FIRST_STAGES if recorded.get("bc_only") else ALGORITHMS
        return stages.get(algo, ALGORITHMS[algo])

    def _check_meta(self) -> None:
        meta, config = self.meta, self.config
        sizes, duals = (meta["obs_dim"], meta["act_dim"]), (meta["init_lam"], meta["init_kl_ema"])
        if not all(type(n) is int and n > 0 for n in sizes):
            raise ValueError("obs_dim or act_dim is none")
        if duals != (None, None) and not all(map(is_number, duals)):
            raise ValueError("init_lam or init_kl_ema is no number")
        for info in meta["infos"]:
            if not set(LOGGED) <= info.keys() or not all(map(is_number, info.values())):
                raise ValueError(f"infos lack one of {LOGGED}, or hold no number")
        # Compared before memory is asked for: the weights are all in the file.
        nets = self.agent_class.network_shapes(config, *sizes).values()
        claimed = sum(math.prod(shape) for net in nets for shape in net.tensor_shapes)
        held = sum(array.size for array in self.group("init/").values())
        if claimed > held:
            raise ValueError(f"config implies {claimed} weights, but {held} are there")

    def _check_update(self, index: int) -> None:
        """Compare the shapes of an update's batch with what the config implies."""
        config, obs_dim, act_dim = self.config, self.meta["obs_dim"], self.meta["act_dim"]
        rows = len(self.require(f"update{index}/batch/observations"))
        horizon = config.horizon_length
        shapes = {
            "batch/observations": (rows, obs_dim),
            "batch/actions": (rows, horizon, act_dim),
            "batch/rewards": (rows, horizon),
            "batch/masks": (rows, horizon),
            "batch/valid": (rows, horizon),
            "batch/next_observations": (rows, horizon, obs_dim),
            "noise/bc_t": (rows, 1),
        }
        for name, shape in shapes.items():
            found = self.require(f"update{index}/{name}").shape
            if found != shape or rows != config.batch_size:
                raise ValueError(
                    f"update{index}/{name} has shape {list(found)}, config implies {list(shape)}"
                )

    def require(self, name: str) -> np.ndarray:
        """Return an array.

        Raises:
            UsageError: the recording lacks it.
        """
        if name not in self.arrays:
            raise UsageError(f"{self.path}: {name} is missing; the recording is damaged")
        return self.arrays[name]

    @property
    def quantities(self) -> set[str]:
        """Names of all that was recorded of the updates, as `replay` has them."""
        logged = {name for info in self.meta["infos"] for name in info}
        within = {name.partition("/")[2] for name in self.arrays if name.startswith("update")}
        kept = {name for name in within if name.startswith(("out/", "grad/"))}
        return logged | kept | {name for name in self.arrays if name.startswith("final/")}

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose name starts with `prefix`, by the rest of their name."""
        return {
            name[len(prefix) :]: array
            for name, array in self.arrays.items()
            if name.startswith(prefix)
        }


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, and not an integer beyond those with a fraction."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def plain_config(kind: type[Agent], meta: dict[str, Any], rows: int) -> CloningConfig:
    """Return the part of a recorded configuration that the algorithm's has here.

    Args:
        kind: The algorithm.
        meta: What a recording says of itself.
        rows: Those of its batches, which the authors' own number of them does not bind.

    Raises:
        TypeError, KeyError: a value is of another kind than ours, or the widths are missing.
        UsageError: a value is impossible.
    """
    names = kind.recorded
    recorded = THEIR_DEFAULTS | meta["config"] | {"batch_size": rows}
    chunk = recorded["horizon_length"] if recorded["action_chunking"] else 1
    for theirs, ours in names.settings.items():
        if theirs in recorded:
            recorded[ours] = recorded.pop(theirs)
    for name in names.per_dimension:
        if recorded[name] is None:
            recorded[name] = -recorded[f"{name}_multiplier"]
        else:
            recorded[name] = recorded[name] / (meta["act_dim"] * chunk)
    values = {}
    for field in fields(kind.Config):
        default = None if field.default is MISSING else field.default
        if field.name not in recorded and type(default) is not tuple:
            continue
        value, wanted = recorded[field.name], type(default)
        if wanted is tuple:
            value = tuple(value)
            fits = all(type(width) is int for width in value)
        else:
            fits = is_number(value) if wanted is float else type(value) is wanted
        if not fits:
            raise TypeError(f"{field.name} is {value}")
        values[field.name] = value
    return kind.Config(**values)
