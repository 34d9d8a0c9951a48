"""Cotangents of losses: by one that is known to be ones, nothing need be multiplied."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_cotangent(runs: int, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return ones `[S]` that `times_cotangent` knows for what they are; they are never written."""
    ones = torch.ones(runs, dtype=dtype, device=device)
    ones.unit = True  # type: ignore[attr-defined]  # a mark of this module's own
    return ones


def times_cotangent(gradient: Tensor, cotangent: Tensor) -> Tensor:
    """Return a loss's gradient `[S, K, B, D]` times its cotangent `[S]`.

    With a `unit_cotangent` it is the gradient itself, which saves a launch.
    """
    if getattr(cotangent, "unit", False):
        return gradient
    return gradient * cotangent.view(-1, 1, 1, 1)
