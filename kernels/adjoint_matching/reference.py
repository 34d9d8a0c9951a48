"""Adjoint-matching loss in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.adjoint_matching.constants import MIN_LAM
from trqam_fast.kernels.noise_schedule import NoiseSchedule, schedule_table
from trqam_fast.kernels.path_kl.reference import path_kl


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    schedule: NoiseSchedule | None,
    horizon: int,
) -> tuple[Tensor, Tensor]:
    """Return loss and path KL, both `[S]`; see the package's `adjoint_matching`."""
    _, g_squared = schedule_table(schedule, velocity.shape[1], velocity.dtype, velocity.device)
    sigma = torch.sqrt(g_squared / lam.clamp(min=MIN_LAM).unsqueeze(-1)).view(*lam.shape, -1, 1, 1)
    residual = 2.0 * (velocity - base_velocity) / sigma + sigma * adjoint
    loss = residual.square().sum((1, 3)).mean(-1)
    return loss, path_kl(velocity.detach(), base_velocity, schedule, horizon).mean(-1)
