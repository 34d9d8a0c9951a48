"""Lean adjoint sweep in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Velocity, as_function


def lean_adjoint(
    base_velocity: Velocity, observations: Tensor, trajectory: Tensor, terminal_adjoint: Tensor
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    field = as_function(base_velocity)
    flow_steps = trajectory.shape[1] - 1
    h = 1.0 / flow_steps
    adjoint = terminal_adjoint
    adjoints: list[Tensor] = []
    for k in range(flow_steps - 1, -1, -1):
        t_next = k / flow_steps + h

        def drift(x: Tensor, t_next: float = t_next) -> Tensor:
            time = torch.full_like(x[..., :1], t_next)
            return 2.0 * field(observations, x, time) - x / t_next

        _, pullback = torch.func.vjp(drift, trajectory[:, k])
        adjoint = adjoint + h * pullback(adjoint)[0]
        adjoints.append(adjoint)
    return torch.stack(adjoints[::-1], dim=1)
