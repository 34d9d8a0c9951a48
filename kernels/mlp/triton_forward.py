r"""Triton kernels of one layer of a forward pass: `block_m` rows and `block_n` features a program.

Grid [tiles of rows, tiles of features, networks]. The product is transposed, features by rows, so
that features are the side of 64 that the matrix units want, and what follows it is done before the
store: bias, GELU, LayerNorm's statistics. With the notation of `trqam_fast.kernels.mlp.ops`:

    z_l^T = W_l^T y_{l-1}^T + b_l,   h_l = gelu(z_l) is stored

The weights are prepared once for all rows and steps (`prepare_kernel`): transposed, as operands, so
that both sides of every product lie along its depth, come to shared memory in 16 bytes at a time
and go to the matrix units from there.

LayerNorm is folded into the product that reads it. A program leaves the mean and the squared
deviations of its features in every row; whoever reads the layer merges them to a row's mean m and
1 / standard deviation r, and with W' = scale * W rounded to an operand, s = sum_k W'_k and
c = shift W + b has

    z_{l+1} = r (h_l W' - m s) + c

Rows are numbered as in a rollout (`RowBlocks`): those of the SDE, of the ODE, and twice those of
the SDE that go through the base field, which is prepared behind the field.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from trqam_fast.kernels.mlp.triton_inputs import BatchInputs, tile_inputs
from trqam_fast.kernels.mlp.triton_operands import to_operand
from trqam_fast.kernels.mlp.triton_tile import (
    EPS,
    await_predecessor,
    gelu,
    group_of,
    load_inputs,
    slot,
    true_width,
    zeros,
)


class RowBlocks(NamedTuple):
    """Which rows the tiles of a launch hold: SDE (or all), ODE, base field, base field's sweep.

    Attributes:
        tiles: Tiles of the rows of the SDE.
        ode_tiles: Tiles of the rows of the ODE.
        start: Row of the tape at which the SDE's begin.
        ode_start: The same of the ODE's.
        base_start: The same of the base field's at t_k.
        sweep_start: The same of the base field's at t_k + h.
        batch: Rows of the SDE, and of each kind of the base field.
        ode_batch: Rows of the ODE.
    """

    tiles: Any
    ode_tiles: Any
    start: Any
    ode_start: Any
    base_start: Any
    sweep_start: Any
    batch: Any
    ode_batch: Any


class Prepared(NamedTuple):
    """Weights of a stack of G networks as the forward passes read them.

    Attributes:
        first: First kernels as operands, `[G, width, columns]`: those of the observations, of x
            from `KernelConfig.x_column`, of the time at `KernelConfig.time_column`, zeros between.
        hidden: Kernels between hidden layers, W'^T, `[depth - 1, G, width, width]`.
        last: Output kernels, W'^T with zeros below, `[G, block_out, width]`.
        slope: s of the hidden layers, `[depth, G, width]`, only with LayerNorm. That of layer 0 is
            not used.
        offset: c, likewise; without LayerNorm the biases.
        last_slope: s of the outputs, `[G, block_out]`, only with LayerNorm.
        last_offset: c of the outputs, likewise.
    """

    first: Any
    hidden: Any
    last: Any
    slope: Any
    offset: Any
    last_slope: Any
    last_offset: Any


@triton.jit
def rows_of(tile, blocks, BLOCK: tl.constexpr):
    """Return a tile's rows in the tape, their numbers among their kind, their mask and kind.

    Kinds are 0 (SDE), 1 (ODE), and of the base field 2 (at t_k) and 3 (at t_k + h).
    """
    ode = (tile >= blocks.tiles).to(tl.int32)
    base = (tile >= blocks.tiles + blocks.ode_tiles).to(tl.int32)
    sweep = (tile >= 2 * blocks.tiles + blocks.ode_tiles).to(tl.int32)
    kind = ode + base + sweep
    before = (ode + sweep) * blocks.tiles + base * blocks.ode_tiles
    start = tl.where(kind == 1, blocks.ode_start, blocks.start)
    start = tl.where(kind == 2, blocks.base_start, start)
    start = tl.where(kind == 3, blocks.sweep_start, start)
    count = tl.where(kind == 1, blocks.ode_batch, blocks.batch)
    local = (tile - before) * BLOCK + tl.arange(0, BLOCK)
    return start + local, local, local < count, kind


@triton.jit
def stat_slot(layers, stride, index, C: tl.constexpr):
    """Return where the statistics of layer `index` lie, one part for each tile of features."""
    parts: tl.constexpr = C.width // C.block_n
    return slot(layers, stride * parts, index, C)


@triton.jit
def row_statistics(tape, row, mask, index, C: tl.constexpr):
    """Return mean and 1 / standard deviation of layer `index` in some rows."""
    means = stat_slot(tape.mean, tape.stat_stride, index, C)
    squares = stat_slot(tape.squares, tape.stat_stride, index, C)
    return merge(means, squares, tape, row, mask, index, C)


@triton.jit
def merge(means, squares, tape, row, mask, index, C: tl.constexpr):
    """Merge the means and squared deviations of a layer's tiles of features, loaded at once."""
    width = true_width(index, C)
    parts: tl.constexpr = C.width // C.block_n
    part = tl.arange(0, C.stat_parts)
    count = tl.minimum(tl.maximum(width - part * C.block_n, 0), C.block_n).to(tl.float32)[:, None]
    at = part[:, None] * tape.stat_stride + row[None, :]
    inside = (part < parts)[:, None] & mask[None, :]
    mean_of_part = tl.load(means + at, mask=inside, other=0.0)
    square_of_part = tl.load(squares + at, mask=inside, other=0.0)
    mean = tl.sum(mean_of_part * count, 0) / width
    apart = mean_of_part - mean[None, :]
    total = tl.sum(square_of_part + count * apart * apart, 0)
    return mean, 1.0 / tl.sqrt(total / width + EPS)


