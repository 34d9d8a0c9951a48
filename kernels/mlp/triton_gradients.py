"""Gradients of a stack of MLPs' weights in Triton: all of them in one launch, after a pullback."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    BLOCK_SIZES,
    KernelConfig,
    dependent_options,
    has_little_shared_memory,
)
from trqam_fast.kernels.mlp.triton_inputs import BatchInputs, Inputs, points_of, tile_inputs
from trqam_fast.kernels.mlp.triton_operands import common_operand, scales_of, to_operand
from trqam_fast.kernels.mlp.triton_tile import (
    Gradients,
    Tape,
    await_predecessor,
    group_of,
    load_inputs,
    member_of,
    row_zeros,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import (
    first_parts,
    laid_out,
    packed_shapes,
    parts_of,
)
from trqam_fast.kernels.mlp.weights import MLPWeights, split

WARPS = 8
MAX_REGISTERS = 255
"""Left alone, ptxas stops at 128 or 168 and spills."""

SUMMED_ROWS = tl.constexpr(128)
"""Rows that are loaded at a time for a sum over many."""


@triton.jit
def input_kernel_block(inputs, run, right, scales, into, ins, outs, C: tl.constexpr):
    """Block of the first kernel's gradient: inputs^T dz_0 over all rows."""
    acc = zeros(C.block_w, C.block_w)
    for r in range(0, inputs.rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        source = tile_inputs(inputs, run, row, C)
        left = to_operand(load_inputs(source, ins, C), C)
        at = row[:, None] * C.width + outs[None, :]
        dz = tl.load(right + at, mask=source.mask[:, None], other=0.0)
        dz = common_operand(dz, scales, row, source.mask, True, C)
        acc = tl.dot(tl.trans(left), dz, acc, input_precision=C.precision)
    if C.scaled:
        acc *= scales.common
    at = ins[:, None] * C.width + outs[None, :]
    tl.store(into + at, acc, mask=(ins < C.inputs)[:, None])


@triton.jit
def kernel_block(
    left,
    right,
    scales,
    into,
    ins,
    outs,
    rows,
    STORED: tl.constexpr,
    OUT: tl.constexpr,
    C: tl.constexpr,
):
    """Block of another kernel's gradient, y^T dz over all rows, for `OUT` columns of dz."""
    acc = zeros(C.block_w, C.block_w)
    narrow = (outs < OUT)[None, :]
    for r in range(0, rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        real = row < rows
        mask = real[:, None]
        y = tl.load(left + row[:, None] * C.width + ins[None, :], mask=mask, other=0.0)
        dz = tl.load(right + row[:, None] * OUT + outs[None, :], mask=mask & narrow, other=0.0)
        dz = common_operand(dz, scales, row, real, STORED, C)
        acc = tl.dot(tl.trans(y), dz, acc, input_precision=C.precision)
    if C.scaled:
        acc *= scales.common
    tl.store(into + ins[:, None] * OUT + outs[None, :], acc, mask=narrow)


@triton.jit
def column_sums(values, rows, stride, into, cols, inside, C: tl.constexpr):
    """Sums over all rows of the columns `cols`, where `inside`."""
    acc = row_zeros(C.block_w)
    for r in range(0, rows, SUMMED_ROWS):
        row = r + tl.arange(0, SUMMED_ROWS)
        at = row[:, None] * stride + cols[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        acc += tl.sum(tl.load(values + at, mask=mask, other=0.0), 0)
    tl.store(into + cols, acc, mask=inside)


@triton.jit(
    do_not_specialize=[
        "x_stride", "tape_rows", "layer_rows", "tiles", "batch", "rows", "steps", "shift",
    ]
)  # fmt: skip
def weight_gradient_kernel(
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    tiles,  # of rows, whose sums there are
    cotangent,  # [G, rows, out]
    into,  # WeightPointers of the gradients
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Blocks of all gradients: first kernel, hidden ones, last, vectors; grid [blocks, G].

    The vectors are sums over rows: of the tiles' sums for hidden biases, scales and shifts, and of
    the cotangent for the output's bias.
    """
    await_predecessor(C)
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    into = member_of(into, group // C.ensemble, group % C.ensemble, C)
    pre = grads.pre + wide * rows * C.width
    given = cotangent + wide * rows * C.out  # float32, whatever the type of dz
    across: tl.constexpr = C.width // C.block_w
    across_out: tl.constexpr = (C.out + C.block_w - 1) // C.block_w
    in_blocks: tl.constexpr = (C.inputs + C.block_w - 1) // C.block_w * across
    hidden_blocks: tl.constexpr = (C.depth - 1) * across * across
    kernel_blocks: tl.constexpr = in_blocks + hidden_blocks + across * across_out
    inner = tl.arange(0, C.block_w)
    block = tl.program_id(0)
    scales = scales_of(grads.row_scale + wide * rows, rows, C)
    if block < in_blocks:
        inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
        ins = block // across * C.block_w + inner
        outs = block % across * C.block_w + inner
        input_kernel_block(inputs, group // C.ensemble, pre, scales, into.w_in, ins, outs, C)
    elif block < in_blocks + hidden_blocks:
        within = block - in_blocks
        index = tl.cast(within // (across * across), tl.int64)
        left = tape.out + index * tape.stride
        dz = pre + (index + 1) * grads.stride
        kernel = into.w_hid + index * (C.ensemble * C.width * C.width)
        ins = within // across % across * C.block_w + inner
        outs = within % across * C.block_w + inner
        kernel_block(left, dz, scales, kernel, ins, outs, rows, True, C.width, C)
    elif block < kernel_blocks:
        within = block - in_blocks - hidden_blocks
        left = tape.out + (C.depth - 1) * tape.stride
        ins = within // across_out * C.block_w + inner
        outs = within % across_out * C.block_w + inner
        kernel_block(left, given, scales, into.w_out, ins, outs, rows, False, C.out, C)
    elif block < kernel_blocks + across_out:
        outs = (block - kernel_blocks) * C.block_w + inner
        column_sums(given, rows, C.out, into.b_out, outs, outs < C.out, C)
    else:
        within = block - kernel_blocks - across_out
        layer = within // across % C.depth
        kind = within // (across * C.depth)
        cols = within % across * C.block_w + inner
        at = layer * (C.ensemble * C.width)
        sums = grads.sums + (kind * C.depth + layer) * tl.cast(grads.sum_stride, tl.int64)
        sums += wide * C.width
        stride = tl.num_programs(1) * C.width
        if kind == 0:
            column_sums(sums, tiles, stride, into.b_hid + at, cols, cols < C.width, C)
        elif kind == 1:
            column_sums(sums, tiles, stride, into.scale + at, cols, cols < C.width, C)
        else:
            column_sums(sums, tiles, stride, into.shift + at, cols, cols < C.width, C)


def launch_options(precision: str, config: KernelConfig) -> dict[str, int]:
    """Return Triton's options for a launch on the current device."""
    tile = BLOCK_SIZES[precision]
    lean = False
    if not triton.knobs.runtime.interpret:
        lean = has_little_shared_memory(triton.runtime.driver.active.get_current_device())
    options = {
        "num_warps": WARPS,
        "num_stages": tile.lean_stages if lean else tile.stages,
        "maxnreg": MAX_REGISTERS,
    }
    return options | dependent_options(config)


def kernel_blocks(config: KernelConfig) -> int:
    """Return the blocks of all kernels of a network."""
    across, ins, outs = (
        triton.cdiv(size, config.block_w) for size in (config.width, config.inputs, config.out)
    )
    return across * (ins + (config.depth - 1) * across + outs)


def weight_gradients(
    config: KernelConfig,
    inputs: Inputs,
    tape: Tape,
    tape_rows: int,
    grads: Gradients,
    cotangent: Tensor,
    gradients: Sequence[Tensor],
    precision: str,
) -> None:
    """Write the weights' gradients, in place where their memory is laid out like packed weights.

    Args:
        config: Of the pass.
        inputs: Of the pass.
        tape: Its tape, of which the layers' outputs are read.
        tape_rows: Rows of the tape, of which the first are used.
        grads: Gradients of the pre-activations, and their column sums by tiles of rows.
        cotangent: `[G, K * B, out]`.
        gradients: Where the gradients go, ordered as the weights.
        precision: Operands of the products.
    """
    groups, rows = cotangent.shape[:2]
    x, x_stride = points_of(inputs)
    wanted = parts_of(MLPWeights.from_tensors(gradients))
    shapes = packed_shapes(config)
    in_place = all(map(laid_out, wanted, shapes))
    into = wanted
    if not in_place:
        sizes, runs = (config.kernel_offsets[-1], config.vector_offsets[-1]), len(wanted[0][0])
        into = [
            split(cotangent.new_empty(runs, size), each)
            for size, each in zip(sizes, shapes, strict=True)
        ]
    across, kinds = config.width // config.block_w, grads.sums.shape[0]
    blocks = kernel_blocks(config) + triton.cdiv(config.out, config.block_w)
    blocks += kinds * config.depth * across
    with torch.cuda.device_of(cotangent):
        weight_gradient_kernel[(blocks, groups)](
            inputs.observations,
            x,
            x_stride,
            tape,
            tape_rows,
            groups * tape_rows,
            grads,
            grads.sums.shape[2],
            cotangent,
            first_parts(*into, config),
            inputs.observations.shape[1],
            rows,
            inputs.steps,
            inputs.shift,
            config,
            **launch_options(precision, config),
        )
    if not in_place:
        for tensor, part in zip([*wanted[0], *wanted[1]], [*into[0], *into[1]], strict=True):
            tensor.copy_(part[tuple(map(slice, tensor.shape))])
