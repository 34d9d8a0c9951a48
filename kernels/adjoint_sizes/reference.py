"""The sizes of adjoints in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor


def adjoint_sizes(
    terminal: Tensor, adjoint: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return mean, deviation, maximum and gain; see the package's `adjoint_sizes`."""
    size = terminal.abs().flatten(1)
    std, mean = torch.std_mean(size, 1, correction=0)
    gain = None
    if adjoint is not None:
        start = largest_norm(terminal.unsqueeze(1)).clamp_min(torch.finfo(terminal.dtype).tiny)
        gain = largest_norm(adjoint) / start
    return mean, std, size.amax(1), gain


def largest_norm(adjoint: Tensor) -> Tensor:
    """Return the largest over the steps of the root mean square over a batch of |a_k|, `[S]`.

    Args:
        adjoint: `[S, K, B, D]`.
    """
    return adjoint.square().sum(-1).mean(-1).amax(-1).sqrt()
