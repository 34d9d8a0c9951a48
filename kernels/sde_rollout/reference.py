"""Euler-Maruyama rollout in plain PyTorch: the specification of the op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trqam_fast.kernels.fields import Velocity, as_function
from trqam_fast.kernels.noise_schedule import diffusion_squared


def sde_rollout(
    velocity: Velocity, base_velocity: Velocity, observations: Tensor, x0: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the trajectory and the velocities along it; see the package's `sde_rollout`."""
    field, base_field = as_function(velocity), as_function(base_velocity)
    flow_steps = noise.shape[1] + 1
    h = 1.0 / flow_steps
    g_squared = diffusion_squared(flow_steps).tolist()
    x = x0.detach()
    trajectory, velocities = [x], []
    for k in range(flow_steps):
        t = k / flow_steps
        time = torch.full_like(x[..., :1], t)
        v = field(observations, x, time)
        velocities.append(v)
        with torch.no_grad():
            if k < flow_steps - 1:
                drift = 2.0 * v - x / (t + h)
                x = x + h * drift + math.sqrt(h * g_squared[k]) * noise[:, k]
            else:
                x = x + h * base_field(observations, x, time)
        trajectory.append(x)
    return torch.stack(trajectory, dim=1), torch.stack(velocities, dim=1)


def ode_rollout(velocity: Velocity, observations: Tensor, x0: Tensor, flow_steps: int) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    field = as_function(velocity)
    x = x0
    for k in range(flow_steps):
        time = torch.full_like(x[..., :1], k / flow_steps)
        x = x + field(observations, x, time) / flow_steps
    return x
