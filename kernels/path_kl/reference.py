"""Path KL in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.noise_schedule import NoiseSchedule, schedule_table


def path_kl(
    velocity: Tensor, base_velocity: Tensor, schedule: NoiseSchedule | None, horizon: int
) -> Tensor:
    """Return the path KL of every trajectory, `[S, B]`; see the package's `path_kl`."""
    h, g_squared = schedule_table(schedule, velocity.shape[1], velocity.dtype, velocity.device)
    per_step = (velocity - base_velocity).square().sum(-1)
    weights = 2.0 * h / (g_squared * horizon)
    return (weights.view(1, -1, 1) * per_step).sum(1)
