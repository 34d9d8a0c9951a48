"""A field along trajectories in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Context, Velocity, as_function, scope_of
from trqam_fast.kernels.mlp.inputs import stack_inputs
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.noise_schedule import NoiseSchedule, has_own_times


def velocity_along(
    velocity: Velocity,
    observations: Tensor | Context,
    points: Tensor,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Return v(s, X_k, t_k), `[S, K, B, D]`; see the package's `velocity_along`."""
    field = as_function(velocity, "velocity_along", "velocity")
    packed = isinstance(velocity, MLPWeights)
    if packed and isinstance(observations, Tensor) and has_own_times(schedule):
        return field(*stack_inputs(observations, points)).view(points.shape)
    steps = points.shape[1]
    times = [k / steps for k in range(steps)] if schedule is None else schedule.times
    with scope_of(velocity):
        values = [
            field(observations, x, torch.full_like(x[..., :1], t))
            for x, t in zip(points.unbind(1), times, strict=True)
        ]
    return torch.stack(values, 1)
