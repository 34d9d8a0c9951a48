"""Replay a recorded run of the authors' implementation and report every deviation.

python -m trqam_fast.parity tests/data/trqam_chunked.npz
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trqam_fast.agents import Agent, AgentConfig, Batch, BCAgent, Noise, Terms, TRQAMAgent
from trqam_fast.cli import run_command
from trqam_fast.damage import reading
from trqam_fast.data.npz import read_arrays
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.kernels import Backend, MLPWeights, Precision
from trqam_fast.text import printable

TOLERANCES = {"float64": 1e-10, "float32": 1e-3}
NO_RECORDING = "is not a recorded run", "give an npz file"
"""What is said of a damaged recording, and what helps."""
ALGORITHMS = ("trqam", "qam")
LOGGED = ("grad/norm", "grad/max", "grad/min")
DUAL = ("dual/sigma_scale", "dual/kl_estimate_clipped", "dual/kl_clipped")
"""What is logged of every update, and of every dual one."""
UNSUPPORTED = {"edit_scale": 0.0, "fql_alpha": 0.0, "residual": False}


@dataclass(frozen=True)
class ParityArgs:
    """Replay a recorded run and print the worst deviation of everything it recorded.

    A deviation is max|ours - recorded| / max(1, max|recorded|) over a tensor. The exit status is
    1 if any deviation exceeds the tolerance.
    """

    file: Path
    """Recorded run, an npz file."""
    backend: Backend = "auto"
    """Implementation of the ops; triton needs --dtype float32."""
    precision: Precision = "ieee"
    """Operands of matrix products; tf32 and bf16 need triton, and a larger --tolerance."""
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
            self._check_variant(self.meta["config"])
            try:
                self.config = plain_config(self.meta["config"])
            except UsageError as error:
                raise ValueError(str(error)) from None
            self._check_meta()
            for index in range(len(self.meta["infos"])):
                self._check_update(index)

    def _check_variant(self, recorded: dict[str, Any]) -> None:
        for name, neutral in UNSUPPORTED.items():
            if recorded.get(name, neutral) != neutral:
                raise UsageError(
                    f"{self.path}: {name} is {printable(recorded[name])}, a variant of QAM that is "
                    f"not part of this package; record a run with {name} = {neutral}"
                )
        self.cloning_only = bool(recorded.get("bc_only", False))
        if self.cloning_only and self.meta["algo"] != "trqam":
            raise UsageError(
                f"{self.path}: bc_only with {printable(self.meta['algo'])} trains the critic as "
                "well in the authors' code, a variant that is not part of this package; record it "
                "with trqam"
            )

    def _check_meta(self) -> None:
        meta, config = self.meta, self.config
        sizes, duals = (meta["obs_dim"], meta["act_dim"]), (meta["init_lam"], meta["init_kl_ema"])
        if meta["algo"] not in ALGORITHMS or not all(type(n) is int and n > 0 for n in sizes):
            raise ValueError("algo, obs_dim or act_dim is none")
        if duals != (None, None) and not all(map(is_number, duals)):
            raise ValueError("init_lam or init_kl_ema is no number")
        for info in meta["infos"]:
            needed = {*LOGGED, *(DUAL if "dual/lambda" in info else ())}
            if not needed <= info.keys() or not all(map(is_number, info.values())):
                raise ValueError(f"infos lack one of {sorted(needed)}, or hold no number")
        # Compared before memory is asked for: the weights are all in the file.
        nets = [Agent.field_shape(config, *sizes), Agent.critic_shape(config, *sizes)]
        nets = nets[:1] if self.cloning_only else nets
        claimed = sum(math.prod(shape) for net in nets for shape in net.tensor_shapes)
        held = sum(array.size for array in self.group("init/").values())
        if claimed > held:
            raise ValueError(f"config implies {claimed} weights, but {held} are there")

    def _check_update(self, index: int) -> None:
        """Compare the shapes of an update's batch and noise with what the config implies."""
        config, obs_dim, act_dim = self.config, self.meta["obs_dim"], self.meta["act_dim"]
        rows = len(self.require(f"update{index}/batch/observations"))
        horizon, dim = config.horizon_length, act_dim * config.chunk_length
        shapes = {
            "batch/observations": (rows, obs_dim),
            "batch/actions": (rows, horizon, act_dim),
            "batch/rewards": (rows, horizon),
            "batch/masks": (rows, horizon),
            "batch/valid": (rows, horizon),
            "batch/next_observations": (rows, horizon, obs_dim),
            "noise/bc_x0": (rows, dim),
            "noise/bc_t": (rows, 1),
        }
        if not self.cloning_only:
            shapes |= {
                "noise/next_action": (rows, config.best_of_n, dim),
                "noise/sde_x0": (rows, dim),
                "noise/sde_eps": (config.flow_steps, rows, dim),
            }
        for name, shape in shapes.items():
            found = self.require(f"update{index}/{name}").shape
            if found != shape or not rows:
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


