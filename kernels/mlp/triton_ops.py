"""Triton passes of the stacked MLP, registered with torch.library and wrapped for autograd.

Both passes read their inputs as two parts, `observations` `[S, B, O]` and optionally points `x`
`[S, >= K, B, D]` at times t_k = (k + shift) / K; without `x` they are a plain MLP on the first.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.mlp.weights import MLPWeights, group

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "mlp_triton_forward(Tensor[] weights, bool norm, Tensor observations, Tensor? x, int steps, "
    "int shift, str precision, bool train) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "mlp_triton_backward(Tensor[] weights, bool norm, Tensor observations, Tensor? x, int steps, "
    "int shift, Tensor pre, Tensor out, Tensor mean, Tensor rstd, Tensor cotangent, "
    "str precision, bool want_inputs, bool want_weights) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def plan_of(weights: MLPWeights, observations: Tensor, x: Tensor | None, precision: str):
    """Return the plan of a pass that keeps its tape."""
    from trqam_fast.kernels.mlp.triton_weights import make_plan

    dim = 0 if x is None else x.shape[-1]
    obs = observations.shape[-1]
    return make_plan(weights, precision, obs=obs, dim=dim, time=int(dim > 0), train=True)


def inputs_of(observations: Tensor, x: Tensor | None, steps: int, shift: int):
    """Return the inputs with dense rows."""
    from trqam_fast.kernels.mlp.triton import Inputs

    observations = observations.contiguous()
    if x is None:
        return Inputs(observations, observations)
    return Inputs(observations, x if x[0].is_contiguous() else x.contiguous(), steps, shift)


def _forward(tensors, norm, observations, x, steps, shift, precision, train):
    from trqam_fast.kernels.mlp.triton import forward_pass

    weights = group(tensors, norm)
    plan = dataclasses.replace(plan_of(weights, observations, x, precision), train=train)
    inputs = inputs_of(observations, x, steps, shift)
    result, tape = forward_pass(weights, inputs, plan, precision)
    return result, *tape[:4]


def _forward_fake(tensors, norm, observations, x, steps, shift, precision, train):
    from trqam_fast.kernels.mlp.triton import empty_tape

    weights = group(tensors, norm)
    plan = dataclasses.replace(plan_of(weights, observations, x, precision), train=train)
    runs, batch, _ = observations.shape
    groups, rows = runs * plan.ensemble, (1 if x is None else steps) * batch
    result = observations.new_empty(groups, rows, plan.out)
    return result, *empty_tape(plan, groups, rows, result)[:4]


def _backward(
    tensors, norm, observations, x, steps, shift, pre, out, mean, rstd, cotangent, precision,
    want_inputs, want_weights,
):  # fmt: skip
    from trqam_fast.kernels.mlp.triton import backward_pass
    from trqam_fast.kernels.mlp.triton_config import Tape

    weights = group(tensors, norm)
    return backward_pass(
        weights, inputs_of(observations, x, steps, shift), Tape(pre, out, mean, rstd),
        cotangent.contiguous(), plan_of(weights, observations, x, precision), precision,
        want_inputs=want_inputs, want_weights=want_weights,
    )  # fmt: skip


def _backward_fake(
    tensors, norm, observations, x, steps, shift, pre, out, mean, rstd, cotangent, precision,
    want_inputs, want_weights,
):  # fmt: skip
    from trqam_fast.kernels.mlp.triton import empty_gradients, vector_kinds

    plan = plan_of(group(tensors, norm), observations, x, precision)
    groups, rows = cotangent.shape[:2]
    new = cotangent.new_empty
    return (
        *empty_gradients(plan, groups, rows, cotangent, want_inputs, want_weights),
        new(vector_kinds(plan, want_weights), plan.depth, groups, plan.width),
        new(groups if want_weights else 0, plan.out),
    )


for _device in ("CPU", "CUDA"):
    _library.impl("mlp_triton_forward", _forward, _device)
    _library.impl("mlp_triton_backward", _backward, _device)
torch.library.register_fake("trqam_fast::mlp_triton_forward", _forward_fake, lib=_library)
torch.library.register_fake("trqam_fast::mlp_triton_backward", _backward_fake, lib=_library)


def weight_gradients(
    weights: MLPWeights, d_in: Tensor, d_hid: Tensor, d_out: Tensor, sums: Tensor, d_last: Tensor
) -> list[Tensor]:
    """Cut padding and packing from the kernels' gradients: one for each of `weights.tensors`."""
    kernels = [d_in, *d_hid.unbind(0), d_out]
    vectors = [*sums[0].unbind(0), d_last, *sums[1:].flatten(0, 1).unbind(0)]
    found = []
    for tensor, gradient in zip(weights.tensors, [*kernels, *vectors], strict=True):
        for axis, size in enumerate(tensor.shape[len(weights.lead) :], start=1):
            gradient = gradient.narrow(axis, 0, size)
        found.append(gradient.unflatten(0, weights.lead))
    return found


class _TritonMLP(torch.autograd.Function):
    """The whole stack as one node."""

    @staticmethod
    def forward(ctx, norm, precision, train, inputs, *tensors):
        result, *tape = torch.ops.trqam_fast.mlp_triton_forward(
            list(tensors), norm, inputs, None, 1, 0, precision, train
        )
        ctx.norm, ctx.precision = norm, precision
        ctx.save_for_backward(inputs, *tape, *tensors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        inputs, *saved = ctx.saved_tensors
        tape, tensors = saved[:4], saved[4:]
        want_inputs, want_weights = ctx.needs_input_grad[3], any(ctx.needs_input_grad[4:])
        d_inputs, *gradients = torch.ops.trqam_fast.mlp_triton_backward(
            tensors, ctx.norm, inputs, None, 1, 0, *tape, cotangent, ctx.precision,
            want_inputs, want_weights,
        )  # fmt: skip
        d_inputs = d_inputs.unflatten(0, (inputs.shape[0], -1)).sum(1) if want_inputs else None
        found: list[Tensor | None] = [None] * len(tensors)
        if want_weights:
            found = [*weight_gradients(group(tensors, ctx.norm), *gradients)]
        return None, None, None, d_inputs, *found


def mlp(weights: MLPWeights, inputs: Tensor, precision: str) -> Tensor:
    """Apply the MLPs to `inputs` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    tensors = weights.tensors
    train = torch.is_grad_enabled() and any(t.requires_grad for t in (inputs, *tensors))
    result = _TritonMLP.apply(weights.layer_norm, precision, train, inputs, *tensors)
    return result.view(*weights.lead, inputs.shape[1], weights.out_features)


def forward_along(
    velocity: MLPWeights, observations: Tensor, points: Tensor, precision: str
) -> Tensor:
    """Return the field at (s, X_k, t_k), `[S, K * B, D]`, without gradients."""
    return torch.ops.trqam_fast.mlp_triton_forward(
        list(velocity.tensors), velocity.layer_norm, observations, points,
        points.shape[1], 0, precision, False,
    )[0]  # fmt: skip
