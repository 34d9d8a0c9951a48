"""Triton passes of the stacked MLP: one launch for each layer, over the whole chip.

The kernels are those of `triton_forward` and `triton_pullback`. The gradients of weights are left
to `triton_gradients`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    MAX_REGISTERS,
    KernelConfig,
    config_for,
    operand_dtype,
    tile_options,
)
from trqam_fast.kernels.mlp.triton_forward import (
    Prepared,
    RowBlocks,
    first_layer_kernel,
    hidden_layer_kernel,
    output_kernel,
)
from trqam_fast.kernels.mlp.triton_gradients import weight_gradients
from trqam_fast.kernels.mlp.triton_inputs import Inputs, points_of
from trqam_fast.kernels.mlp.triton_prepare import empty_prepared, prepare
from trqam_fast.kernels.mlp.triton_pullback import (
    pull_hidden_kernel,
    pull_inputs_kernel,
    pull_norm_kernel,
    pull_output_kernel,
)
from trqam_fast.kernels.mlp.triton_tile import Gradients, Tape
from trqam_fast.kernels.mlp.triton_weights import (
    WeightPointers,
    empty_operands,
    weight_pointers,
)
from trqam_fast.kernels.mlp.weights import MLPWeights

NORM_ROWS, NORM_WARPS = 8, 4
"""Rows and warps of a program of `pull_norm_kernel`, which takes whole rows one after another."""


def check_size(config: KernelConfig, rows: int) -> None:
    """Raise ValueError if offsets within one network's rows would not fit in 32 bits."""
    widest = max(config.width, config.columns, config.block_out)
    if rows * widest >= 2**31:
        raise ValueError(
            f"{rows} rows of {widest} columns exceed the 2^31 elements that a Triton program "
            "addresses; split the batch"
        )