@triton.jit
def activate(z, tape, row, mask, tile, index, C: tl.constexpr):
    """Store pre-activations `[block_n, rows]`, their GELU and its statistics in the tile."""
    features = tile * C.block_n + tl.arange(0, C.block_n)
    at = row[None, :] * C.width + features[:, None]
    if C.train:
        tl.store(tape.pre + index * tape.stride + at, to_operand(z, C), mask=mask[None, :])
    h = gelu(z)
    tl.store(slot(tape.out, tape.stride, index, C) + at, to_operand(h, C), mask=mask[None, :])
    if C.norm:
        width = true_width(index, C)
        real = (features < width)[:, None]
        count = tl.minimum(tl.maximum(width - tile * C.block_n, 0), C.block_n).to(tl.float32)
        mean = tl.sum(tl.where(real, h, 0.0), 0) / tl.maximum(count, 1.0)
        apart = tl.where(real, h - mean[None, :], 0.0)
        into = tile * tape.stat_stride + row
        tl.store(stat_slot(tape.mean, tape.stat_stride, index, C) + into, mean, mask=mask)
        squares = tl.sum(apart * apart, 0)
        tl.store(stat_slot(tape.squares, tape.stat_stride, index, C) + into, squares, mask=mask)


@triton.jit
def output_product(weights, wide, tape, row, mask, C: tl.constexpr):
    """Return the outputs of some rows from their last hidden layer, `[rows, block_out]`.

    `wide` is the network among those prepared.
    """
    outs = tl.arange(0, C.block_out)
    inner = tl.arange(0, C.block_k)
    before = slot(tape.out, tape.stride, C.depth - 1, C)
    h_at = before + row[:, None] * C.width + inner[None, :]
    w_at = weights.last + wide * (C.block_out * C.width)
    w_at += outs[None, :] * C.width + inner[:, None]
    acc = zeros(C.block_m, C.block_out)
    for _ in range(0, C.width, C.block_k):
        h = tl.load(h_at, mask=mask[:, None], other=0.0)
        acc = tl.dot(h, tl.load(w_at), acc, input_precision=C.precision)
        h_at += C.block_k
        w_at += C.block_k
    at = wide * C.block_out + outs
    offset = tl.load(weights.last_offset + at)[None, :]
    if C.norm:
        mean, rstd = row_statistics(tape, row, mask, C.depth - 1, C)
        slope = tl.load(weights.last_slope + at)[None, :]
        return rstd[:, None] * (acc - mean[:, None] * slope) + offset
    return acc + offset


