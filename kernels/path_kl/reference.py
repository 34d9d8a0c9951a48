"""Path KL in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.noise_schedule import diffusion_squared


def path_kl(velocity: Tensor, base_velocity: Tensor, horizon: int) -> Tensor:
    """Return the path KL of every trajectory, `[S, B]`; see the package's `path_kl`."""
    flow_steps = velocity.shape[1]
    g_squared = diffusion_squared(flow_steps, dtype=velocity.dtype, device=velocity.device)
    per_step = (velocity - base_velocity).square().sum(-1)
    weights = 2.0 / (flow_steps * horizon * g_squared)
    return (weights.view(1, -1, 1) * per_step).sum(1)
