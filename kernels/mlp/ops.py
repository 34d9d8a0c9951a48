r"""Hand-derived passes through a stack of MLPs, on ATen's kernels.

A `Tape` holds what the passes share. With pre-activations z_l, activations h_l = gelu(z_l) and
layer outputs y_l (= LayerNorm(h_l) when it is on), l = 0..L-1:

    z_{l+1} = y_l W_{l+1} + b_{l+1}                                       (forward)
    dy_l    = dz_{l+1} W_{l+1}^T                                          (input gradient)
    dh_l    = LayerNorm'(h_l)^T dy_l       dz_l = gelu'(z_l) * dh_l
    dW_{l+1} = y_l^T dz_{l+1}              db_{l+1} = sum over rows of dz_{l+1}

Rows of a tape are independent, so a caller can fill it a slice at a time (the K steps of a
rollout) and then go back over all of it in one batched pass, or the other way round (one batched
forward, K sequential input gradients).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.mlp.activation import gelu_, gelu_pullback
from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.weights import MLPWeights

_aten = torch.ops.aten


class Tape(NamedTuple):
    """Stored passes: lists over hidden layers of tensors `[G, N, width]`, G the stack's size."""

    pre: list[Tensor]
    out: list[Tensor]
    mean: list[Tensor]
    rstd: list[Tensor]


def flatten(weights: MLPWeights) -> MLPWeights:
    """Merge leading axes `[S, E]` into one; a field passes through."""
    if len(weights.lead) == 1:
        return weights
    return weights.map(lambda tensor: tensor.flatten(0, 1))


def make_tape(weights: MLPWeights, first: Tensor) -> Tape:
    """Return an empty tape for flat `weights` whose first pre-activations are `first`."""
    stack, rows = first.shape[:2]
    widths = [kernel.shape[-1] for kernel in weights.kernels[:-1]]
    pre = [first, *(first.new_empty(stack, rows, width) for width in widths[1:])]
    out = [first.new_empty(stack, rows, width) for width in widths]
    norms = len(widths) if weights.norm_scales else 0
    mean = [first.new_empty(stack, rows, 1) for _ in range(norms)]
    rstd = [first.new_empty(stack, rows, 1) for _ in range(norms)]
    return Tape(pre, out, mean, rstd)


def forward(weights: MLPWeights, tape: Tape, begin: int, end: int) -> Tensor:
    """Run rows [begin, end) from their first pre-activation; return the output `[G, rows, out]`."""
    whole = begin == 0 and end == tape.pre[0].shape[1]

    def rows(tensor: Tensor) -> Tensor:
        return tensor if whole else tensor[:, begin:end]

    last = len(weights.kernels) - 1
    for layer in range(last):
        y = rows(tape.out[layer])
        gelu_(rows(tape.pre[layer]), y)
        if weights.norm_scales:
            width = y.shape[-1:]
            normal, mean, rstd = _aten.native_layer_norm(y, width, None, None, NORM_EPS)
            rows(tape.mean[layer]).copy_(mean)
            rows(tape.rstd[layer]).copy_(rstd)
            torch.addcmul(
                weights.norm_biases[layer].unsqueeze(-2),
                normal,
                weights.norm_scales[layer].unsqueeze(-2),
                out=y,
            )
        bias = weights.biases[layer + 1].unsqueeze(-2)
        if layer + 1 < last:
            torch.baddbmm(bias, y, weights.kernels[layer + 1], out=rows(tape.pre[layer + 1]))
        else:
            return torch.baddbmm(bias, y, weights.kernels[layer + 1])
    raise AssertionError("an MLP has at least one hidden layer")


