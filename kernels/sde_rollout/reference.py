"""Euler-Maruyama rollout in plain PyTorch: the specification of the op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Velocity, as_function
from trqam_fast.kernels.noise_schedule import NoiseSchedule
from trqam_fast.kernels.sde_rollout.inputs import RolloutInputs


def sde_rollout(
    velocity: Velocity, base_velocity: Velocity, inputs: RolloutInputs
) -> tuple[Tensor, Tensor, Tensor]:
    """Return trajectory, velocities and X_K of the ODE; see the package's `sde_rollout`."""
    field, base_field = as_function(velocity), as_function(base_velocity)
    observations, x, steps = inputs.observations, inputs.x0.detach(), inputs.flow_steps
    schedule, h = NoiseSchedule.flow(steps), 1.0 / steps
    trajectory, velocities = [x], []
    for k, t in enumerate(schedule.times):
        time = torch.full_like(x[..., :1], t)
        v = field(observations, x, time)
        velocities.append(v)
        with torch.no_grad():
            if k < steps - 1:
                drift = 2.0 * v - x / (t + h)
                diffusion = math.sqrt(h * schedule.g_squared[k])
                x = x + h * drift + diffusion * inputs.noise[:, k]
            else:
                x = x + h * base_field(observations, x, time)
        trajectory.append(x)
    ode_x = inputs.ode_x0
    if ode_x.shape[1] > 0:
        with torch.no_grad():
            ode_x = ode_rollout(velocity, inputs.ode_observations, ode_x, steps)
    return torch.stack(trajectory, dim=1), torch.stack(velocities, dim=1), ode_x


def ode_rollout(velocity: Velocity, observations: Tensor, x0: Tensor, flow_steps: int) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    field = as_function(velocity)
    x = x0
    for k in range(flow_steps):
        time = torch.full_like(x[..., :1], k / flow_steps)
        x = x + field(observations, x, time) / flow_steps
    return x