def plain_config(recorded: dict[str, Any]) -> AgentConfig:
    """Return the part of a recorded configuration that ours has.

    Raises:
        TypeError, KeyError: a value is of another kind than ours, or the widths are missing.
        UsageError: a value is impossible.
    """
    values = {}
    for field in fields(AgentConfig):
        if field.name not in recorded and type(field.default) is not tuple:
            continue
        value, kind = recorded[field.name], type(field.default)
        if kind is tuple:
            value = tuple(value)
            fits = all(type(width) is int for width in value)
        else:
            fits = is_number(value) if kind is float else type(value) is kind
        if not fits:
            raise TypeError(f"{field.name} is {value}")
        values[field.name] = value
    return AgentConfig(**values)


def tensors_by_name(network: str, weights: MLPWeights) -> dict[str, Tensor]:
    """Our tensors under the recording's names, each still with the run axis."""
    module = "value_net" if "critic" in network else "mlp"
    named = {}
    for layer, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
        named[f"{network}/{module}/Dense_{layer}/kernel"] = kernel
        named[f"{network}/{module}/Dense_{layer}/bias"] = bias
    for layer, (scale, bias) in enumerate(
        zip(weights.norm_scales, weights.norm_biases, strict=True)
    ):
        named[f"{network}/{module}/LayerNorm_{layer}/scale"] = scale
        named[f"{network}/{module}/LayerNorm_{layer}/bias"] = bias
    return named


def agent_tensors(agent: Agent) -> dict[str, Tensor]:
    """All weights of `agent` under the recording's names."""
    named = {}
    for network, weights in agent.online.networks.items():
        named |= tensors_by_name(network, weights)
    if isinstance(agent, TRQAMAgent):
        for network, weights in agent.target.networks.items():
            named |= tensors_by_name(f"target_{network}", weights)
    return named


def make_agent(
    recording: Recording, args: ParityArgs, agent_class: type[TRQAMAgent] = TRQAMAgent
) -> Agent:
    """Build the agent of a recording with its initial weights and dual variables."""
    meta = recording.meta
    options: dict[str, Any] = {
        "dtype": getattr(torch, args.dtype),
        "device": args.device,
        "backend": args.backend,
        "precision": args.precision,
    }
    if recording.cloning_only:
        agent: Agent = BCAgent(recording.config, meta["obs_dim"], meta["act_dim"], [0], **options)
    else:
        agent = agent_class(
            recording.config, meta["obs_dim"], meta["act_dim"], [0], algo=meta["algo"], **options
        )
    with torch.no_grad():
        for name, tensor in agent_tensors(agent).items():
            initial = recording.require(f"init/{name}")
            if tuple(initial.shape) != tuple(tensor.shape[1:]):
                raise UsageError(
                    f"{args.file}: init/{name} has shape {list(initial.shape)}; the recording's "
                    f"config implies {list(tensor.shape[1:])}"
                )
            tensor[0].copy_(torch.from_numpy(initial))
        if isinstance(agent, TRQAMAgent) and meta["init_lam"] is not None:
            agent.lam.fill_(meta["init_lam"])
            agent.kl_ema.fill_(meta["init_kl_ema"])
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
    noise = Noise(tensor("noise/bc_x0"), tensor("noise/bc_t"))
    if isinstance(agent, TRQAMAgent):
        noise = noise._replace(
            next_action=tensor("noise/next_action"),
            sde_x0=tensor("noise/sde_x0"),
            sde_eps=tensor("noise/sde_eps")[:, :-1],
        )
    return batch, noise


