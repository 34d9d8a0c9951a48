"""Euler-Maruyama rollout in plain PyTorch: the specification of the op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Context, Velocity, as_function, scope_of
from trqam_fast.kernels.noise_schedule import NoiseSchedule


def sde_rollout(
    velocity: Velocity,
    base_velocity: Velocity,
    observations: Tensor | Context,
    x0: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule | None = None,
) -> tuple[Tensor, Tensor]:
    """Return trajectory and velocities; see the package's `sde_rollout`."""
    field = as_function(velocity, "sde_rollout", "velocity")
    base_field = as_function(base_velocity, "sde_rollout", "base_velocity")
    x, steps = x0.detach(), noise.shape[1] + 1
    schedule = NoiseSchedule.flow(steps) if schedule is None else schedule
    assert schedule.decay_times is not None  # as `sde_schedule` has found
    trajectory, velocities = [x], []
    for k, t in enumerate(schedule.times):
        time, h = torch.full_like(x[..., :1], t), schedule.step_sizes[k]
        with scope_of(velocity):
            v = field(observations, x, time)
        velocities.append(v)
        with torch.no_grad():
            if k < steps - 1:
                drift = 2.0 * v - x / schedule.decay_times[k]
                diffusion = math.sqrt(h * schedule.g_squared[k])
                x = x + h * drift + diffusion * noise[:, k]
            else:
                with scope_of(base_velocity):
                    x = x + h * base_field(observations, x, time)
        trajectory.append(x)
    return torch.stack(trajectory, dim=1), torch.stack(velocities, dim=1)


def ode_rollout(
    velocity: Velocity,
    observations: Tensor | Context,
    x0: Tensor,
    flow_steps: int,
    schedule: NoiseSchedule | None = None,
) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    field = as_function(velocity, "ode_rollout", "velocity")
    schedule = NoiseSchedule.flow(flow_steps) if schedule is None else schedule
    x = x0
    for t, h in zip(schedule.times, schedule.step_sizes, strict=True):
        with scope_of(velocity):
            x = x + h * field(observations, x, torch.full_like(x[..., :1], t))
    return x
