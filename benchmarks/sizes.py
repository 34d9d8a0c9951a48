"""Sizes of the benchmarks, and agents, fields and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trqam_fast.agents import Agent, algorithm
from trqam_fast.agents.config import CloningConfig, select
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights
from trqam_fast.networks import MLPShape, ParameterBlock


@dataclass(frozen=True)
class Size:
    """Sizes of one benchmark case."""

    name: str
    width: int
    depth: int
    batch: int
    ensemble: int
    obs_dim: int
    act_dim: int
    horizon: int
    flow_steps: int = 10
    runs: int = 1

    @property
    def dim(self) -> int:
        """Numbers in one output of the policy."""
        return self.act_dim * self.horizon


PAPER = Size("paper", 512, 4, 256, 10, 28, 5, 5)
PAPER_SMALL = replace(PAPER, name="w128-b64", width=128, batch=64)
GRID = [
    replace(PAPER, name=f"w{width}-b{batch}-s{runs}", width=width, batch=batch, runs=runs)
    for width in (128, 512, 1024)
    for batch in (64, 256)
    for runs in (1, 8)
]
QUICK = {"w128-b64-s1"}


def make_config(size: Size, kind: type[Agent]) -> CloningConfig:
    """Return the hyperparameters of an algorithm's agent of this size."""
    values = {
        "batch_size": size.batch,
        "actor_hidden_dims": (size.width,) * size.depth,
        "value_hidden_dims": (size.width,) * size.depth,
        "num_qs": size.ensemble,
        "horizon_length": size.horizon,
        "action_chunking": size.horizon > 1,
        "flow_steps": size.flow_steps,
    }
    return kind.Config(**select(kind.Config, values))


def make_agent(
    size: Size,
    device: str,
    backend: str,
    precision: str,
    algo: str = "trqam",
    agent_class: type[Agent] | None = None,
) -> Agent:
    """Return a fresh agent of an algorithm, or of a class that stands in for it."""
    kind = agent_class or algorithm(algo)
    return kind(
        make_config(size, kind), size.obs_dim, size.act_dim, list(range(size.runs)),
        device=device, backend=backend, precision=precision,
    )  # fmt: skip


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def make_batch(size: Size, device: str) -> Batch:
    """Return a batch of random transitions."""
    ones = torch.ones(size.runs, size.batch, device=device)
    actions = draw(size.runs, size.batch, size.horizon, size.act_dim, device=device, seed=2)
    return Batch(
        draw(size.runs, size.batch, size.obs_dim, device=device, seed=1),
        actions.clamp(-1, 1),
        -ones,
        ones,
        ones,
        draw(size.runs, size.batch, size.obs_dim, device=device, seed=3),
    )


def make_network(size: Size, device: str, seed: int = 0, *, critic: bool = False) -> MLPWeights:
    """Return a trainable velocity field, or the ensemble of critics."""
    hidden = (size.width,) * size.depth
    shape = MLPShape(size.obs_dim + size.dim + 1, hidden, size.dim)
    if critic:
        shape = MLPShape(size.obs_dim + size.dim, hidden, 1, True, size.ensemble)
    block = ParameterBlock({"network": shape}, size.runs, device=device, trainable=True)
    block.initialise([torch.Generator().manual_seed(seed + run) for run in range(size.runs)])
    return block.networks["network"]