def empty_tape(config: KernelConfig, groups: int, rows: int, like: Tensor) -> Tape:
    """Return an uninitialised tape for `rows` rows of `groups` networks.

    Its last two fields are means and squared deviations of every tile of features. Without `train`
    two layers take turns, and no pre-activation is kept.
    """
    layers = config.depth if config.train else 2
    stats = layers * (config.width // config.block_n) if config.norm else 0
    kept, operand = config.depth if config.train else 0, operand_dtype(config)
    return Tape(
        like.new_empty(kept, groups, rows, config.width, dtype=operand),
        like.new_empty(layers, groups, rows, config.width, dtype=operand),
        like.new_empty(stats, groups, rows),
        like.new_empty(stats, groups, rows),
    )


def empty_kept(
    config: KernelConfig, groups: int, rows: int, kernel: Tensor, *, operands: bool = True
) -> list[Tensor]:
    """Return memory for what a pass keeps: its tape, and with `train` its kernels as operands.

    `kernel`, one of the networks', says for how many runs and on which device. Without `operands`
    that of the kernels is empty.
    """
    kernels = empty_operands(config, kernel if config.train and operands else kernel[:0])
    return [*empty_tape(config, groups, rows, kernel)[:4], kernels]


def pulled_gradients(
    config: KernelConfig, groups: int, rows: int, tiles: int, like: Tensor
) -> Gradients:
    """Return uninitialised gradients of `rows` rows, and their sums over `tiles` tiles of rows."""
    kinds = (3 if config.norm else 1) if config.train else 0
    layers, new = config.depth if config.train else 2, like.new_empty
    return Gradients(
        new(layers, groups, rows, config.width, dtype=operand_dtype(config)),
        new(groups if config.norm else 0, rows, config.width, dtype=operand_dtype(config)),
        new(kinds, config.depth, tiles, groups, config.width),
        new(groups if config.scaled else 0, rows),
        groups * rows * config.width,
        tiles * groups * config.width,
    )


def hidden_layers(
    weights: Prepared,
    tape: Tape,
    rows: int,
    groups: int,
    blocks: RowBlocks,
    tiles: int,
    config: KernelConfig,
    precision: str,
) -> None:
    """Launch the hidden layers after the first one over `tiles` tiles of rows."""
    grid = (tiles, config.width // config.block_n, groups)
    layer_width = weights.offset.stride(0)
    for index in range(1, config.depth):
        hidden_layer_kernel[grid](
            weights, tape, rows, groups * rows, index, layer_width, *blocks, config,
            **tile_options(precision, config),
        )  # fmt: skip


def forward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    precision: str,
    *,
    train: bool,
    outputs: bool = True,
    dependent: bool = False,
    operands: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs `[G, K * B, out]`, or none, and what is kept; `depth + 2` launches.

    One less with `operands`, what `mlp_operands` returned; then they are not kept here.
    """
    runs, batch, _ = inputs.observations.shape
    rows = inputs.steps * batch
    config = config_for(
        weights, inputs.observations, inputs.x, precision, train=train, dependent=dependent
    )
    config = dataclasses.replace(config, clip=inputs.clip)
    x, x_stride = points_of(inputs)
    groups = runs * config.ensemble
    check_size(config, rows)
    result = inputs.observations.new_empty(groups if outputs else 0, rows, config.out)
    kept = empty_kept(config, groups, rows, weights.kernels[0], operands=len(operands) == 0)
    tape = Tape(*kept[:4])
    tiles = triton.cdiv(rows, config.block_m)
    with torch.cuda.device_of(result):
        options = tile_options(precision, config)
        if operands:
            prepared = Prepared(*operands[:-1])
        else:
            prepared = empty_prepared(config, groups, result)
            prepare([weights], kept[4:], prepared, config, precision)
        first_layer_kernel[(tiles, config.width // config.block_n, groups)](
            prepared, inputs.observations, x, x_stride, tape, groups * rows, batch, rows,
            inputs.steps, inputs.shift, config, **options,
        )  # fmt: skip
        blocks = RowBlocks(tiles, 0, 0, 0, 0, 0, rows, 0)
        hidden_layers(prepared, tape, rows, groups, blocks, tiles, config, precision)
        if outputs:
            output_kernel[(tiles, groups)](
                prepared, tape, rows, groups * rows, result, config, **options
            )
    return result, kept


def norm_blocks(config: KernelConfig) -> tuple[int, int]:
    """Return rows and columns of a program of `pull_norm_kernel`."""
    return NORM_ROWS, triton.next_power_of_2(config.width)


class Pull(NamedTuple):
    """Where a pullback runs: rows of the tape, and of the gradients.

    Attributes:
        tape: Activations.
        tape_rows: Rows of the tape.
        tape_start: The first one that counts.
        grads: Gradients.
        start: First row of the gradients.
        pulled: Rows that are pulled back.
        rows: Rows of the gradients.
        normed: Where y of the layers goes, with LayerNorm and `train`.
    """

    tape: Tape
    tape_rows: int
    tape_start: int
    grads: Gradients
    start: int
    pulled: int
    rows: int
    normed: Tensor


def pull_norm(
    weights: WeightPointers,
    pull: Pull,
    groups: int,
    index: int,
    config: KernelConfig,
    precision: str,
    cotangent: Tensor | float | None = None,
) -> None:
    """Launch the pullback of a layer's LayerNorm, if there is one.

    That of the last one may begin with the only output's cotangent, or with one for all rows.
    """
    if not config.norm:
        return
    uniform = cotangent if isinstance(cotangent, float) else 0.0
    given = cotangent if isinstance(cotangent, Tensor) else pull.grads.dy
    norm_rows, columns = norm_blocks(config)
    pull_norm_kernel[(triton.cdiv(pull.pulled, norm_rows), groups)](
        weights, pull.tape, pull.tape_rows, groups * pull.tape_rows, pull.tape_start, pull.grads,
        pull.start, pull.pulled, pull.rows, pull.normed, index, given, uniform,
        cotangent is not None, isinstance(cotangent, float), norm_rows, columns, config,
        **tile_options(precision, config, num_warps=NORM_WARPS, maxnreg=128),
    )  # fmt: skip


def pull_hidden_layers(
    weights: WeightPointers, pull: Pull, groups: int, config: KernelConfig, precision: str
) -> None:
    """Launch the pullback from the last hidden layer's dz to the first one's."""
    tiles = triton.cdiv(pull.pulled, config.block_m)
    registers = MAX_REGISTERS[precision] if config.norm else 255
    for index in range(config.depth - 2, -1, -1):
        pull_hidden_kernel[(tiles, config.width // config.block_n, groups)](
            weights, pull.tape, pull.tape_rows, groups * pull.tape_rows, pull.tape_start,
            pull.grads, pull.start, pull.pulled, pull.rows, index, config,
            **tile_options(precision, config, maxnreg=registers),
        )  # fmt: skip
        pull_norm(weights, pull, groups, index, config, precision)


def backward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    kept: Sequence[Tensor],
    cotangent: Tensor | float,
    precision: str,
    want_inputs: bool,
    gradients: Sequence[Tensor],
    *,
    dependent: bool = False,
) -> Tensor:
    """Write the weights' gradients, ordered as the weights, unless there is no place for them.

    A cotangent that is one number for all outputs has no gradients of weights.

    Returns:
        Gradients of the inputs, `[G, K * B, in]`, or of none.
    """
    groups, rows = weights.lead.numel(), inputs.steps * inputs.observations.shape[1]
    new = inputs.observations.new_empty
    tape, operands, want_weights = Tape(*kept[:4]), kept[4], len(gradients) > 0
    tape_rows = tape.out.shape[2]
    config = config_for(
        weights, inputs.observations, inputs.x, precision, train=want_weights, dependent=dependent
    )
    tiles = triton.cdiv(rows, config.block_m)
    sum_tiles = triton.cdiv(rows, norm_blocks(config)[0]) if config.norm else tiles
    grads = pulled_gradients(config, groups, rows, sum_tiles, inputs.observations)
    d_inputs = new(groups if want_inputs else 0, rows, config.inputs)
    normed = torch.empty_like(grads.pre[: config.depth if config.norm and want_weights else 0])
    pull = Pull(tape, tape_rows, 0, grads, 0, rows, rows, normed)
    with torch.cuda.device_of(d_inputs):
        options = tile_options(precision, config)
        net = weight_pointers(weights, config, operands)
        if config.norm and config.out == 1:
            pull_norm(net, pull, groups, config.depth - 1, config, precision, cotangent)
        else:
            if isinstance(cotangent, float):
                cotangent = new(groups, rows, config.out).fill_(cotangent)
            pull_output_kernel[(tiles, config.width // config.block_n, groups)](
                net, tape, tape_rows, groups * tape_rows, grads, cotangent, rows, config, **options
            )
            pull_norm(net, pull, groups, config.depth - 1, config, precision)
        pull_hidden_layers(net, pull, groups, config, precision)
        if want_inputs:
            block_in = triton.next_power_of_2(max(config.inputs, 16))
            block_in = min(block_in, 32 if precision == "ieee" else 64)  # 64 spill in float32
            pull_inputs_kernel[(tiles, triton.cdiv(config.inputs, block_in), groups)](
                net, grads, d_inputs, rows, block_in, config, **options
            )
    if want_weights:
        assert isinstance(cotangent, Tensor)
        if config.norm:
            tape, tape_rows = tape._replace(out=normed), rows
        weight_gradients(config, inputs, tape, tape_rows, grads, cotangent, gradients, precision)
    return d_inputs
