r"""Adjoint-matching loss by the compiled extension or Triton, registered with torch.library.

With r_k = 2 (v_k - u_k) / sigma_k + sigma_k a_k, one pass over the trajectory computes

    L = mean_b sum_k ||r_k||^2,   dL/dv_k = (4 / (B sigma_k)) r_k,   D = mean_b sum_k w_k ||v_k - u_k||^2

so the backward pass only scales the stored gradient by the upstream one.
"""  # noqa: E501

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import call_extension, refuse_gradient

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "adjoint_matching(Tensor velocity, Tensor base_velocity, Tensor adjoint, Tensor lam, "
    "int horizon, bool with_gradient, bool triton) -> (Tensor, Tensor, Tensor)"
)


def _forward(velocity, base_velocity, adjoint, lam, horizon, with_gradient, triton):
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    adjoint, lam = adjoint.contiguous(), lam.contiguous()
    if triton:
        from trqam_fast.kernels.adjoint_matching import triton as kernels

        return kernels.adjoint_matching(
            velocity, base_velocity, adjoint, lam, horizon, with_gradient
        )
    runs, steps, batch, dim = velocity.shape
    loss, path_kl = velocity.new_empty(runs), velocity.new_empty(runs)
    scratch = velocity.new_empty(2 * runs * batch, dtype=torch.float64)
    gradient = torch.empty_like(velocity) if with_gradient else velocity.new_empty(0)
    call_extension(
        "adjoint_matching_forward", velocity, velocity.data_ptr(), base_velocity.data_ptr(),
        adjoint.data_ptr(), lam.data_ptr(), scratch.data_ptr(), loss.data_ptr(),
        path_kl.data_ptr(),
        gradient.data_ptr() if with_gradient else 0, runs, steps, batch, dim, horizon,
    )  # fmt: skip
    return loss, path_kl, gradient


for _device in ("CPU", "CUDA"):
    _library.impl("adjoint_matching", _forward, _device)


@torch.library.register_fake("trqam_fast::adjoint_matching", lib=_library)
def _(velocity, base_velocity, adjoint, lam, horizon, with_gradient, triton):
    runs = velocity.shape[0]
    gradient = (
        torch.empty_like(velocity, memory_format=torch.contiguous_format)
        if with_gradient
        else velocity.new_empty(0)
    )
    return velocity.new_empty(runs), velocity.new_empty(runs), gradient


class _AdjointMatching(torch.autograd.Function):
    """Loss (differentiable in the fine-tuned velocity) and path KL (a constant)."""

    @staticmethod
    def forward(ctx, velocity, base_velocity, adjoint, lam, horizon, triton):
        loss, path_kl, gradient = torch.ops.trqam_fast.adjoint_matching(
            velocity, base_velocity, adjoint, lam, horizon, any(ctx.needs_input_grad), triton
        )
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(path_kl)
        ctx.set_materialize_grads(False)
        return loss, path_kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        refuse_gradient(
            "adjoint_matching",
            base_velocity=ctx.needs_input_grad[1],
            adjoint=ctx.needs_input_grad[2],
            lam=ctx.needs_input_grad[3],
        )
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.view(-1, 1, 1, 1), None, None, None, None, None


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    horizon: int,
    triton: bool,
) -> tuple[Tensor, Tensor]:
    """Return loss and path KL, both `[S]`, by the Triton kernel or by the extension."""
    return _AdjointMatching.apply(velocity, base_velocity, adjoint, lam, horizon, triton)
