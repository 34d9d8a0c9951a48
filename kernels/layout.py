"""How tensors lie in memory."""

from __future__ import annotations

from torch import Tensor


def dense_runs(tensor: Tensor) -> Tensor:
    """Return a tensor whose runs are contiguous, wherever each lies: itself, or a copy."""
    return tensor if tensor[0].is_contiguous() else tensor.contiguous()
