r"""Path KL by the compiled extension, registered with torch.library.

D_b = sum_k w_k ||v_k - u_k||^2,  w_k = 2 h / (g_k^2 H)
dD_b / dv_k = 2 w_k (v_k - u_k) = -dD_b / du_k
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import call_extension

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define("path_kl(Tensor velocity, Tensor base_velocity, int horizon) -> (Tensor, Tensor)")
_library.define(
    "path_kl_backward(Tensor velocity, Tensor base_velocity, Tensor grad, int horizon) -> Tensor"
)


def _forward(velocity: Tensor, base_velocity: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    runs, steps, batch, dim = velocity.shape
    per_trajectory = velocity.new_empty(runs, batch)
    mean = velocity.new_empty(runs)
    call_extension(
        "path_kl_forward", velocity, velocity.data_ptr(), base_velocity.data_ptr(),
        per_trajectory.data_ptr(), mean.data_ptr(), runs, steps, batch, dim, horizon,
    )  # fmt: skip
    return per_trajectory, mean


def _backward(velocity: Tensor, base_velocity: Tensor, grad: Tensor, horizon: int) -> Tensor:
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    grad = grad.contiguous()
    runs, steps, batch, dim = velocity.shape
    grad_velocity = torch.empty_like(velocity)
    call_extension(
        "path_kl_backward", velocity, velocity.data_ptr(), base_velocity.data_ptr(),
        grad.data_ptr(), grad_velocity.data_ptr(), runs, steps, batch, dim, horizon,
    )  # fmt: skip
    return grad_velocity


for _device in ("CPU", "CUDA"):
    _library.impl("path_kl", _forward, _device)
    _library.impl("path_kl_backward", _backward, _device)


@torch.library.register_fake("trqam_fast::path_kl", lib=_library)
def _(velocity, base_velocity, horizon):
    runs, _, batch, _ = velocity.shape
    return velocity.new_empty(runs, batch), velocity.new_empty(runs)


@torch.library.register_fake("trqam_fast::path_kl_backward", lib=_library)
def _(velocity, base_velocity, grad, horizon):
    return torch.empty_like(velocity, memory_format=torch.contiguous_format)


class _PathKL(torch.autograd.Function):
    """Per-trajectory path KL and its mean over the batch, differentiable in both velocities."""

    @staticmethod
    def forward(ctx, velocity, base_velocity, horizon):
        ctx.horizon = horizon
        ctx.save_for_backward(velocity, base_velocity)
        return torch.ops.trqam_fast.path_kl(velocity, base_velocity, horizon)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_per_trajectory, grad_mean):
        velocity, base_velocity = ctx.saved_tensors
        grad = grad_per_trajectory + grad_mean.unsqueeze(-1) / velocity.shape[2]
        grad = torch.ops.trqam_fast.path_kl_backward(velocity, base_velocity, grad, ctx.horizon)
        return (
            grad if ctx.needs_input_grad[0] else None,
            -grad if ctx.needs_input_grad[1] else None,
            None,
        )


def path_kl(velocity: Tensor, base_velocity: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Return (per trajectory `[S, B]`, mean `[S]`)."""
    return _PathKL.apply(velocity, base_velocity, horizon)
