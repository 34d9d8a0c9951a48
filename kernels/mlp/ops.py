r"""Compiled CPU passes of the stacked MLP, registered with torch.library and wrapped for autograd.

With pre-activations z_l, activations h_l = gelu(z_l) and layer outputs y_l (= LayerNorm(h_l) when
it is on), l = 0..L-1:

    z_{l+1} = y_l W_{l+1} + b_{l+1}                                       (forward)
    dy_l    = dz_{l+1} W_{l+1}^T                                          (input gradient)
    dh_l    = LayerNorm'(h_l)^T dy_l       dz_l = gelu'(z_l) * dh_l
    dW_{l+1} = y_l^T dz_{l+1}              db_{l+1} = sum over rows of dz_{l+1}

The forward pass keeps gelu'(z_l), which shares its exponential with gelu(z_l), and the normalised
h_l; LayerNorm's scale and shift are folded into the next layer (csrc/mlp_passes.inl).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.mlp.cpp import call, describe, tape_elements
from trqam_fast.kernels.mlp.weights import GradientMemory, MLPWeights, group

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "mlp_cpp_forward(Tensor[] weights, bool norm, Tensor inputs, str precision, bool train) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "mlp_cpp_backward(Tensor[] weights, bool norm, Tensor inputs, Tensor tape, Tensor cotangent, "
    "str precision, bool want_inputs, Tensor(a!)[] gradients) -> Tensor"
)
_library.define(
    "velocity_along_cpp(Tensor[] weights, bool norm, Tensor observations, Tensor points, "
    "str precision) -> Tensor"
)


def _empty_forward(
    weights: MLPWeights, inputs: Tensor, rows: int, train: bool
) -> tuple[Tensor, Tensor]:
    result = inputs.new_empty(weights.lead.numel(), rows, weights.out_features)
    return result, inputs.new_empty(tape_elements(weights, rows) if train else 0)


def _forward(tensors, norm, inputs, precision, train):
    weights, inputs = group(tensors, norm), inputs.contiguous()
    rows = inputs.shape[1]
    result, tape = _empty_forward(weights, inputs, rows, train)
    numbers, _alive = describe(weights)
    call(
        "mlp_forward", inputs, precision, numbers, inputs.data_ptr(), rows, result.data_ptr(),
        tape.data_ptr() if train else 0,
    )  # fmt: skip
    return result, tape


def _empty_backward(weights: MLPWeights, cotangent: Tensor, want_inputs: bool) -> Tensor:
    stack, rows = cotangent.shape[:2]
    return cotangent.new_empty(stack if want_inputs else 0, rows, weights.in_features)


def _backward(tensors, norm, inputs, tape, cotangent, precision, want_inputs, gradients):
    weights, inputs, cotangent = group(tensors, norm), inputs.contiguous(), cotangent.contiguous()
    d_inputs = _empty_backward(weights, cotangent, want_inputs)
    numbers, _alive = describe(weights)
    call(
        "mlp_backward", inputs, precision, numbers,
        describe(group(gradients, norm))[0] if gradients else [], inputs.data_ptr(),
        cotangent.data_ptr(), tape.data_ptr(), inputs.shape[1],
        d_inputs.data_ptr() if want_inputs else 0,
    )  # fmt: skip
    return d_inputs


def _along(tensors, norm, observations, points, precision):
    observations = observations.contiguous()
    points = points if points[0].is_contiguous() else points.contiguous()
    runs, flow_steps, batch, dim = points.shape
    result = points.new_empty(runs, flow_steps, batch, dim)
    numbers, _alive = describe(group(tensors, norm))
    call(
        "velocity_along", points, precision, numbers, batch, observations.shape[-1], dim,
        flow_steps, observations.data_ptr(), points.data_ptr(), points.stride(0),
        result.data_ptr(),
    )  # fmt: skip
    return result


_library.impl("velocity_along_cpp", _along, "CPU")
_library.impl("mlp_cpp_forward", _forward, "CPU")
_library.impl("mlp_cpp_backward", _backward, "CPU")


@torch.library.register_fake("trqam_fast::mlp_cpp_forward", lib=_library)
def _(tensors, norm, inputs, precision, train):
    return _empty_forward(group(tensors, norm), inputs, inputs.shape[1], train)


@torch.library.register_fake("trqam_fast::mlp_cpp_backward", lib=_library)
def _(tensors, norm, inputs, tape, cotangent, precision, want_inputs, gradients):
    return _empty_backward(group(tensors, norm), cotangent, want_inputs)


@torch.library.register_fake("trqam_fast::velocity_along_cpp", lib=_library)
def _(tensors, norm, observations, points, precision):
    return points.new_empty(points.shape)


def new_gradients(memory: GradientMemory | None, tensors: list[Tensor]) -> list[Tensor]:
    """Return memory for the gradients of `tensors`: what their owner offers, or new."""
    offered = memory.take() if memory is not None else None
    contiguous = torch.contiguous_format
    return offered or [torch.empty_like(tensor, memory_format=contiguous) for tensor in tensors]


class _CompiledMLP(torch.autograd.Function):
    """The whole stack as one node: saved tape, one batched backward."""

    @staticmethod
    def forward(ctx, memory, precision, train, norm, inputs, *tensors):
        result, tape = torch.ops.trqam_fast.mlp_cpp_forward(
            list(tensors), norm, inputs, precision, train
        )
        ctx.norm, ctx.precision, ctx.memory = norm, precision, memory
        ctx.save_for_backward(inputs, tape, *tensors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        inputs, tape, *tensors = ctx.saved_tensors
        want_inputs, want_weights = ctx.needs_input_grad[4], any(ctx.needs_input_grad[5:])
        gradients = new_gradients(ctx.memory, tensors) if want_weights else []
        d_inputs = torch.ops.trqam_fast.mlp_cpp_backward(
            tensors, ctx.norm, inputs, tape, cotangent, ctx.precision, want_inputs, gradients
        )
        d_inputs = d_inputs.unflatten(0, (inputs.shape[0], -1)).sum(1) if want_inputs else None
        return *[None] * 4, d_inputs, *(gradients or [None] * len(tensors))


def mlp(weights: MLPWeights, inputs: Tensor, precision: str) -> Tensor:
    """Apply the MLPs to `inputs` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    tensors = weights.tensors
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, *tensors))
    result = _CompiledMLP.apply(
        weights.memory, precision, train, weights.layer_norm, inputs, *tensors
    )
    return result.view(*weights.lead, inputs.shape[1], weights.out_features)


def forward_along(
    velocity: MLPWeights, observations: Tensor, points: Tensor, precision: str
) -> Tensor:
    """Return the field at (s, X_k, t_k), `[S, K, B, D]`, without gradients."""
    return torch.ops.trqam_fast.velocity_along_cpp(
        list(velocity.tensors), velocity.layer_norm, observations, points, precision
    )
