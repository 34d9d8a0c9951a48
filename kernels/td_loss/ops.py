"""The critics' loss by Triton's kernel, registered with torch.library and wrapped for autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.checks import refuse_gradient
from trqam_fast.kernels.cotangent import times_cotangent
from trqam_fast.kernels.registration import register
from trqam_fast.kernels.td_loss.inputs import TDInputs


def _forward(
    values, next_values, rewards, masks, valid, policy_values, discount, rho, with_gradient
):
    from trqam_fast.kernels.td_loss import triton

    values, next_values, rewards, masks, valid = (
        tensor.contiguous() for tensor in (values, next_values, rewards, masks, valid)
    )
    policy_values = None if policy_values is None else policy_values.contiguous()
    given = TDInputs(values, next_values, rewards, masks, valid, policy_values)
    return triton.td_loss(given, discount, rho, with_gradient)


def _forward_fake(
    values, next_values, rewards, masks, valid, policy_values, discount, rho, with_gradient
):
    gradient = values.new_empty(values.shape if with_gradient else 0)
    return values.new_empty(5, values.shape[0]), gradient


register(
    "td_loss(Tensor values, Tensor next_values, Tensor rewards, Tensor masks, Tensor valid, "
    "Tensor? policy_values, float discount, float rho, bool with_gradient) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)


class _TDLoss(torch.autograd.Function):
    """The loss, whose gradient in the values the forward pass leaves, and the values' sizes."""

    @staticmethod
    def forward(ctx, values, *constants):
        found, gradient = torch.ops.trqam_fast.td_loss(
            values, *constants, any(ctx.needs_input_grad)
        )
        # Rows of one tensor. Views that a Function returns could not be changed in place.
        loss, *sizes = (row.detach() for row in found)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*sizes)
        ctx.set_materialize_grads(False)
        return loss, *sizes

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        needed = dict(zip(TDInputs._fields[1:], ctx.needs_input_grad[1:6], strict=True))
        refuse_gradient("td_loss", **needed)
        (gradient,) = ctx.saved_tensors
        return times_cotangent(gradient.unsqueeze(-1), grad_loss).squeeze(-1), *[None] * 7


def td_loss(
    inputs: TDInputs, discount: float, rho: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return loss, mean, smallest and largest value, and gap; see the package's `td_loss`."""
    *found, gap = _TDLoss.apply(*inputs, discount, rho)
    return *found, None if inputs.policy_values is None else gap
