"""The tanh-Gaussian policy of edits and latents, and its entropy coefficient."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Entropy(NamedTuple):
    """The entropy of a policy and what holds it to a target, `[S]` each.

    Attributes:
        alpha: The coefficient exp(log_alpha).
        value: -mean_b log pi, the entropy H.
        policy_loss: -alpha H, the policy's part of the loss, where alpha is a constant.
        alpha_loss: alpha (H - target), the coefficient's, where H is: alpha falls where the entropy
            is above the target and rises where it is below.
    """

    alpha: Tensor
    value: Tensor
    policy_loss: Tensor
    alpha_loss: Tensor


def held_entropy(log_alpha: Tensor, log_prob: Tensor, target: float) -> Entropy:
    """Return the entropy of sampled log-densities `[S, n]` and its losses.

    Args:
        log_alpha: `[S, 1]`, trained.
        log_prob: log pi of the samples, `[S, n]`.
        target: The entropy to hold.
    """
    alpha = log_alpha.exp().squeeze(-1)
    entropy = -log_prob.mean(-1)
    policy_loss = -alpha.detach() * entropy
    return Entropy(alpha, entropy, policy_loss, alpha * (entropy.detach() - target))
