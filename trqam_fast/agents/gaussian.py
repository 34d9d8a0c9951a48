"""The tanh-Gaussian policy of edits and latents, and its entropy coefficient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_STD_RANGE = (-20.0, 2.0)


def tanh_gaussian(outputs: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample e = tanh(u), u = mu + exp(l) eps, from a network's outputs [mu, l].

    l is clipped to [-20, 2], without a gradient outside. The density is that of e, from u:
    log pi(e) = sum_d [-eps^2 / 2 - l - log(2 pi) / 2] - sum_d 2 (log 2 - u - log(1 + e^{-2u})).

    Args:
        outputs: `[..., 2 D]`.
        eps: `[..., D]`, standard normal.

    Returns:
        e `[..., D]`, log pi(e) `[...]`, and l `[..., D]`; differentiable in `outputs`.
    """
    mean, log_std = outputs.chunk(2, dim=-1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    u = mean + log_std.exp() * eps
    normal = -0.5 * eps.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    # PyTorch's softplus is linear above 20, which shows in float64.
    softplus = torch.logaddexp(-2.0 * u, torch.zeros_like(u))
    return u.tanh(), (normal - 2.0 * (math.log(2.0) - u - softplus)).sum(-1), log_std
