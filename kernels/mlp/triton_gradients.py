"""Gradients of a stack of MLPs' weights in Triton: two launches after a pullback.

The first brings the inputs and the cotangent into the operands' type, in rows that the matrix units
take as they are, and adds up what the vectors' gradients consist of. The second is products alone:
of every kernel blocks of `block_i` by `block_o`, y^T dz over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    GRADIENT_STAGES,
    WARPS,
    KernelConfig,
    dependent_options,
    operand_dtype,
    stages_for,
)
from trqam_fast.kernels.mlp.triton_inputs import (
    BatchInputs,
    Inputs,
    input_of,
    points_of,
    tile_inputs,
)
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
from trqam_fast.kernels.mlp.weights import MLPWeights, packed_size, split

OPERAND_WARPS = 4
GRADIENT_REGISTERS = 255
"""Left alone, ptxas stops at 128 or 168 and spills."""

SUMMED = tl.constexpr(8192)
"""Elements that are loaded at a time for sums over many rows."""


@triton.jit
def kernel_block(
    left,
    LEFT: tl.constexpr,
    right,
    RIGHT: tl.constexpr,
    scales,
    one,
    ins,
    outs,
    rows,
    STORED: tl.constexpr,
    C: tl.constexpr,
):
    """Block of a kernel's gradient, y^T dz over all rows, `LEFT` and `RIGHT` columns in each.

    float32 operands of the matrix units must lie along the depth, here the rows, and they do not.
    Multiplied by 1 they come to shared memory in 16 bytes at a time and are turned on their way
    from there, else in 4: half the time (docs/kernels.md).
    """
    acc = zeros(C.block_i, C.block_o)
    for r in range(0, rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        real = row < rows
        y_at = row[:, None] * LEFT + ins[None, :]
        y = tl.load(left + y_at, mask=real[:, None] & (ins < LEFT)[None, :], other=0.0)
        dz_at = row[:, None] * RIGHT + outs[None, :]
        dz = tl.load(right + dz_at, mask=real[:, None] & (outs < RIGHT)[None, :], other=0.0)
        if STORED:
            dz = common_operand(dz, scales, row, real, True, C)
        if C.precision == "tf32":
            y, dz = y * one, dz * one
        acc = tl.dot(tl.trans(y), dz, acc, input_precision=C.precision)
    if C.scaled:
        acc *= scales.common
    return acc


@triton.jit
def column_sums(values, rows, stride, into, cols, inside, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Sums over all rows of the columns `cols`, where `inside`; `ROWS` are loaded at a time."""
    acc = row_zeros(COLS)
    for r in range(0, rows, ROWS):
        row = r + tl.arange(0, ROWS)
        at = row[:, None] * stride + cols[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        acc += tl.sum(tl.load(values + at, mask=mask, other=0.0), 0)
    tl.store(into + cols, acc, mask=inside)


@triton.jit(do_not_specialize=["x_stride", "row_tiles", "tiles", "batch", "rows", "steps", "shift"])
def gradient_operands_kernel(
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    grads,  # Gradients of G networks
    row_tiles,  # of block_m rows
    tiles,  # of rows, whose sums there are
    cotangent,  # [G, rows, out]
    inputs_into,  # [S, rows, columns], written
    cotangent_into,  # [G, rows, block_out], over the common powers of two, written
    into,  # WeightPointers of the gradients
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Operands, and gradients of the vectors; grid [tiles of rows and blocks of vectors, G].

    Those are sums over rows: of the tiles' sums for hidden biases, scales and shifts, and of the
    cotangent for the output's bias.
    """
    await_predecessor(C)
    block = tl.program_id(0)
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    given = cotangent + wide * rows * C.out
    across: tl.constexpr = C.width // C.block_o
    if block < row_tiles:
        row = block * C.block_m + tl.arange(0, C.block_m)
        mask = row < rows
        scales = scales_of(grads.row_scale + wide * rows, rows, C)
        outs = tl.arange(0, C.block_out)
        there = mask[:, None] & (outs < C.out)[None, :]
        value = tl.load(given + row[:, None] * C.out + outs[None, :], mask=there, other=0.0)
        beside = cotangent_into + (wide * rows + row[:, None]) * C.block_out + outs[None, :]
        tl.store(beside, common_operand(value, scales, row, mask, False, C), mask=mask[:, None])
        if group % C.ensemble == 0:
            run = group // C.ensemble
            inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
            source = tile_inputs(inputs, run, row, C)
            operands = inputs_into + (tl.cast(run, tl.int64) * rows + row[:, None]) * C.columns
            for k in range(0, C.columns, C.block_k):
                ks = k + tl.arange(0, C.block_k)
                operand = to_operand(load_inputs(source, ks, C), C)
                tl.store(operands + ks[None, :], operand, mask=mask[:, None])
    else:
        into = member_of(into, group // C.ensemble, group % C.ensemble, C)
        ROWS: tl.constexpr = SUMMED // C.block_o
        if block == row_tiles:
            outs = tl.arange(0, C.block_out)
            column_sums(
                given, rows, C.out, into.b_out, outs, outs < C.out, SUMMED // C.block_out,
                C.block_out,
            )  # fmt: skip
        else:
            within = block - row_tiles - 1
            layer = within // across % C.depth
            kind = within // (across * C.depth)
            cols = within % across * C.block_o + tl.arange(0, C.block_o)
            at = layer * (C.ensemble * C.width)
            sums = grads.sums + (kind * C.depth + layer) * tl.cast(grads.sum_stride, tl.int64)
            sums += wide * C.width
            stride = tl.num_programs(1) * C.width
            target = into.b_hid
            if kind == 1:
                target = into.scale
            elif kind == 2:
                target = into.shift
            column_sums(
                sums, tiles, stride, target + at, cols, cols < C.width, ROWS, C.block_o
            )  # fmt: skip


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def weight_gradient_kernel(
    inputs,  # [S, rows, columns]
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, block_out]
    into,  # WeightPointers of the gradients
    one,  # 1.0
    rows,  # K * B
    C: tl.constexpr,
):
    """Blocks of all kernels' gradients: hidden ones, first, last; grid [blocks, G]."""
    await_predecessor(C)
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    into = member_of(into, group // C.ensemble, group % C.ensemble, C)
    pre = grads.pre + wide * rows * C.width
    down: tl.constexpr = C.width // C.block_i
    across: tl.constexpr = C.width // C.block_o
    across_out: tl.constexpr = (C.out + C.block_o - 1) // C.block_o
    hidden_blocks: tl.constexpr = (C.depth - 1) * down * across
    in_blocks: tl.constexpr = (C.columns + C.block_i - 1) // C.block_i * across
    ins = tl.arange(0, C.block_i)
    outs = tl.arange(0, C.block_o)
    block = tl.program_id(0)
    scales = scales_of(grads.row_scale + wide * rows, rows, C)
    if block < hidden_blocks:
        index = tl.cast(block // (down * across), tl.int64)
        left = tape.out + index * tape.stride
        right = pre + (index + 1) * grads.stride
        ins += block // across % down * C.block_i
        outs += block % across * C.block_o
        acc = kernel_block(left, C.width, right, C.width, scales, one, ins, outs, rows, True, C)
        kernel = into.w_hid + index * (C.ensemble * C.width * C.width)
        tl.store(kernel + ins[:, None] * C.width + outs[None, :], acc)
    elif block < hidden_blocks + in_blocks:
        within = block - hidden_blocks
        left = inputs + tl.cast(group // C.ensemble, tl.int64) * rows * C.columns
        ins += within // across * C.block_i
        outs += within % across * C.block_o
        acc = kernel_block(left, C.columns, pre, C.width, scales, one, ins, outs, rows, True, C)
        source, real = input_of(ins, C)
        at = source[:, None] * C.width + outs[None, :]
        tl.store(into.w_in + at, acc, mask=real[:, None])
    else:
        within = block - hidden_blocks - in_blocks
        left = tape.out + (C.depth - 1) * tape.stride
        right = cotangent + wide * rows * C.block_out
        ins += within // across_out * C.block_i
        outs += within % across_out * C.block_o
        acc = kernel_block(
            left, C.width, right, C.block_out, scales, one, ins, outs, rows, False, C
        )
        at = ins[:, None] * C.out + outs[None, :]
        tl.store(into.w_out + at, acc, mask=(outs < C.out)[None, :])


def kernel_blocks(config: KernelConfig) -> int:
    """Return the blocks of all kernels of a network."""
    down, across = config.width // config.block_i, config.width // config.block_o
    ins = triton.cdiv(config.columns, config.block_i)
    return across * (ins + (config.depth - 1) * down) + down * triton.cdiv(
        config.out, config.block_o
    )


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
    kernels, vectors = wanted
    if not in_place:
        runs = len(kernels[0])
        kernels, vectors = (
            split(cotangent.new_empty(runs, packed_size(each)), each) for each in shapes
        )
    dtype, steps, batch = operand_dtype(config), inputs.steps, inputs.observations.shape[1]
    runs = len(inputs.observations)
    operands = cotangent.new_empty(runs, rows, config.columns, dtype=dtype)
    given = cotangent.new_empty(groups, rows, config.block_out, dtype=dtype)
    pointers, row_tiles = first_parts(kernels, vectors, config), triton.cdiv(rows, config.block_m)
    across = config.width // config.block_o
    sums = 1 + grads.sums.shape[0] * config.depth * across
    with torch.cuda.device_of(cotangent):
        gradient_operands_kernel[(row_tiles + sums, groups)](
            inputs.observations, x, x_stride, grads, row_tiles, grads.sums.shape[2], cotangent,
            operands, given, pointers, batch, rows, steps, inputs.shift, config,
            num_warps=OPERAND_WARPS, **dependent_options(config),
        )  # fmt: skip
        weight_gradient_kernel[(kernel_blocks(config), groups)](
            operands, tape, tape_rows, groups * tape_rows, grads, given, pointers, 1.0, rows,
            config, num_warps=WARPS[precision], num_stages=stages_for(GRADIENT_STAGES, precision),
            maxnreg=GRADIENT_REGISTERS, **dependent_options(config),
        )  # fmt: skip
    if not in_place:
        for tensor, part in zip([*wanted[0], *wanted[1]], [*kernels, *vectors], strict=True):
            tensor.copy_(part[tuple(map(slice, tensor.shape))])
