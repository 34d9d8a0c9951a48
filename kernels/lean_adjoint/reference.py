"""Lean adjoint sweep in plain PyTorch: the specification of the op."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Context, Velocity, as_function, scope_of
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.noise_schedule import NoiseSchedule


def lean_adjoint(
    base_velocity: Velocity,
    observations: Tensor | Context,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    field = as_function(base_velocity, "lean_adjoint", "base_velocity")
    pull_back = _pull_back_packed if isinstance(base_velocity, MLPWeights) else _pull_back
    schedule = NoiseSchedule.flow(trajectory.shape[1] - 1) if schedule is None else schedule
    assert schedule.decay_times is not None  # as `sde_schedule` has found
    adjoint = terminal_adjoint
    adjoints: list[Tensor] = []
    for k in range(len(schedule) - 1, -1, -1):
        h, decay = schedule.step_sizes[k], schedule.decay_times[k]
        t_next = schedule.times[k] + h

        def velocity(x: Tensor, t_next: float = t_next) -> Tensor:
            return field(observations, x, torch.full_like(x[..., :1], t_next))

        with scope_of(base_velocity):
            pulled = pull_back(velocity, trajectory[:, k], 2.0 * adjoint)
        adjoint = adjoint + h * (pulled - adjoint / decay)
        adjoints.append(adjoint)
    return torch.stack(adjoints[::-1], dim=1)


def _pull_back_packed(velocity: Callable[[Tensor], Tensor], x: Tensor, adjoint: Tensor) -> Tensor:
    """Return (dv / dX)^T a, itself differentiable."""
    return torch.func.vjp(velocity, x)[1](adjoint)[0]


def _pull_back(velocity: Callable[[Tensor], Tensor], x: Tensor, adjoint: Tensor) -> Tensor:
    """Return (dv / dX)^T a as a constant, by whatever autograd finds inside the field."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = velocity(x)
    gradient = None
    if value.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(value, x, adjoint, allow_unused=True)
        except RuntimeError as error:
            if "heckpoint" not in str(error) or ".grad()" not in str(error):
                raise
            raise RuntimeError(
                "lean_adjoint: base_velocity uses reentrant gradient checkpointing, through which "
                "PyTorch gives no gradient with respect to x; checkpoint with use_reentrant=False"
            ) from error
    if gradient is None:
        raise RuntimeError(
            "lean_adjoint: base_velocity returned a velocity without a gradient with respect to x; "
            "the sweep needs one, so let the field run without torch.no_grad(), "
            "torch.inference_mode() and detach()"
        )
    return gradient