class Deviations:
    """Worst deviation by name."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def add(self, name: str, ours: Tensor | float, recorded: np.ndarray | float) -> None:
        """Compare one quantity; NaN counts as infinitely far."""
        if isinstance(ours, Tensor):
            ours = ours.detach().double().cpu().numpy()
        ours, recorded = np.asarray(ours), np.asarray(recorded, dtype=np.float64)
        if ours.shape != recorded.shape:
            deviation = float("inf")
        else:
            scale = max(1.0, float(np.abs(recorded).max(initial=0.0)))
            deviation = float(np.abs(ours - recorded).max(initial=0.0)) / scale
        if not np.isfinite(deviation):
            deviation = float("inf")
        self.worst[name] = max(self.worst.get(name, 0.0), deviation)


def compare_scalars(
    deviations: Deviations, agent: Agent, terms: Terms, gradient: Tensor, info: dict[str, float]
) -> None:
    """Compare every scalar that the authors log for one update."""
    metrics = {name: value[0] for name, value in terms.metrics.items()}
    names = {
        "actor/flow_loss": "bc_loss",
        "actor/adj_loss": "adjoint_loss",
        "actor/fast_loss": "adjoint_loss",
        "actor/path_kl": "path_kl",
        "actor/adj_mean": "adjoint_mean",
        "actor/adj_std": "adjoint_std",
        "actor/adj_max": "adjoint_max",
        "critic/critic_loss": "critic_loss",
        "critic/q_mean": "q_mean",
        "critic/q_max": "q_max",
        "critic/q_min": "q_min",
        "lam_raw": "lam",
        "kl_ema_raw": "kl_ema",
        "dual/kl_ema": "kl_ema",
        "dual/kl_estimate": "path_kl",
    }
    config = agent.config
    for recorded, ours in names.items():
        if recorded in info and ours in metrics:
            deviations.add(recorded, metrics[ours], info[recorded])
    if "dual/lambda" in info:
        effective = config.lam_scale * metrics["lam"]
        limit = config.kl_clip_coef * config.kl_budget
        deviations.add("dual/lambda", effective, info["dual/lambda"])
        deviations.add(
            "dual/sigma_scale", effective.clamp(min=1e-8).rsqrt(), info["dual/sigma_scale"]
        )
        deviations.add(
            "dual/kl_estimate_clipped",
            metrics["path_kl"].clamp(max=limit),
            info["dual/kl_estimate_clipped"],
        )
        clipped = (metrics["path_kl"] > limit).double()
        deviations.add("dual/kl_clipped", clipped, info["dual/kl_clipped"])
    # The authors log the sum of the tensors' norms, and their extremes include the targets' zeros.
    parts = agent.online.unflatten(gradient)
    deviations.add("grad/norm", sum(part.norm() for part in parts), info["grad/norm"])
    deviations.add("grad/max", gradient.max().clamp(min=0.0), info["grad/max"])
    deviations.add("grad/min", gradient.min().clamp(max=0.0), info["grad/min"])


def replay(args: ParityArgs, agent_class: type[TRQAMAgent] = TRQAMAgent) -> dict[str, float]:
    """Replay the recording and return the worst deviation of every recorded quantity.

    `agent_class` is the implementation of TRQAM and QAM that does the updates.
    """
    recording = Recording(args.file)
    agent = make_agent(recording, args, agent_class)
    deviations = Deviations()
    for index, info in enumerate(recording.meta["infos"]):
        batch, noise = load_update(recording, index, agent)
        gradient, terms = agent.gradients(batch, noise)
        recorded = recording.group(f"update{index}/out/")
        ours = {
            "xs": None if terms.trajectory is None else terms.trajectory[0, :-1],
            "adjs": None if terms.adjoint is None else terms.adjoint[0],
            "next_actions": None if terms.next_actions is None else terms.next_actions[0],
        }
        for name, value in ours.items():
            if name in recorded and value is not None:
                deviations.add(f"out/{name}", value, recorded[name])
        unclipped = gradient.clone()
        agent.apply(gradient, terms)
        compare_scalars(deviations, agent, terms, unclipped, info)
        gradients = recording.group(f"update{index}/grad/")
        parts = agent.online.unflatten(unclipped)
        online = {id(leaf): part for leaf, part in zip(agent.online.leaves, parts, strict=True)}
        for name, tensor in agent_tensors(agent).items():
            if name in gradients and id(tensor) in online:
                deviations.add(f"grad/{name}", online[id(tensor)][0], gradients[name])
    for name, tensor in agent_tensors(agent).items():
        deviations.add(f"final/{name}", tensor[0], recording.require(f"final/{name}"))
    return deviations.worst


def main(argv: list[str] | None = None) -> int:
    """Replay, print the table, return the exit status."""
    import tyro  # Here, so that `replay` needs no command line.

    positional = (tyro.conf.PositionalRequiredArgs,)
    args = tyro.cli(ParityArgs, args=argv, prog="python -m trqam_fast.parity", config=positional)
    check_device(args.device)
    tolerance = TOLERANCES[args.dtype] if args.tolerance is None else args.tolerance
    worst = replay(args)
    width = max(len(name) for name in worst)
    for name, deviation in sorted(worst.items(), key=lambda item: -item[1]):
        print(f"{name:{width}}  {deviation:9.2e}{'' if deviation <= tolerance else '  TOO LARGE'}")
    failures = sum(deviation > tolerance for deviation in worst.values())
    verdict = f"{failures} above" if failures else "all within"
    print(f"{len(worst)} quantities, {verdict} {tolerance:g}; worst {max(worst.values()):.2e}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
