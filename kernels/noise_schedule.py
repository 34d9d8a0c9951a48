"""The memoryless noise schedule, evaluated one step ahead (SPEC of TRQAM, docs/algorithm.md)."""

from __future__ import annotations

import torch
from torch import Tensor


def flow_times(flow_steps: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return t_k = k / K for k = 0..K-1, shape [K]."""
    return torch.arange(flow_steps, dtype=dtype, device=device) / flow_steps


def diffusion_squared(
    flow_steps: int, *, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """Return g_k^2 = 2 (1 - t_k + h) / (t_k + h) for k = 0..K-1, shape [K].

    Computed in float64 and rounded once, so that every backend uses the same numbers.
    """
    t = torch.arange(flow_steps, dtype=torch.float64, device=device) / flow_steps
    h = 1.0 / flow_steps
    return (2.0 * (1.0 - t + h) / (t + h)).to(dtype)
