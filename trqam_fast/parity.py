"""Replay a recorded run of the authors' implementation and report every deviation.

python -m trqam_fast.parity tests/data/trqam_chunked.npz
"""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import json
import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

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
from trqam_fast.authors import Deviations, agent_tensors, named_tensors
from trqam_fast.damage import reading
from trqam_fast.data.batch import Batch
from trqam_fast.data.npz import read_arrays
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.kernels import Backend, Precision
from trqam_fast.text import printable

TOLERANCES = {"float64": 1e-10, "float32": 1e-3}
NO_RECORDING = "is not a recorded run", "give an npz file"
"""What is said of a damaged recording, and what helps."""
LOGGED = ("grad/norm", "grad/max", "grad/min")
"""What is logged of every update."""
UNSUPPORTED = {"fql_alpha": 0.0, "residual": False}
THEIR_DEFAULTS = {"inv_temp": 0.3, "edit_scale": 0.0}
"""Those of the authors that differ from ours, for recordings without them."""


class CriticStage:
    """QAM's first stage as its authors have it, ``bc_only``: it trains the critics too. A mixin."""

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the cloning loss, and the noise of the next actions."""
        kept = ("bc_x0", "next_action", "next_edit_eps")
        return {name: shape for name, shape in super().draws().items() if name in kept}

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Return the sum of the losses of critics and cloned field."""
        next_actions = self.act(batch.next_observations, self.policy_noise(noise))
        next_values = self.critic.next_values(self, batch, next_actions)
        q = self.data_values(batch)
        critic_loss, metrics = critics.temporal_difference(self, q, next_values, batch)
        cloning_loss = self.cloning_loss(batch, noise)
        metrics |= {"bc_loss": cloning_loss.detach()}
        return {MAIN: critic_loss + cloning_loss}, Terms(metrics, {"next_actions": next_actions})


class QAMCriticStage(CriticStage, QAMAgent):
    """That of QAM."""


class QAMECriticStage(CriticStage, QAMEAgent):
    """That of QAM-E, whose edit policy acts and rests."""


FIRST_STAGES = {
    "trqam": ALGORITHMS["bc"], "sqam": ALGORITHMS["bc"], "qam": QAMCriticStage,
    "qam-e": QAMECriticStage,
}  # fmt: skip
"""What ``bc_only`` makes of an algorithm; of the others nothing."""


@dataclass(frozen=True)
class ParityArgs:
    """Replay a recorded run and print the worst deviation of everything it recorded.

    A deviation is max|ours - recorded| / max(1, max|recorded|) over a tensor. The exit status is
    1 if any deviation exceeds the tolerance. What nothing of ours stands for is named at the end.
    """

    file: Path
    """Recorded run, an npz file."""
    backend: Backend = "auto"
    """Implementation of the ops; triton needs --dtype float32."""
    precision: Precision = "ieee"
    """Operands of matrix products; tf32 and fp16 need Triton, bf16 that or cpp, and all three a
    larger --tolerance."""
    device: str = "cpu"
    """Torch device."""
    dtype: Literal["float64", "float32"] = "float64"
    """Floating-point type of the replay."""
    tolerance: float | None = None
    """Largest deviation allowed; by default 1e-10 in float64 and 1e-3 in float32."""


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


def make_agent(
    recording: Recording, args: ParityArgs, agent_class: type[Agent] | None = None
) -> Agent:
    """Build the agent of a recording with its initial weights and dual variables."""
    meta = recording.meta
    kind = agent_class or recording.agent_class
    agent = kind(
        recording.config, meta["obs_dim"], meta["act_dim"], [0],
        dtype=getattr(torch, args.dtype), device=args.device, backend=args.backend,
        precision=args.precision,
    )  # fmt: skip
    with torch.no_grad():
        for name, tensor in agent_tensors(agent).items():
            initial = recording.require(f"init/{name}")
            if tuple(initial.shape) != tuple(tensor.shape[1:]):
                raise UsageError(
                    f"{args.file}: init/{name} has shape {list(initial.shape)}; the recording's "
                    f"config implies {list(tensor.shape[1:])}"
                )
            tensor[0].copy_(torch.from_numpy(initial))
        for name, tensor in agent.state().items():
            if meta.get(f"init_{name}") is not None:
                tensor.fill_(meta[f"init_{name}"])
    return agent


