"""Replay a recorded run of the authors' implementation and report every deviation.

python -m trqam_fast.parity tests/data/trqam_chunked.npz
"""

from __future__ import annotations

import sys

from trqam_fast.cli import begin, run_command

if __name__ == "__main__":
    begin()

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trqam_fast.agents import (
    Agent,
    Noise,
    QAMAgent,
    Terms,
)
from trqam_fast.authors import Deviations, agent_tensors, named_tensors
from trqam_fast.data.batch import Batch
from trqam_fast.devices import check_device
from trqam_fast.errors import UsageError
from trqam_fast.kernels import Backend, Precision
from trqam_fast.recording import Recording
from trqam_fast.text import printable

TOLERANCES = {"float64": 1e-10, "float32": 1e-3}


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
    for name, value in agent.recorded_scalars(metrics).items():
        if name in info:
            deviations.add(name, value, info[name])
    # The authors log the sum of the tensors' norms, and their extremes include the targets' zeros.
    parts = named_tensors(agent.online, agent.online.unflatten(gradient), {}).values()
    deviations.add("grad/norm", sum(part.norm() for part in parts), info["grad/norm"])
    deviations.add("grad/max", gradient.max().clamp(min=0.0), info["grad/max"])
    deviations.add("grad/min", gradient.min().clamp(max=0.0), info["grad/min"])


def replay(args: ParityArgs, agent_class: type[Agent] | None = None) -> dict[str, float]:
    """Replay the recording and return the worst deviation of every recorded quantity.

    `agent_class` is another implementation of the recorded algorithm, which does the updates.
    """
    return replay_recording(Recording(args.file), args, agent_class)


def replay_recording(
    recording: Recording, args: ParityArgs, agent_class: type[Agent] | None = None
) -> dict[str, float]:
    """Replay what was read; else as `replay`."""
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
            rows = recorded["ts"].shape[1] if recorded["ts"].ndim == 3 else 1
            deviations.add("out/ts", np.tile(times, (1, rows, 1)), recorded["ts"])
        unclipped = gradient.clone()
        agent.apply(gradient, terms)
        compare_scalars(deviations, agent, terms, unclipped, info)
        gradients = recording.group(f"update{index}/grad/")
        parts = named_tensors(agent.online, agent.online.unflatten(unclipped), names.networks)
        for name, part in parts.items():
            if name in gradients:
                deviations.add(f"grad/{name}", part[0], gradients[name])
    tensors = agent_tensors(agent)
    for name, tensor in tensors.items():
        deviations.add(f"final/{name}", tensor[0], recording.require(f"final/{name}"))
    # What a first stage has no use for stays as it was.
    for name, final in recording.group("final/").items():
        if name not in tensors:
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
    recording = Recording(args.file)
    worst = replay_recording(recording, args)
    width = max(len(name) for name in worst)
    for name, deviation in sorted(worst.items(), key=lambda item: -item[1]):
        print(f"{name:{width}}  {deviation:9.2e}{'' if deviation <= tolerance else '  TOO LARGE'}")
    failures = sum(deviation > tolerance for deviation in worst.values())
    verdict = f"{failures} above" if failures else "all within"
    print(f"{len(worst)} quantities, {verdict} {tolerance:g}; worst {max(worst.values()):.2e}")
    left = sorted(recording.quantities - worst.keys())
    if left:
        print(
            f"not compared, as this package has no such quantity: {printable(', '.join(left), 400)}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
