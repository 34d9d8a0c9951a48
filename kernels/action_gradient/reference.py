"""The gradient of values in the action in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.mlp import reference
from trqam_fast.kernels.mlp.weights import MLPWeights


def action_gradient(
    critic: MLPWeights, observations: Tensor, x: Tensor, clip: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradient and the values; see the package's `action_gradient`."""
    with torch.enable_grad():
        actions = (x.clamp(-1.0, 1.0) if clip else x.detach()).requires_grad_()
        values = reference.mlp(critic, torch.cat([observations, actions], dim=-1)).squeeze(-1)
        mean = torch.full_like(values, 1.0 / values.shape[1])  # The gradient of a mean.
        (gradient,) = torch.autograd.grad(values, actions, mean)
    return scaled(gradient, x, clip, scale), values.detach()


def scaled(gradient: Tensor, x: Tensor, clip: bool, scale: float) -> Tensor:
    """Return a gradient in clipped actions as one in X, times `scale`."""
    if clip:  # The clamp's derivative, zero from the first numbers beyond 1 on.
        beyond = 1.0 + torch.finfo(x.dtype).eps
        gradient = torch.ops.aten.hardtanh_backward(gradient, x, -beyond, beyond)
    return gradient if scale == 1.0 else scale * gradient
