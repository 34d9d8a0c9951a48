"""Gradients of a stack of MLPs' weights in Triton: all kernels' in one launch, after a pullback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import KernelConfig, launch_options, make_config
from trqam_fast.kernels.mlp.triton_inputs import BatchInputs, Inputs, points_of, tile_inputs
from trqam_fast.kernels.mlp.triton_tile import Gradients, Tape, group_of, load_inputs, zeros
from trqam_fast.kernels.mlp.weights import MLPWeights


@triton.jit
def input_kernel_block(inputs, run, right, into, ins, outs, C: tl.constexpr):
    """Block of the first kernel's gradient: inputs^T dz_0 over all rows."""
    acc = zeros(C.block_w, C.block_w)
    for r in range(0, inputs.rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        source = tile_inputs(inputs, run, row, C)
        left = load_inputs(source, ins, C).to(C.operand)
        at = row[:, None] * C.width + outs[None, :]
        dz = tl.load(right + at, mask=source.mask[:, None], other=0.0)
        acc = tl.dot(tl.trans(left), dz, acc, input_precision=C.precision)
    at = ins[:, None] * C.width + outs[None, :]
    tl.store(into + at, acc, mask=(ins < C.inputs)[:, None])


@triton.jit
def kernel_block(left, right, into, ins, outs, rows, OUT: tl.constexpr, C: tl.constexpr):
    """Block of another kernel's gradient, y^T dz over all rows, for `OUT` columns of dz."""
    acc = zeros(C.block_w, C.block_w)
    narrow = (outs < OUT)[None, :]
    for r in range(0, rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        mask = (row < rows)[:, None]
        y = tl.load(left + row[:, None] * C.width + ins[None, :], mask=mask, other=0.0)
        dz = tl.load(right + row[:, None] * OUT + outs[None, :], mask=mask & narrow, other=0.0)
        acc = tl.dot(tl.trans(y), dz.to(C.operand), acc, input_precision=C.precision)
    tl.store(into + ins[:, None] * OUT + outs[None, :], acc, mask=narrow)


@triton.jit(
    do_not_specialize=["x_stride", "tape_rows", "layer_rows", "batch", "rows", "steps", "shift"]
)
def weight_gradient_kernel(
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    d_in,  # [G, in, width]
    d_hid,  # [depth - 1, G, width, width]
    d_out,  # [G, width, out]
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Blocks of all kernels' gradients, numbered first, hidden, last; grid [blocks, G]."""
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    pre = grads.pre + wide * rows * C.width
    across: tl.constexpr = C.width // C.block_w
    across_out: tl.constexpr = (C.out + C.block_w - 1) // C.block_w
    in_blocks: tl.constexpr = (C.inputs + C.block_w - 1) // C.block_w * across
    hidden_blocks: tl.constexpr = (C.depth - 1) * across * across
    inner = tl.arange(0, C.block_w)
    block = tl.program_id(0)
    if block < in_blocks:
        inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
        ins = block // across * C.block_w + inner
        outs = block % across * C.block_w + inner
        into = d_in + wide * C.inputs * C.width
        input_kernel_block(inputs, group // C.ensemble, pre, into, ins, outs, C)
    elif block < in_blocks + hidden_blocks:
        within = block - in_blocks
        index = tl.cast(within // (across * across), tl.int64)
        left = tape.out + index * tape.stride
        dz = pre + (index + 1) * grads.stride
        into = d_hid + (index * tl.num_programs(1) + group) * (C.width * C.width)
        ins = within // across % across * C.block_w + inner
        outs = within % across * C.block_w + inner
        kernel_block(left, dz, into, ins, outs, rows, C.width, C)
    else:
        within = block - in_blocks - hidden_blocks
        left = tape.out + (C.depth - 1) * tape.stride
        given = cotangent + wide * rows * C.out  # float32, whatever the type of dz
        into = d_out + wide * C.width * C.out
        ins = within // across_out * C.block_w + inner
        outs = within % across_out * C.block_w + inner
        kernel_block(left, given, into, ins, outs, rows, C.out, C)


class PackedGradients(NamedTuple):
    """Gradients of weights as the kernels write them.

    Attributes:
        first: Of the first kernels, `[G, in, width]`.
        hidden: Of the kernels between hidden layers, `[depth - 1, G, width, width]`.
        last: Of the last kernels, `[G, width, out]`.
        vectors: Of hidden biases and, with LayerNorm, scales and shifts, `[1 or 3, depth, G,
            width]`.
        last_bias: Of the output biases, `[G, out]`.
    """

    first: Tensor
    hidden: Tensor
    last: Tensor
    vectors: Tensor
    last_bias: Tensor


def empty_gradients(weights: MLPWeights, like: Tensor, precision: str) -> PackedGradients:
    """Return uninitialised gradients of `weights`, of the type of `like`."""
    config = make_config(weights, precision, obs=weights.in_features, train=True)
    groups, depth, width, new = weights.lead.numel(), config.depth, config.width, like.new_empty
    return PackedGradients(
        new(groups, config.inputs, width),
        new(depth - 1, groups, width, width),
        new(groups, width, config.out),
        new(3 if config.norm else 1, depth, groups, width),
        new(groups, config.out),
    )


def weight_gradients(
    config: KernelConfig,
    inputs: Inputs,
    tape: Tape,
    tape_rows: int,
    grads: Gradients,
    cotangent: Tensor,
    packed: PackedGradients,
    precision: str,
) -> None:
    """Write the weights' gradients.

    Args:
        config: Of the pass.
        inputs: Of the pass.
        tape: Its tape, of which the layers' outputs are read.
        tape_rows: Rows of the tape, of which the first are used.
        grads: Gradients of the pre-activations, and their column sums by tiles of rows.
        cotangent: `[G, K * B, out]`.
        packed: Where the gradients go.
        precision: Operands of the products.
    """
    groups, rows = cotangent.shape[:2]
    x, x_stride = points_of(inputs)
    across = config.width // config.block_w
    blocks = triton.cdiv(config.inputs, config.block_w) * across + (config.depth - 1) * across**2
    blocks += across * triton.cdiv(config.out, config.block_w)
    with torch.cuda.device_of(cotangent):
        weight_gradient_kernel[(blocks, groups)](
            inputs.observations,
            x,
            x_stride,
            tape,
            tape_rows,
            groups * tape_rows,
            grads,
            cotangent,
            packed.first,
            packed.hidden,
            packed.last,
            inputs.observations.shape[1],
            rows,
            inputs.steps,
            inputs.shift,
            config,
            **launch_options(precision),
        )
    torch.sum(grads.sums, 2, out=packed.vectors)
    torch.sum(cotangent, 1, out=packed.last_bias)


def unpack(weights: MLPWeights, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Cut padding and packing from `PackedGradients`: one for each of `weights.tensors`."""
    packed = PackedGradients(*gradients)
    kernels = [packed.first, *packed.hidden.unbind(0), packed.last]
    hidden, norms = packed.vectors[0], packed.vectors[1:].flatten(0, 1)
    vectors = [*hidden.unbind(0), packed.last_bias, *norms.unbind(0)]
    found = []
    for tensor, gradient in zip(weights.tensors, [*kernels, *vectors], strict=True):
        for axis, size in enumerate(tensor.shape[len(weights.lead) :], start=1):
            gradient = gradient.narrow(axis, 0, size)
        found.append(gradient.unflatten(0, weights.lead))
    return found
