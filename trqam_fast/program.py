"""A policy as one function of tensors, for other runtimes: torch.export and ONNX."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trqam_fast.agents import Agent
from trqam_fast.errors import UsageError
from trqam_fast.files import written_whole
from trqam_fast.simulator.bounds import float32_bounds
from trqam_fast.training.interface import Sizes


class Acting(nn.Module):
    """Acting by the agent's own code, in float32 on the CPU by the ``reference`` backend.

    Inside are the flow's K steps or whatever else the algorithm acts with, clipping, the choice
    among N candidates and the environment's units. Outside is the noise alone.

    Args:
        agent: S runs.
        sizes: What the policy takes and gives.
        run: Index of the run in [0, S).
    """

    def __init__(self, agent: Agent, sizes: Sizes, run: int) -> None:
        super().__init__()
        self.agent = copy.copy(agent)
        self.agent.backend = "reference"
        self.agent.options = {"backend": "reference", "precision": "ieee"}
        # Plain attributes become constants of a program where they are used. Buffers would all be
        # saved with it, also those of critics that are never asked.
        self.networks = {
            name: network.map(lambda tensor: tensor.to("cpu", torch.float32, copy=True))
            for name, network in agent.acting_networks(run).items()
        }
        bounds = float32_bounds(np.asarray(sizes.low), np.asarray(sizes.high))
        self.low, self.high = map(torch.from_numpy, bounds)

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Return actions in the environment's own units, `[B, H, A]`.

        Args:
            observations: `[B, O]`.
            noise: `[B, N noise_dim]`, standard normal, one candidate after the other.
        """
        noise = noise.unflatten(-1, (self.agent.candidates, self.agent.noise_dim))
        chosen = self.agent.choose(self.networks, observations.unsqueeze(0), noise.unsqueeze(0))
        actions = chosen[0].unflatten(-1, (-1, self.agent.act_dim)).clamp(-1.0, 1.0)
        scaled = self.low + (actions + 1.0) / 2.0 * (self.high - self.low)
        return scaled.clamp(self.low, self.high)


def traced(acting: Acting) -> ExportedProgram:
    """Return acting as a program of any number of rows, with the same arguments."""
    agent, rows, batch = acting.agent, 2, Dim("batch")
    observations = torch.zeros(rows, agent.obs_dim)
    noise = torch.zeros(rows, agent.candidates * agent.noise_dim)
    with torch.no_grad():
        return torch.export.export(
            acting,
            (observations, noise),
            dynamic_shapes={"observations": {0: batch}, "noise": {0: batch}},
        )


def write_pt2(acting: Acting, path: Path) -> None:
    """Write a program for `torch.export.load`."""
    program = traced(acting)
    with written_whole(path) as file:
        torch.export.save(program, file)


def write_onnx(acting: Acting, path: Path) -> None:
    """Write a program as ONNX, its output named ``actions``.

    Raises:
        UsageError: a package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"ONNX needs {error.name}, which is not installed; run pip install 'trqam_fast[onnx]'"
        ) from None
    rows = {"observations": {0: "batch"}, "noise": {0: "batch"}}
    with quiet():
        model = torch.onnx.export(
            traced(acting),
            dynamic_shapes=rows,
            output_names=["actions"],
            dynamo=True,
            verbose=False,
        )
    assert model is not None  # as it is asked for by `dynamo`
    with written_whole(path) as file:
        file.write(model.model_proto.SerializeToString())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what PyTorch's exporter says of its own parts and of torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


WRITERS: dict[str, Callable[[Acting, Path], None]] = {
    "pt2": write_pt2, "onnx": write_onnx,
}  # fmt: skip
"""Formats of programs."""


def write_program(
    agent: Agent, sizes: Sizes, run: int, path: Path, format: str | None = None
) -> Path:
    """Write acting with one run as a program; see `trqam_fast.policy.Policy.export`."""
    format = path.suffix.removeprefix(".") if format is None else format
    if format not in WRITERS:
        raise UsageError(
            f"{path} would be of format {format!r}; name a file that ends in .pt2 or .onnx, or "
            "pass format='pt2' or 'onnx'"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}; make it")
    WRITERS[format](Acting(agent, sizes, run), path)
    return path
