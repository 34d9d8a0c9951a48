"""The squared error by Triton's kernel, registered with torch.library and wrapped for autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.checks import refuse_gradient
from trqam_fast.kernels.cotangent import times_cotangent
from trqam_fast.kernels.registration import register


def _forward(prediction, target, valid, with_gradient):
    from trqam_fast.kernels.squared_error import triton

    prediction, target, valid = (t.contiguous() for t in (prediction, target, valid))
    return triton.squared_error(prediction, target, valid, with_gradient)


def _forward_fake(prediction, target, valid, with_gradient):
    gradient = prediction.new_empty(prediction.shape if with_gradient else 0)
    return prediction.new_empty(prediction.shape[0]), gradient


register(
    "squared_error(Tensor prediction, Tensor target, Tensor valid, bool with_gradient) "
    "-> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)


class _SquaredError(torch.autograd.Function):
    """The loss, whose gradient in the predictions the forward pass leaves."""

    @staticmethod
    def forward(ctx, prediction, target, valid):
        loss, gradient = torch.ops.trqam_fast.squared_error(
            prediction, target, valid, any(ctx.needs_input_grad)
        )
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        _, target, valid = ctx.needs_input_grad
        refuse_gradient("squared_error", target=target, valid=valid)
        (gradient,) = ctx.saved_tensors
        return times_cotangent(gradient, grad_loss), None, None


def squared_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the loss, `[S]`; see the package's `squared_error`."""
    return _SquaredError.apply(prediction, target, valid)