@triton.jit(do_not_specialize=["x_stride", "layer_rows", "batch", "rows", "steps", "shift"])
def first_layer_kernel(
    weights,  # Prepared, of G networks
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks, rows = K * B
    layer_rows,  # G * K * B
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """The first layer of rows (k, b); grid [tiles of rows, tiles of features, G]."""
    await_predecessor(C)
    tile = tl.program_id(1)
    group = tl.program_id(2)
    wide = tl.cast(group, tl.int64)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    tape = group_of(tape, group, rows, layer_rows, C)
    inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
    source = tile_inputs(inputs, group // C.ensemble, row, C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    w_at = weights.first + (wide * C.width + features[:, None]) * C.columns
    z = zeros(C.block_n, C.block_m)
    for k in tl.range(0, C.columns, C.block_k, num_stages=1):
        ks = k + tl.arange(0, C.block_k)
        given = to_operand(load_inputs(source, ks, C), C)
        w = tl.load(w_at + ks[None, :])
        z = tl.dot(w, tl.trans(given), z, input_precision=C.precision)
    z += tl.load(weights.offset + wide * C.width + features)[:, None]
    activate(z, tape, row, source.mask, tile, 0, C)


@triton.jit(
    do_not_specialize=[
        "rows", "layer_rows", "index", "tiles", "ode_tiles", "start", "ode_start", "base_start",
        "sweep_start", "batch", "ode_batch",
    ]
)  # fmt: skip
def hidden_layer_kernel(
    weights,  # Prepared, of G networks, or twice as many with base fields behind them
    tape,  # Tape of G networks
    rows,  # rows of the tape
    layer_rows,  # G * rows
    index,  # of the layer, 1 to depth - 1
    layer_width,  # elements between two layers' slopes or offsets
    tiles,  # RowBlocks, from here
    ode_tiles,
    start,
    ode_start,
    base_start,
    sweep_start,
    batch,
    ode_batch,
    C: tl.constexpr,
):
    """A hidden layer from the one before; grid [tiles of rows, tiles of features, G]."""
    await_predecessor(C)
    tile = tl.program_id(1)
    group = tl.program_id(2)
    blocks = RowBlocks(
        tiles, ode_tiles, start, ode_start, base_start, sweep_start, batch, ode_batch
    )
    row, _, mask, kind = rows_of(tl.program_id(0), blocks, C.block_m)
    wide = tl.cast(group + kind // 2 * tl.num_programs(2), tl.int64)
    tape = group_of(tape, group, rows, layer_rows, C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    inner = tl.arange(0, C.block_k)
    w_at = weights.hidden + (index - 1) * tl.cast(layer_width, tl.int64) * C.width
    w_at += (wide * C.width + features[:, None]) * C.width + inner[None, :]
    before = slot(tape.out, tape.stride, index - 1, C)
    h_at = before + row[None, :] * C.width + inner[:, None]
    at = index * tl.cast(layer_width, tl.int64) + wide * C.width + features
    # Loaded before the product, so that nobody waits for them after it.
    offset = tl.load(weights.offset + at)
    if C.norm:
        mean, rstd = row_statistics(tape, row, mask, index - 1, C)
        slope = tl.load(weights.slope + at)
    z = zeros(C.block_n, C.block_m)
    for _ in range(0, C.width, C.block_k):
        w = tl.load(w_at)
        h = tl.load(h_at, mask=mask[None, :], other=0.0)
        z = tl.dot(w, h, z, input_precision=C.precision)
        w_at += C.block_k
        h_at += C.block_k
    if C.norm:
        z = rstd[None, :] * (z - slope[:, None] * mean[None, :])
    activate(z + offset[:, None], tape, row, mask, tile, index, C)


@triton.jit(do_not_specialize=["rows", "layer_rows"])
def output_kernel(
    weights,  # Prepared, of G networks
    tape,  # Tape of G networks
    rows,  # of the tape, all of which count
    layer_rows,  # G * rows
    result,  # [G, rows, out]
    C: tl.constexpr,
):
    """The output layer; grid [tiles of rows, G]."""
    await_predecessor(C)
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    tape = group_of(tape, group, rows, layer_rows, C)
    value = output_product(weights, wide, tape, row, mask, C)
    outs = tl.arange(0, C.block_out)
    at = wide * rows * C.out + row[:, None] * C.out + outs[None, :]
    tl.store(result + at, value, mask=mask[:, None] & (outs < C.out)[None, :])
