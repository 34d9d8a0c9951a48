"""Inputs `[s, x, t]` of a velocity field along trajectories."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_inputs(observations: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, x and t of the rows (k, b), `[S, K * B, ...]`, at t_k = k / K.

    Args:
        observations: `[S, B, O]`.
        points: X_0..X_{K-1}, `[S, K, B, D]`.
    """
    runs, steps, batch, _ = points.shape
    times = torch.arange(steps, dtype=points.dtype, device=points.device) / steps
    rows = observations.unsqueeze(1).expand(-1, steps, -1, -1).flatten(1, 2)
    time = times.view(1, -1, 1, 1).expand(runs, -1, batch, 1).flatten(1, 2)
    return rows, points.flatten(1, 2), time