def load_update(recording: Recording, index: int, agent: Agent) -> tuple[Batch, Noise]:
    """Batch and noise of one recorded update, with the run axis added."""

    def tensor(name: str) -> Tensor:
        array = recording.require(f"update{index}/{name}")
        return torch.from_numpy(array).to(agent.device, agent.dtype).unsqueeze(0)

    batch = Batch(
        tensor("batch/observations"),
        tensor("batch/actions"),
        tensor("batch/rewards")[..., -1],
        tensor("batch/masks")[..., -1],
        tensor("batch/valid")[..., -1],
        tensor("batch/next_observations")[..., -1, :],
    )
    noise = {"bc_t": tensor("noise/bc_t")}
    for name, shape in agent.draws().items():
        path = f"noise/{agent.recorded.noise.get(name, name)}"
        recorded = tensor(path)
        expected = (shape[0] + (name in agent.recorded.one_more), *shape[1:])
        if recorded.shape[1:] != expected:
            raise UsageError(
                f"{recording.path}: update{index}/{path} has shape {list(recorded.shape[1:])}, "
                f"config implies {list(expected)}; the recording is damaged"
            )
        noise[name] = recorded[:, : shape[0]]
    return batch, noise


def compare_scalars(
    deviations: Deviations, agent: Agent, terms: Terms, gradient: Tensor, info: dict[str, float]
) -> None:
    """Compare every scalar that the authors log for one update."""
    metrics = {name: value[0] for name, value in terms.metrics.items()}
    for recorded, ours in agent.recorded.infos.items():
        if recorded in info and ours in metrics:
            deviations.add(recorded, metrics[ours], info[recorded])
    for name, value in derived_scalars(agent, metrics).items():
        if name in info:
            deviations.add(name, value, info[name])
    # The authors log the sum of the tensors' norms, and their extremes include the targets' zeros.
    parts = agent.online.unflatten(gradient)
    parts = named_tensors(agent.online, parts, {}).values()
    deviations.add("grad/norm", sum(part.norm() for part in parts), info["grad/norm"])
    deviations.add("grad/max", gradient.max().clamp(min=0.0), info["grad/max"])
    deviations.add("grad/min", gradient.min().clamp(max=0.0), info["grad/min"])


def derived_scalars(agent: Agent, metrics: dict[str, Tensor]) -> dict[str, Tensor | float]:
    """Return what the authors log and we have in other terms, under their names."""
    derived: dict[str, Tensor | float] = {}
    config = agent.config
    if agent.controller is not None and "path_kl" in metrics:
        effective = config.lam_scale * metrics["lam"]
        limit = config.kl_clip_coef * config.kl_budget
        derived = {
            "dual/lambda": effective,
            "dual/sigma_scale": effective.clamp(min=1e-8).rsqrt(),
            "dual/kl_budget": config.kl_budget,
            "dual/kl_estimate_clipped": metrics["path_kl"].clamp(max=limit),
            "dual/kl_clipped": (metrics["path_kl"] > limit).double(),
        }
        if "value_gap" in metrics:
            total = metrics["critic_loss"] + config.value_penalty * metrics["value_gap"]
            derived["critic/critic_loss_total"] = total
    if "edit_alpha" in metrics:
        alpha, entropy = metrics["edit_alpha"], metrics["edit_entropy"]
        excess = entropy - config.edit_target_entropy * agent.dim
        derived["actor/edit_entropy_loss"] = -alpha * entropy
        derived["actor/edit_alpha_loss"] = alpha * excess
    if "latent_alpha" in metrics:
        excess = metrics["latent_entropy"] - config.target_entropy * agent.dim
        alpha_loss = metrics["latent_alpha"] * excess
        policy_loss = metrics["actor_loss"] + alpha_loss
        derived["actor/alpha_loss"] = alpha_loss
        derived["actor/total_loss"] = metrics["bc_loss"] + policy_loss
        derived["critic/total_loss"] = metrics["critic_loss"] + metrics["distill_loss"]
    return derived