def backward(
    weights: MLPWeights,
    tape: Tape,
    cotangent: Tensor,
    begin: int,
    end: int,
    gradients: list[Tensor | None] | None = None,
) -> Tensor:
    """Pull `cotangent` `[G, rows, out]` back to the first pre-activation of rows [begin, end).

    With `gradients`, a list as long as `weights.tensors`, the entries of all tensors but the first
    kernel are filled in; that one needs the inputs, which the tape does not hold.
    """
    layers = len(weights.kernels)
    grad = cotangent
    for layer in range(layers - 2, -1, -1):
        pre = tape.pre[layer][:, begin:end]
        out = tape.out[layer][:, begin:end]
        if gradients is not None:
            gradients[layer + 1] = torch.bmm(out.transpose(1, 2), grad)
            gradients[layers + layer + 1] = grad.sum(1)
        grad = torch.bmm(grad, weights.kernels[layer + 1].transpose(1, 2))
        if weights.norm_scales:
            activation = torch.empty_like(pre, memory_format=torch.contiguous_format)
            gelu_(pre, activation)
            # ATen reads the statistics as if they were contiguous, which a slice of rows is not.
            mean = tape.mean[layer][:, begin:end].contiguous()
            rstd = tape.rstd[layer][:, begin:end].contiguous()
            if gradients is not None:
                normal = (activation - mean) * rstd
                gradients[2 * layers + layer] = (grad * normal).sum(1)
                gradients[3 * layers - 1 + layer] = grad.sum(1)
            grad = grad * weights.norm_scales[layer].unsqueeze(-2)
            grad = _aten.native_layer_norm_backward(
                grad, activation, activation.shape[-1:], mean, rstd, None, None,
                [True, False, False],
            )[0]  # fmt: skip
        grad = gelu_pullback(pre, grad)
    if gradients is not None:
        gradients[layers] = grad.sum(1)
    return grad


class _MLP(torch.autograd.Function):
    """The whole stack as one node: saved tape, one batched backward."""

    @staticmethod
    def forward(ctx, group, inputs, *tensors):
        weights = group(tensors)
        first = torch.baddbmm(weights.biases[0].unsqueeze(-2), inputs, weights.kernels[0])
        tape = make_tape(weights, first)
        result = forward(weights, tape, 0, inputs.shape[1])
        ctx.group = group
        ctx.save_for_backward(inputs, *tensors, *tape.pre, *tape.out, *tape.mean, *tape.rstd)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        count = len(ctx.needs_input_grad) - 2
        inputs, *saved = ctx.saved_tensors
        weights = ctx.group(saved[:count])
        tape = unpack_tape(weights, saved[count:])
        gradients = [None] * count if any(ctx.needs_input_grad[2:]) else None
        first = backward(weights, tape, cotangent, 0, cotangent.shape[1], gradients)
        grad_inputs = None
        if ctx.needs_input_grad[1]:
            grad_inputs = torch.bmm(first, weights.kernels[0].transpose(1, 2))
        if gradients is None:
            return None, grad_inputs, *[None] * count
        gradients[0] = torch.bmm(inputs.transpose(1, 2), first)
        return None, grad_inputs, *gradients


def unpack_tape(weights: MLPWeights, tensors: list[Tensor]) -> Tape:
    """Rebuild a tape from the flat list that `save_for_backward` keeps."""
    hidden = len(weights.kernels) - 1
    groups = [tensors[i : i + hidden] for i in range(0, len(tensors), hidden)]
    return Tape(*groups) if len(groups) == 4 else Tape(groups[0], groups[1], [], [])


class Regroup:
    """Rebuilds `MLPWeights` of a known structure from a flat sequence of tensors."""

    def __init__(self, weights: MLPWeights) -> None:
        self.kind = type(weights)
        self.layers = len(weights.kernels)
        self.norms = len(weights.norm_scales)

    def __call__(self, tensors) -> MLPWeights:
        """Group `tensors`, ordered as `MLPWeights.tensors`."""
        a, b = self.layers, 2 * self.layers
        c = b + self.norms
        return self.kind(
            tuple(tensors[:a]), tuple(tensors[a:b]), tuple(tensors[b:c]), tuple(tensors[c:])
        )


def mlp(weights: MLPWeights, inputs: Tensor) -> Tensor:
    """Apply the MLPs to `inputs` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    lead, rows = weights.lead, inputs.shape[1]
    flat = flatten(weights)
    if len(lead) == 2:
        inputs = inputs.unsqueeze(1).expand(-1, lead[1], -1, -1).flatten(0, 1)
    result = _MLP.apply(Regroup(flat), inputs, *flat.tensors)
    return result.view(*lead, rows, weights.out_features)
