"""What a rollout and a sweep accept as a velocity field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor
from trqam_fast.kernels.mlp.reference import mlp as reference_mlp
from trqam_fast.kernels.mlp.weights import MLPWeights

VelocityFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`v(observations, x, t)` with `[S, N, O]`, `[S, N, D]`, `[S, N, 1]` to `[S, N, D]`."""

Velocity = MLPWeights | VelocityFunction
"""The project's MLP on `[observations, x, t]` as packed weights, or any callable."""


def as_function(velocity: Velocity) -> VelocityFunction:
    """Return `velocity` as a callable; packed weights run in plain PyTorch."""
    if not isinstance(velocity, MLPWeights):
        return velocity

    def field(observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return reference_mlp(velocity, torch.cat([observations, x, t], dim=-1))

    return field


def check_velocity(op: str, name: str, velocity: Velocity, observations: Tensor, dim: int) -> None:
    """Raise unless `velocity` is callable, or an MLP from `[O + dim + 1]` to `[dim]`."""
    if not isinstance(velocity, MLPWeights):
        if not callable(velocity):
            raise TypeError(
                f"{op}: {name} is a {type(velocity).__name__}; pass MLPWeights or a callable "
                "v(observations, x, t)"
            )
        return
    velocity.check(op, name)
    runs, _, obs_dim = observations.shape
    if tuple(velocity.lead) != (runs,):
        raise ValueError(
            f"{op}: {name} has leading axes {list(velocity.lead)}; expected [{runs}], one set of "
            "weights for each run of observations"
        )
    check_tensor(op, f"{name}.kernels[0]", velocity.kernels[0], (runs, obs_dim + dim + 1, None))
    check_tensor(op, f"{name}.kernels[-1]", velocity.kernels[-1], (runs, None, dim))
    check_same(op, observations=observations, **{name: velocity.kernels[0]})