def replay(args: ParityArgs, agent_class: type[Agent] | None = None) -> dict[str, float]:
    """Replay the recording and return the worst deviation of every recorded quantity.

    `agent_class` is another implementation of the recorded algorithm, which does the updates.
    """
    recording = Recording(args.file)
    agent = make_agent(recording, args, agent_class)
    names = agent.recorded
    deviations = Deviations()
    for index, info in enumerate(recording.meta["infos"]):
        batch, noise = load_update(recording, index, agent)
        gradient, terms = agent.gradients(batch, noise)
        recorded = recording.group(f"update{index}/out/")
        for theirs, ours in names.outputs.items():
            if theirs in recorded and ours in terms.outputs:
                deviations.add(f"out/{theirs}", terms.outputs[ours][0], recorded[theirs])
        if "ts" in recorded and isinstance(agent, QAMAgent):
            times = np.reshape(agent.schedule.times, (-1, 1, 1))
            deviations.add("out/ts", np.broadcast_to(times, recorded["ts"].shape), recorded["ts"])
        unclipped = gradient.clone()
        agent.apply(gradient, terms)
        compare_scalars(deviations, agent, terms, unclipped, info)
        gradients = recording.group(f"update{index}/grad/")
        parts = named_tensors(agent.online, agent.online.unflatten(unclipped), names.networks)
        for name, part in parts.items():
            if name in gradients:
                deviations.add(f"grad/{name}", part[0], gradients[name])
    ours = agent_tensors(agent)
    for name, tensor in ours.items():
        deviations.add(f"final/{name}", tensor[0], recording.require(f"final/{name}"))
    # What a first stage has no use for stays as it was.
    for name, final in recording.group("final/").items():
        if name not in ours:
            deviations.add(f"final/{name}", recording.require(f"init/{name}"), final)
    for info in recording.meta["infos"]:
        for name in ("lam", "kl_ema"):
            initial = recording.meta[f"init_{name}"]
            if f"{name}_raw" in info and f"{name}_raw" not in names.infos and initial is not None:
                deviations.add(f"{name}_raw", initial, info[f"{name}_raw"])
    return deviations.worst


def main(argv: list[str] | None = None) -> int:
    """Replay, print the table, return the exit status."""
    import tyro  # Here, so that `replay` needs no command line.

    positional = (tyro.conf.PositionalRequiredArgs,)
    args = tyro.cli(ParityArgs, args=argv, prog="python -m trqam_fast.parity", config=positional)
    check_device(args.device)
    tolerance = TOLERANCES[args.dtype] if args.tolerance is None else args.tolerance
    if not 0.0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance is {tolerance}; use a number of 0 or more")
    worst = replay(args)
    width = max(len(name) for name in worst)
    for name, deviation in sorted(worst.items(), key=lambda item: -item[1]):
        print(f"{name:{width}}  {deviation:9.2e}{'' if deviation <= tolerance else '  TOO LARGE'}")
    failures = sum(deviation > tolerance for deviation in worst.values())
    verdict = f"{failures} above" if failures else "all within"
    print(f"{len(worst)} quantities, {verdict} {tolerance:g}; worst {max(worst.values()):.2e}")
    left = sorted(Recording(args.file).quantities - worst.keys())
    if left:
        print(f"not compared, as nothing of ours stands for it: {printable(', '.join(left), 400)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
