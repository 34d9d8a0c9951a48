"""Triton passes of the stacked MLP: forward and pullback, one launch each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    KernelConfig,
    launch_options,
    make_config,
    operand_dtype,
)
from trqam_fast.kernels.mlp.triton_gradients import weight_gradients
from trqam_fast.kernels.mlp.triton_inputs import BatchInputs, Inputs, points_of, tile_inputs
from trqam_fast.kernels.mlp.triton_operands import row_scaled
from trqam_fast.kernels.mlp.triton_tile import (
    Gradients,
    Tape,
    forward,
    gradients_of,
    group_of,
    input_gradient,
    member_of,
    pullback,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights


@triton.jit(do_not_specialize=["x_stride", "layer_rows", "batch", "rows", "steps", "shift"])
def mlp_forward_kernel(
    net,  # WeightPointers of G networks
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks, rows = K * B
    layer_rows,  # G * K * B
    result,  # [G, K * B, out]
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Rows of a tile through one network; grid [tiles, G]."""
    group = tl.program_id(1)
    run = group // C.ensemble
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    net = member_of(net, run, group % C.ensemble, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
    source = tile_inputs(inputs, run, row, C)
    value = forward(source, net, tape, row, False, C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    tl.store(result + at, value, mask=source.mask[:, None] & (outs < C.out)[None, :])


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def mlp_pullback_kernel(
    net,  # WeightPointers of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    d_inputs,  # [G, rows, in], written with INPUTS
    rows,
    INPUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    C: tl.constexpr,
):
    """Cotangent of a tile to all pre-activations, and to the inputs; grid [tiles, G]."""
    group = tl.program_id(1)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = member_of(net, group // C.ensemble, group % C.ensemble, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(1), rows, tl.program_id(0), C)
    wide = tl.cast(group, tl.int64)
    outs = tl.arange(0, C.block_out)
    at = wide * rows * C.out + row[:, None] * C.out + outs[None, :]
    given = tl.load(cotangent + at, mask=mask[:, None] & (outs < C.out)[None, :], other=0.0)
    given, scale = row_scaled(given, C)
    if C.scaled and C.train:
        tl.store(grads.row_scale + row, scale, mask=mask)
    pullback(given, scale, net, tape, grads, row, row, mask, C)
    if INPUTS:
        for n in range(0, C.inputs, BLOCK_IN):
            ks = n + tl.arange(0, BLOCK_IN)
            acc = zeros(C.block_m, BLOCK_IN)
            acc = input_gradient(net, grads, row, mask, ks, ks < C.inputs, acc, C)
            if C.scaled:
                acc *= scale[:, None]
            into = d_inputs + wide * rows * C.inputs + row[:, None] * C.inputs + ks[None, :]
            tl.store(into, acc, mask=mask[:, None] & (ks < C.inputs)[None, :])


def check_size(config: KernelConfig, rows: int) -> None:
    """Raise ValueError if offsets within one network's rows would not fit in 32 bits."""
    widest = max(config.width, config.inputs, config.block_out)
    if rows * widest >= 2**31:
        raise ValueError(
            f"{rows} rows of {widest} columns exceed the 2^31 elements that a Triton program "
            "addresses; split the batch"
        )


def empty_tape(config: KernelConfig, groups: int, rows: int, like: Tensor) -> Tape:
    """Return an uninitialised tape for `rows` rows of `groups` networks."""
    pre_layers = config.depth if config.train else int(config.norm)
    out_layers = config.depth if config.train else 2
    stats = config.depth if config.train and config.norm else 0
    return Tape(
        like.new_empty(pre_layers, groups, rows, config.width),
        like.new_empty(out_layers, groups, rows, config.width, dtype=operand_dtype(config)),
        like.new_empty(stats, groups, rows),
        like.new_empty(stats, groups, rows),
    )


def pulled_gradients(
    config: KernelConfig, groups: int, rows: int, tiles: int, like: Tensor
) -> Gradients:
    """Return uninitialised gradients of `rows` rows, and their sums over `tiles` tiles of rows."""
    kinds = (3 if config.norm else 1) if config.train else 0
    layers, new = config.depth if config.train else 2, like.new_empty
    return Gradients(
        new(layers, groups, rows, config.width, dtype=operand_dtype(config)),
        new(groups if config.norm else 0, rows, config.width),
        new(kinds, config.depth, tiles, groups, config.width),
        new(groups if config.scaled else 0, rows),
        groups * rows * config.width,
        tiles * groups * config.width,
    )


def config_for(
    weights: MLPWeights,
    inputs: Tensor,
    x: Tensor | None,
    precision: str,
    *,
    train: bool,
    rows: int | None = None,
) -> KernelConfig:
    """Return the config of passes through `weights` of inputs, or of observations with points.

    It is the same for any number of rows.
    """
    dim = 0 if x is None else x.shape[-1]
    obs = inputs.shape[-1]
    return make_config(weights, precision, obs=obs, dim=dim, time=int(dim > 0), train=train)


def forward_pass(
    weights: MLPWeights, inputs: Inputs, precision: str, *, train: bool
) -> tuple[Tensor, Tape]:
    """Return the outputs `[G, K * B, out]` and the tape."""
    config = config_for(weights, inputs.observations, inputs.x, precision, train=train)
    x, x_stride = points_of(inputs)
    runs, batch, _ = inputs.observations.shape
    groups, rows = runs * config.ensemble, inputs.steps * batch
    check_size(config, rows)
    result = inputs.observations.new_empty(groups, rows, config.out)
    tape = empty_tape(config, groups, rows, result)
    with torch.cuda.device_of(result):
        mlp_forward_kernel[(triton.cdiv(rows, config.block_m), groups)](
            weight_pointers(weights, config),
            inputs.observations,
            x,
            x_stride,
            tape,
            groups * rows,
            result,
            batch,
            rows,
            inputs.steps,
            inputs.shift,
            config,
            **launch_options(precision),
        )
    return result, tape


def backward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    tape: Sequence[Tensor],
    cotangent: Tensor,
    precision: str,
    want_inputs: bool,
    gradients: Sequence[Tensor],
) -> Tensor:
    """Write the weights' gradients, ordered as the weights, unless there is no place for them.

    Returns:
        Gradients of the inputs, `[G, K * B, in]`, or of none.
    """
    groups, rows = cotangent.shape[:2]
    tape, want_weights = Tape(*tape), len(gradients) > 0
    tape_rows = tape.out.shape[2]
    config = config_for(weights, inputs.observations, inputs.x, precision, train=want_weights)
    tiles = triton.cdiv(rows, config.block_m)
    grads = pulled_gradients(config, groups, rows, tiles, cotangent)
    d_inputs = cotangent.new_empty(groups if want_inputs else 0, rows, config.inputs)
    block_in = min(64, triton.next_power_of_2(max(config.inputs, 16)))
    with torch.cuda.device_of(cotangent):
        mlp_pullback_kernel[(tiles, groups)](
            weight_pointers(weights, config),
            tape,
            tape_rows,
            groups * tape_rows,
            grads,
            cotangent,
            d_inputs,
            rows,
            want_inputs,
            block_in,
            config,
            **launch_options(precision),
        )
    if want_weights:
        weight_gradients(config, inputs, tape, tape_rows, grads, cotangent, gradients, precision)
    return d_inputs
