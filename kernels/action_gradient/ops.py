"""The compiled gradient of values in the action, registered with torch.library.

A pass and its pullback without autograd: all rows have one cotangent, 1 / E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.action_gradient.reference import scaled
from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import DEPENDENT, TRITON
from trqam_fast.kernels.mlp.cpp import ActionGradient, describe
from trqam_fast.kernels.mlp.ops import check_operands, operands_of
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.registration import register


def _gradient(critic, observations, x, clip, scale, backend, precision, operands):
    weights = MLPWeights.from_tensors(critic)
    if backend in TRITON:
        from trqam_fast.kernels.action_gradient import triton

        if operands:
            check_operands(operands, weights, observations.shape[-1], precision)
        return triton.action_gradient(
            weights, observations, x, clip, scale, precision, operands,
            dependent=backend == DEPENDENT,
        )  # fmt: skip
    actions = x.clamp(-1.0, 1.0) if clip else x
    inputs = torch.cat([observations, actions], dim=-1)
    rows, (numbers, _alive) = x.shape[1], describe(weights)
    values = x.new_empty(*weights.lead, rows)
    each = x.new_empty(*weights.lead, *x.shape[1:])
    fields = ActionGradient(
        network=numbers,
        inputs=inputs.data_ptr(),
        rows=rows,
        observation=observations.shape[-1],
        cotangent=1.0 / weights.lead[1],
        out=values.data_ptr(),
        gradient=each.data_ptr(),
    )
    call("action_gradient", fields, inputs, precision)
    return scaled(each.sum(1), x, clip, scale).contiguous(), values


def _gradient_fake(critic, observations, x, clip, scale, backend, precision, operands):
    lead = MLPWeights.from_tensors(critic).lead
    return x.new_empty(x.shape), x.new_empty(*lead, x.shape[1])


register(
    "action_gradient(Tensor[] critic, Tensor observations, Tensor x, bool clip, float scale, "
    "str backend, str precision, Tensor[] operands) -> (Tensor, Tensor)",
    _gradient,
    _gradient_fake,
)


def action_gradient(
    critic: MLPWeights,
    observations: Tensor,
    x: Tensor,
    clip: bool,
    scale: float,
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradient and the values; see the package's `action_gradient`."""
    operands = operands_of(critic, observations.shape[-1], backend)
    return torch.ops.trqam_fast.action_gradient(
        list(critic.tensors), observations, x, clip, scale, backend, precision, operands
    )
