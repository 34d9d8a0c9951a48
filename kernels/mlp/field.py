"""First layer of a velocity field v(s, x, t): its three inputs enter separately.

The observation's share is the same at all K flow steps, and the time's share is one row per step,
so both are computed once and only `x W_x` is left for the loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.mlp.weights import MLPWeights


class FirstLayer(NamedTuple):
    """Views of the first kernel: `[S, O, W]`, `[S, D, W]` and `[S, 1, W]`."""

    observation: Tensor
    action: Tensor
    time: Tensor


def first_layer(weights: MLPWeights, obs_dim: int) -> FirstLayer:
    """Split the first kernel `[S, O + D + 1, W]` by input."""
    kernel = weights.kernels[0]
    dim = kernel.shape[1] - obs_dim - 1
    return FirstLayer(*kernel.split([obs_dim, dim, 1], dim=1))


def static_share(weights: MLPWeights, observations: Tensor, times: Tensor) -> Tensor:
    """Return `s W_s + t_k w_t + b` for all steps, `[S, K, N, W]`, for `times` `[K]`."""
    first = first_layer(weights, observations.shape[-1])
    share = torch.baddbmm(weights.biases[0].unsqueeze(1), observations, first.observation)
    return share.unsqueeze(1) + times.view(1, -1, 1, 1) * first.time.unsqueeze(1)
