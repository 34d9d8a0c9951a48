r"""Triton kernels of one layer of a forward pass: `block_m` rows and `block_n` features a program.

Grid [tiles of rows, tiles of features, networks]. The product is transposed, features by rows, so
that features are the side of 64 that the matrix units want, and what follows it is done before the
store: bias, GELU, LayerNorm's statistics. With the notation of `trqam_fast.kernels.mlp.ops`:

    z_l^T = W_l^T y_{l-1}^T + b_l,   h_l = gelu(z_l) is stored

LayerNorm is folded into the product that reads it. A program leaves the mean and the squared
deviations of its features in every row; whoever reads the layer merges them to a row's mean m and
1 / standard deviation r, and with W' = scale * W, s = sum_k W'_k and c = shift W + b has

    z_{l+1} = r (h_l W' - m s) + c

Rows are numbered as in a rollout (`RowBlocks`): those of the SDE, of the ODE, and those that go
through the base field, which is packed behind the field.
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
    member_of,
    row_zeros,
    slot,
    true_width,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import WeightPointers


class RowBlocks(NamedTuple):
    """Which rows the tiles of a launch hold: SDE (or all), then ODE, then base field.

    Attributes:
        tiles: Tiles of the rows of the SDE.
        ode_tiles: Tiles of the rows of the ODE.
        start: Row of the tape at which the SDE's begin.
        ode_start: The same of the ODE's.
        base_start: The same of the base field's.
        batch: Rows of the SDE, and of the base field.
        ode_batch: Rows of the ODE.
    """

    tiles: Any
    ode_tiles: Any
    start: Any
    ode_start: Any
    base_start: Any
    batch: Any
    ode_batch: Any


class Folded(NamedTuple):
    """LayerNorm folded into the layer that reads it; empty without.

    Attributes:
        slope: s of the hidden layers, `[depth, G, width]`; that of layer 0 is not used.
        offset: c, likewise.
        out_slope: s of the outputs, `[G, out]`.
        out_offset: c, likewise.
    """

    slope: Any
    offset: Any
    out_slope: Any
    out_offset: Any


class Network(NamedTuple):
    """A stack of networks and what is folded from it; one behind it where there is a base field.

    Attributes:
        weights: Its packed weights.
        folded: Its folded LayerNorm.
        kernel_step: Elements from its kernels to the base field's.
        vector_step: The same of its vectors.
        fold_step: The same of `folded`, in networks.
    """

    weights: Any
    folded: Any
    kernel_step: Any = 0
    vector_step: Any = 0
    fold_step: Any = 0


@triton.jit
def rows_of(tile, blocks, BLOCK: tl.constexpr):
    """Return a tile's rows in the tape, their numbers among their kind, their mask and kind.

    Kinds are 0 (SDE), 1 (ODE) and 2 (base field).
    """
    ode = tile >= blocks.tiles
    base = tile >= blocks.tiles + blocks.ode_tiles
    before = tl.where(ode, blocks.tiles, 0) + tl.where(base, blocks.ode_tiles, 0)
    start = tl.where(base, blocks.base_start, tl.where(ode, blocks.ode_start, blocks.start))
    count = tl.where(ode & (base == 0), blocks.ode_batch, blocks.batch)
    local = (tile - before) * BLOCK + tl.arange(0, BLOCK)
    return start + local, local, local < count, ode.to(tl.int32) + base.to(tl.int32)


@triton.jit
def network_of(network, group, base, C: tl.constexpr):
    """Return the weights of one network, or of the base field behind it."""
    net = member_of(network.weights, group // C.ensemble, group % C.ensemble, C)
    kernels = tl.cast(base, tl.int64) * network.kernel_step
    vectors = tl.cast(base, tl.int64) * network.vector_step
    return WeightPointers(
        net.w_in + kernels,
        net.w_hid + kernels,
        net.w_out + kernels,
        net.b_hid + vectors,
        net.b_out + vectors,
        net.scale + vectors,
        net.shift + vectors,
        net.kernel_stride,
        net.vector_stride,
    )


@triton.jit
def stat_slot(layers, stride, index, C: tl.constexpr):
    """Return where the statistics of layer `index` lie, one part for each tile of features."""
    parts: tl.constexpr = C.width // C.block_n
    return slot(layers, stride * parts, index, C)


@triton.jit
def row_statistics(tape, row, mask, index, C: tl.constexpr):
    """Return mean and 1 / standard deviation of layer `index` in some rows."""
    means = stat_slot(tape.mean, tape.stat_stride, index, C)
    squares = stat_slot(tape.rstd, tape.stat_stride, index, C)
    return merge(means, squares, tape, row, mask, index, C)


@triton.jit
def merge(means, squares, tape, row, mask, index, C: tl.constexpr):
    """Merge the means and squared deviations of a layer's tiles of features."""
    width = true_width(index, C)
    mean = tl.load(means + row, mask=mask, other=0.0)
    total = tl.load(squares + row, mask=mask, other=0.0)
    for tile in range(1, C.width // C.block_n):
        seen = tl.minimum(tile * C.block_n, width).to(tl.float32)
        count = tl.minimum(tl.maximum(width - tile * C.block_n, 0), C.block_n).to(tl.float32)
        delta = tl.load(means + tile * tape.stat_stride + row, mask=mask, other=0.0) - mean
        all_seen = tl.maximum(seen + count, 1.0)
        total += tl.load(squares + tile * tape.stat_stride + row, mask=mask, other=0.0)
        total += delta * delta * (seen * count / all_seen)
        mean += delta * (count / all_seen)
    return mean, 1.0 / tl.sqrt(total / width + EPS)


@triton.jit
def activate(z, tape, row, mask, tile, index, C: tl.constexpr):
    """Store pre-activations `[block_n, rows]`, their GELU and its statistics in the tile."""
    features = tile * C.block_n + tl.arange(0, C.block_n)
    at = row[None, :] * C.width + features[:, None]
    if C.train:
        tl.store(tape.pre + index * tape.stride + at, z, mask=mask[None, :])
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
        tl.store(stat_slot(tape.rstd, tape.stat_stride, index, C) + into, squares, mask=mask)


@triton.jit
def output_product(net, folded, group, tape, row, mask, C: tl.constexpr):
    """Return the outputs of some rows from their last hidden layer, `[rows, block_out]`."""
    outs = tl.arange(0, C.block_out)
    narrow = (outs < C.out)[None, :]
    before = slot(tape.out, tape.stride, C.depth - 1, C)
    last = (C.depth - 1) * (C.ensemble * C.width)
    acc = zeros(C.block_m, C.block_out)
    for k in range(0, C.width, C.block_k):
        ks = k + tl.arange(0, C.block_k)
        h = tl.load(before + row[:, None] * C.width + ks[None, :], mask=mask[:, None], other=0.0)
        w = tl.load(net.w_out + ks[:, None] * C.out + outs[None, :], mask=narrow, other=0.0)
        if C.norm:
            w = w.to(tl.float32) * tl.load(net.scale + last + ks)[:, None]
        acc = tl.dot(h, to_operand(w, C), acc, input_precision=C.precision)
    if C.norm:
        mean, rstd = row_statistics(tape, row, mask, C.depth - 1, C)
        at = tl.cast(group, tl.int64) * C.out + outs
        slope = tl.load(folded.out_slope + at, mask=outs < C.out, other=0.0)
        offset = tl.load(folded.out_offset + at, mask=outs < C.out, other=0.0)
        return rstd[:, None] * (acc - mean[:, None] * slope[None, :]) + offset[None, :]
    return acc + tl.load(net.b_out + outs, mask=outs < C.out, other=0.0)[None, :]


@triton.jit
def fold_kernel(
    network,  # Network of G networks
    width_groups,  # G * width
    C: tl.constexpr,
):
    """Fold LayerNorm into the layers that read it; grid [features and outputs, depth, G].

    Layer `depth` is the output layer; its programs beyond the outputs have nothing to do.
    """
    await_predecessor(C)
    tile = tl.program_id(0)
    index = tl.program_id(1) + 1
    group = tl.program_id(2)
    wide = tl.cast(group, tl.int64)
    net = network_of(network, group, 0, C)
    vector = (index - 1) * (C.ensemble * C.width)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    slope = row_zeros(C.block_n)
    offset = row_zeros(C.block_n)
    if index == C.depth:
        inside = features < C.out
        for k in range(0, C.width, C.block_k):
            ks = k + tl.arange(0, C.block_k)
            at = ks[:, None] * C.out + features[None, :]
            w = tl.load(net.w_out + at, mask=inside[None, :], other=0.0).to(tl.float32)
            slope += tl.sum(w * tl.load(net.scale + vector + ks)[:, None], 0)
            offset += tl.sum(w * tl.load(net.shift + vector + ks)[:, None], 0)
        offset += tl.load(net.b_out + features, mask=inside, other=0.0)
        tl.store(network.folded.out_slope + wide * C.out + features, slope, mask=inside)
        tl.store(network.folded.out_offset + wide * C.out + features, offset, mask=inside)
    else:
        inside = features < C.width
        hidden = net.w_hid + tl.cast(index - 1, tl.int64) * (C.ensemble * C.width * C.width)
        for k in range(0, C.width, C.block_k):
            ks = k + tl.arange(0, C.block_k)
            at = ks[:, None] * C.width + features[None, :]
            w = tl.load(hidden + at, mask=inside[None, :], other=0.0).to(tl.float32)
            slope += tl.sum(w * tl.load(net.scale + vector + ks)[:, None], 0)
            offset += tl.sum(w * tl.load(net.shift + vector + ks)[:, None], 0)
        bias = net.b_hid + index * (C.ensemble * C.width)
        offset += tl.load(bias + features, mask=inside, other=0.0)
        into = tl.cast(index, tl.int64) * width_groups + wide * C.width + features
        tl.store(network.folded.slope + into, slope, mask=inside)
        tl.store(network.folded.offset + into, offset, mask=inside)


@triton.jit(do_not_specialize=["x_stride", "layer_rows", "batch", "rows", "steps", "shift"])
def first_layer_kernel(
    network,  # Network of G networks
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
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
    source = tile_inputs(inputs, group // C.ensemble, row, C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    z = zeros(C.block_n, C.block_m)
    for k in range(0, C.inputs, C.block_k):
        ks = k + tl.arange(0, C.block_k)
        at = ks[None, :] * C.width + features[:, None]
        w = to_operand(tl.load(net.w_in + at, mask=(ks < C.inputs)[None, :], other=0.0), C)
        given = tl.trans(to_operand(load_inputs(source, ks, C), C))
        z = tl.dot(w, given, z, input_precision=C.precision)
    z += tl.load(net.b_hid + features)[:, None]
    activate(z, tape, row, source.mask, tile, 0, C)


@triton.jit(
    do_not_specialize=[
        "rows", "layer_rows", "index", "tiles", "ode_tiles", "start", "ode_start", "base_start",
        "batch", "ode_batch",
    ]
)  # fmt: skip
def hidden_layer_kernel(
    network,  # Network of G networks
    tape,  # Tape of G networks
    rows,  # rows of the tape
    layer_rows,  # G * rows
    index,  # of the layer, 1 to depth - 1
    width_groups,  # G * width
    tiles,  # RowBlocks, from here
    ode_tiles,
    start,
    ode_start,
    base_start,
    batch,
    ode_batch,
    C: tl.constexpr,
):
    """A hidden layer from the one before; grid [tiles of rows, tiles of features, G]."""
    await_predecessor(C)
    tile = tl.program_id(1)
    group = tl.program_id(2)
    blocks = RowBlocks(tiles, ode_tiles, start, ode_start, base_start, batch, ode_batch)
    row, _, mask, kind = rows_of(tl.program_id(0), blocks, C.block_m)
    base = kind // 2
    net = network_of(network, group, base, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    hidden = net.w_hid + tl.cast(index - 1, tl.int64) * (C.ensemble * C.width * C.width)
    before = slot(tape.out, tape.stride, index - 1, C)
    vector = index * (C.ensemble * C.width)
    inner = tl.arange(0, C.block_k)
    w_at = hidden + inner[None, :] * C.width + features[:, None]
    h_at = before + row[None, :] * C.width + inner[:, None]
    z = zeros(C.block_n, C.block_m)
    for k in range(0, C.width, C.block_k):
        w = tl.load(w_at)
        h = tl.load(h_at, mask=mask[None, :], other=0.0)
        if C.norm:
            scale = tl.load(net.scale + vector - C.ensemble * C.width + k + inner)
            w = w.to(tl.float32) * scale[None, :]
        z = tl.dot(to_operand(w, C), h, z, input_precision=C.precision)
        w_at += C.block_k * C.width
        h_at += C.block_k
    if C.norm:
        mean, rstd = row_statistics(tape, row, mask, index - 1, C)
        at = tl.cast(index, tl.int64) * width_groups
        at += (tl.cast(group, tl.int64) + base * network.fold_step) * C.width
        slope = tl.load(network.folded.slope + at + features)
        offset = tl.load(network.folded.offset + at + features)
        z = rstd[None, :] * (z - slope[:, None] * mean[None, :]) + offset[:, None]
    else:
        z += tl.load(net.b_hid + vector + features)[:, None]
    activate(z, tape, row, mask, tile, index, C)


@triton.jit(do_not_specialize=["rows", "layer_rows"])
def output_kernel(
    network,  # Network of G networks
    tape,  # Tape of G networks
    rows,  # of the tape, all of which count
    layer_rows,  # G * rows
    result,  # [G, rows, out]
    C: tl.constexpr,
):
    """The output layer; grid [tiles of rows, G]."""
    await_predecessor(C)
    group = tl.program_id(1)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    value = output_product(net, network.folded, group, tape, row, mask, C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    tl.store(result + at, value, mask=mask[:, None] & (outs < C.out)[None, :])
