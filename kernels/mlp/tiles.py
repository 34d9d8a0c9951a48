r"""Triton passes of the stacked MLP with one launch for each layer, over the whole chip.

A program owns `block_m` rows and `block_n` features of one layer of one network; grid [tiles of
rows, tiles of features, networks]. The product is transposed, features by rows, so that features
are the side of 64 that the matrix units want, and what follows it is done before the store: bias,
GELU or its derivative, column sums. With the notation of `trqam_fast.kernels.mlp.ops`:

    forward   z_l^T = W_l^T y_{l-1}^T + b_l,                      h_l = gelu(z_l) is stored
    pullback  dz_l^T = gelu'(z_l)^T * (W_{l+1} dz_{l+1}^T)

LayerNorm is folded into the product that reads it. A program leaves the mean and the squared
deviations of its features in every row; whoever reads the layer merges them to a row's mean m and
1 / standard deviation r, and with W' = scale * W, s = sum_k W'_k and c = shift W + b has

    z_{l+1} = r (h_l W' - m s) + c

The pullback of LayerNorm needs two sums over a row before its first element, so it is a launch of
its own (`pull_norm_kernel`), which also writes y_l for the gradient of the next kernel. The
gradients of kernels are left to `trqam_fast.kernels.mlp.triton`, whose launch fills the chip.

Rows are numbered as in a rollout (`RowBlocks`): those of the SDE, of the ODE, and those that go
through the base field, which is packed behind the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton import (
    BatchInputs,
    Inputs,
    PackedGradients,
    check_size,
    points_of,
    tile_inputs,
    weight_gradients,
)
from trqam_fast.kernels.mlp.triton import config_for as fused_config
from trqam_fast.kernels.mlp.triton_config import (
    KernelConfig,
    has_little_shared_memory,
    operand_dtype,
)
from trqam_fast.kernels.mlp.triton_tile import (
    EPS,
    Gradients,
    Tape,
    gelu,
    gelu_slope,
    group_of,
    load_inputs,
    member_of,
    row_zeros,
    slot,
    true_width,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import WeightPointers, weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights

WARPS = 4
MAX_REGISTERS = {"ieee": 255, "tf32": 168, "bf16": 168}
"""Registers of a thread: three programs of 168 share a multiprocessor, as many as their 64 KiB of
shared memory allow. With 128 the first layer, the hidden ones or their pullback spill 8 to 32
bytes, depending on the architecture."""

STEP_REGISTERS = 255
"""The same of a step of the rollout or of the sweep, two products one after the other: with 128
that of the rollout spills 216 bytes, with 168 that of the sweep 32 on sm_80."""

STAGES = {"ieee": 2, "tf32": 4, "bf16": 4}
ROWS = {"ieee": 32, "tf32": 64, "bf16": 64}
WIDE_PROGRAMS = 132
"""Programs of 128 features that are worth their size: one for each multiprocessor of an H100."""


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
    tl.store(slot(tape.out, tape.stride, index, C) + at, h.to(C.operand), mask=mask[None, :])
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
        acc = tl.dot(h, w.to(C.operand), acc, input_precision=C.precision)
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
        w = tl.load(net.w_in + at, mask=(ks < C.inputs)[None, :], other=0.0).to(C.operand)
        given = tl.trans(load_inputs(source, ks, C).to(C.operand))
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
        z = tl.dot(w.to(C.operand), h, z, input_precision=C.precision)
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
    group = tl.program_id(1)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    value = output_product(net, network.folded, group, tape, row, mask, C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    tl.store(result + at, value, mask=mask[:, None] & (outs < C.out)[None, :])


@triton.jit
def finish_pull(dy, tape, grads, tape_row, row, mask, sums, tile, index, C: tl.constexpr):
    """Store dy `[block_n, rows]`, or where there is no LayerNorm dz and its column sums."""
    features = tile * C.block_n + tl.arange(0, C.block_n)
    at = row[None, :] * C.width + features[:, None]
    if C.norm:
        tl.store(grads.normed + at, dy, mask=mask[None, :])
    else:
        pre = tape.pre + index * tape.stride
        z_at = tape_row[None, :] * C.width + features[:, None]
        dz = dy * gelu_slope(tl.load(pre + z_at, mask=mask[None, :], other=0.0))
        into = slot(grads.pre, grads.stride, index, C)
        tl.store(into + at, dz.to(C.operand), mask=mask[None, :])
        if C.train:
            tl.store(sums + index * grads.sum_stride + features, tl.sum(dz, 1))


@triton.jit
def pull_outputs(cotangent, net, tile, C: tl.constexpr):
    """Return dy of the last hidden layer `[block_n, rows]` for a cotangent `[rows, block_out]`."""
    features = tile * C.block_n + tl.arange(0, C.block_n)
    outs = tl.arange(0, C.block_out)
    w = net.w_out + features[:, None] * C.out + outs[None, :]
    w = tl.load(w, mask=(outs < C.out)[None, :], other=0.0).to(C.operand)
    dy = zeros(C.block_n, C.block_m)
    given = tl.trans(cotangent.to(C.operand))
    return tl.dot(w, given, dy, input_precision=C.precision)


@triton.jit
def gradients_of(grads, group, groups, rows, tile, C: tl.constexpr):
    """Return one network's part of the gradients, and of the sums that of a tile of rows."""
    wide = tl.cast(group, tl.int64)
    return Gradients(
        grads.pre + wide * rows * C.width,
        grads.normed + wide * rows * C.width,
        grads.sums + (tl.cast(tile, tl.int64) * groups + wide) * C.width,
        tl.cast(grads.stride, tl.int64),
        tl.cast(grads.sum_stride, tl.int64),
    )


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def pull_output_kernel(
    network,  # Network of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    rows,
    C: tl.constexpr,
):
    """Pull a cotangent back to the last hidden layer; grid [tiles, tiles of features, G]."""
    group = tl.program_id(2)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(2), rows, tl.program_id(0), C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    given = tl.load(cotangent + at, mask=mask[:, None] & (outs < C.out)[None, :], other=0.0)
    dy = pull_outputs(given, net, tl.program_id(1), C)
    finish_pull(dy, tape, grads, row, row, mask, grads.sums, tl.program_id(1), C.depth - 1, C)


@triton.jit(
    do_not_specialize=["tape_rows", "layer_rows", "tape_start", "start", "count", "rows", "index"]
)
def pull_hidden_kernel(
    network,  # Network of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape
    layer_rows,  # G * tape_rows
    tape_start,  # first row of the tape
    grads,  # Gradients of G networks
    start,  # first row of the gradients
    count,  # rows that are pulled back
    rows,  # rows of the gradients
    index,  # of the layer, depth - 2 to 0
    C: tl.constexpr,
):
    """Pull dz back to the layer before; grid [tiles of rows, tiles of features, G]."""
    tile = tl.program_id(1)
    group = tl.program_id(2)
    local = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = local < count
    row = start + local
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(2), rows, tl.program_id(0), C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    hidden = net.w_hid + tl.cast(index, tl.int64) * (C.ensemble * C.width * C.width)
    behind = slot(grads.pre, grads.stride, index + 1, C)
    inner = tl.arange(0, C.block_k)
    w_at = hidden + features[:, None] * C.width + inner[None, :]
    dz_at = behind + row[None, :] * C.width + inner[:, None]
    dy = zeros(C.block_n, C.block_m)
    for _ in range(0, C.width, C.block_k):
        w = tl.load(w_at).to(C.operand)
        dz = tl.load(dz_at, mask=mask[None, :], other=0.0)
        dy = tl.dot(w, dz, dy, input_precision=C.precision)
        w_at += C.block_k
        dz_at += C.block_k
    finish_pull(dy, tape, grads, tape_start + local, row, mask, grads.sums, tile, index, C)


@triton.jit(
    do_not_specialize=["tape_rows", "layer_rows", "tape_start", "start", "count", "rows", "index"]
)
def pull_norm_kernel(
    network,  # Network of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape
    layer_rows,  # G * tape_rows
    tape_start,  # first row of the tape
    grads,  # Gradients of G networks
    start,  # first row of the gradients
    count,  # rows that are pulled back
    rows,  # rows of the gradients
    normed,  # [depth, G, rows, width]: y of the layers, written with `train`
    index,  # of the layer
    NORM_ROWS: tl.constexpr,
    COLS: tl.constexpr,
    C: tl.constexpr,
):
    """Pull dy back through LayerNorm and GELU, whole rows at once; grid [tiles of rows, G]."""
    group = tl.program_id(1)
    local = tl.program_id(0) * NORM_ROWS + tl.arange(0, NORM_ROWS)
    row = start + local
    net = network_of(network, group, 0, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    mask = local < count
    at_row = tape_start + local
    layer_stats = index * (C.width // C.block_n) * tape.stat_stride
    mean, rstd = merge(
        tape.mean + layer_stats, tape.rstd + layer_stats, tape, at_row, mask, index, C
    )
    width = true_width(index, C)
    grads = gradients_of(grads, group, tl.num_programs(1), rows, tl.program_id(0), C)
    cols = tl.arange(0, COLS)
    inside = mask[:, None] & (cols < C.width)[None, :]
    vector = index * (C.ensemble * C.width) + cols
    scale = tl.load(net.scale + vector, mask=cols < C.width, other=0.0)[None, :]
    at = row[:, None] * C.width + cols[None, :]
    z_at = at_row[:, None] * C.width + cols[None, :]
    dy = tl.load(grads.normed + at, mask=inside, other=0.0)
    z = tl.load(tape.pre + index * tape.stride + z_at, mask=inside, other=0.0)
    normal = (gelu(z) - mean[:, None]) * rstd[:, None]
    dn = dy * scale
    mean_dn = tl.sum(dn, 1) / width
    mean_dnn = tl.sum(dn * normal, 1) / width
    dh = rstd[:, None] * (dn - mean_dn[:, None] - normal * mean_dnn[:, None])
    dz = dh * gelu_slope(z)
    tl.store(slot(grads.pre, grads.stride, index, C) + at, dz.to(C.operand), mask=inside)
    if C.train:
        sums = grads.sums + index * grads.sum_stride + cols
        real = cols < C.width
        tl.store(sums, tl.sum(dz, 0), mask=real)
        tl.store(sums + C.depth * grads.sum_stride, tl.sum(dy * normal, 0), mask=real)
        tl.store(sums + 2 * C.depth * grads.sum_stride, tl.sum(dy, 0), mask=real)
        y = normal * scale + tl.load(net.shift + vector, mask=real, other=0.0)[None, :]
        into = normed + tl.cast(index, tl.int64) * grads.stride
        into += tl.cast(group, tl.int64) * rows * C.width
        tl.store(into + at, y.to(C.operand), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def pull_inputs_kernel(
    network,  # Network of G networks
    grads,  # Gradients of G networks
    d_inputs,  # [G, rows, in]
    rows,
    BLOCK_IN: tl.constexpr,
    C: tl.constexpr,
):
    """Gradients of the inputs; grid [tiles of rows, tiles of inputs, G]."""
    group = tl.program_id(2)
    wide = tl.cast(group, tl.int64)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = network_of(network, group, 0, C)
    ins = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    first = grads.pre + wide * rows * C.width
    acc = zeros(BLOCK_IN, C.block_m)
    for k in range(0, C.width, C.block_k):
        ks = k + tl.arange(0, C.block_k)
        w = net.w_in + ins[:, None] * C.width + ks[None, :]
        w = tl.load(w, mask=(ins < C.inputs)[:, None], other=0.0).to(C.operand)
        dz = tl.load(first + row[None, :] * C.width + ks[:, None], mask=mask[None, :], other=0.0)
        acc = tl.dot(w, dz, acc, input_precision=C.precision)
    at = wide * rows * C.inputs + row[None, :] * C.inputs + ins[:, None]
    tl.store(d_inputs + at, acc, mask=mask[None, :] & (ins < C.inputs)[:, None])


def tile_config(fused: KernelConfig, precision: str, rows: int, groups: int) -> KernelConfig:
    """Return the config of passes of `rows` rows through `groups` networks.

    A program that owns twice the features reads two thirds as much for each of them; it pays once
    there are programs for all multiprocessors. With LayerNorm the networks alone decide, as a
    backward pass must find the statistics as its forward pass left them.
    """
    divides = fused.width & -fused.width
    tiles = groups if fused.norm else groups * triton.cdiv(rows, ROWS[precision])
    wide = precision != "ieee" and divides >= 128
    wide = wide and (groups >= 8 if fused.norm else tiles * (fused.width // 128) >= WIDE_PROGRAMS)
    return dataclasses.replace(
        fused,
        block_m=min(ROWS[precision], max(16, ROWS[precision] * 32 // fused.block_out)),
        block_n=min(128 if wide else 64 if precision != "ieee" else 32, divides),
        k_major=False,
    )


def tile_options(precision: str, most: int | None = None) -> dict[str, int]:
    """Return Triton's options for a launch on the current device.

    Args:
        precision: Operands of the products.
        most: Registers of a thread, where other than `MAX_REGISTERS`.
    """
    stages = STAGES[precision]
    if not triton.knobs.runtime.interpret:
        device = triton.runtime.driver.active.get_current_device()
        stages = min(stages, 3) if has_little_shared_memory(device) else stages
    return {"num_warps": WARPS, "num_stages": stages, "maxnreg": most or MAX_REGISTERS[precision]}


def config_for(
    weights: MLPWeights, inputs: Tensor, x: Tensor | None, precision: str, *, train: bool, rows: int
) -> KernelConfig:
    """Return the config of passes of `rows` rows through each of `weights`."""
    fused = fused_config(weights, inputs, x, precision, train=train)
    return tile_config(fused, precision, rows, weights.lead.numel())


def empty_tape(config: KernelConfig, groups: int, rows: int, like: Tensor) -> Tape:
    """Return an uninitialised tape for `rows` rows of `groups` networks.

    Its last two fields are means and squared deviations of every tile of features. Without `train`
    two layers take turns, and no pre-activation is kept.
    """
    layers = config.depth if config.train else 2
    stats = layers * (config.width // config.block_n) if config.norm else 0
    return Tape(
        like.new_empty(config.depth if config.train else 0, groups, rows, config.width),
        like.new_empty(layers, groups, rows, config.width, dtype=operand_dtype(config)),
        like.new_empty(stats, groups, rows),
        like.new_empty(stats, groups, rows),
    )


def make_network(
    weights: WeightPointers, config: KernelConfig, groups: int, precision: str, like: Tensor
) -> Network:
    """Return a network of `groups` networks with its LayerNorm folded, a launch if it has one."""
    size = groups if config.norm else 0
    new = like.new_empty
    folded = Folded(
        new(config.depth, size, config.width),
        new(config.depth, size, config.width),
        new(size, config.out),
        new(size, config.out),
    )
    network = Network(weights, folded)
    if config.norm:
        columns = max(config.width, config.out)
        with torch.cuda.device_of(like):
            fold_kernel[(triton.cdiv(columns, config.block_n), config.depth, groups)](
                network, groups * config.width, config, **tile_options(precision)
            )
    return network


def hidden_layers(
    network: Network,
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
    width_groups = network.folded.slope.shape[1] * config.width
    for index in range(1, config.depth):
        hidden_layer_kernel[grid](
            network, tape, rows, groups * rows, index, width_groups, *blocks, config,
            **tile_options(precision),
        )  # fmt: skip


def forward_pass(
    weights: MLPWeights, inputs: Inputs, precision: str, *, train: bool
) -> tuple[Tensor, Tape]:
    """Return the outputs `[G, K * B, out]` and the tape; `depth + 1` launches."""
    runs, batch, _ = inputs.observations.shape
    rows = inputs.steps * batch
    config = config_for(weights, inputs.observations, inputs.x, precision, train=train, rows=rows)
    x, x_stride = points_of(inputs)
    groups = runs * config.ensemble
    check_size(config, rows)
    result = inputs.observations.new_empty(groups, rows, config.out)
    tape = empty_tape(config, groups, rows, result)
    tiles = triton.cdiv(rows, config.block_m)
    options = tile_options(precision)
    with torch.cuda.device_of(result):
        net = weight_pointers(weights, config)
        network = make_network(net, config, groups, precision, result)
        first_layer_kernel[(tiles, config.width // config.block_n, groups)](
            network, inputs.observations, x, x_stride, tape, groups * rows, batch, rows,
            inputs.steps, inputs.shift, config, **options,
        )  # fmt: skip
        blocks = RowBlocks(tiles, 0, 0, 0, 0, rows, 0)
        hidden_layers(network, tape, rows, groups, blocks, tiles, config, precision)
        output_kernel[(tiles, groups)](
            network, tape, rows, groups * rows, result, config, **options
        )
    return result, tape


def norm_blocks(config: KernelConfig) -> tuple[int, int]:
    """Return rows and columns of a program of `pull_norm_kernel`.

    4096 elements at most: with twice as many it needs more than 128 registers, and two programs
    of 8 warps share a multiprocessor.
    """
    columns = triton.next_power_of_2(config.width)
    return min(16, 4096 // columns), columns


class Pull(NamedTuple):
    """Where a pullback runs: rows of the tape, and of the gradients.

    Attributes:
        tape: Activations.
        tape_rows: Rows of the tape.
        tape_start: The first one that counts.
        grads: Gradients.
        start: First row of the gradients.
        count: Rows that are pulled back.
        rows: Rows of the gradients.
        normed: Where y of the layers goes, with LayerNorm and `train`.
    """

    tape: Tape
    tape_rows: int
    tape_start: int
    grads: Gradients
    start: int
    count: int
    rows: int
    normed: Tensor


def pull_norm(
    network: Network, pull: Pull, groups: int, index: int, config: KernelConfig, precision: str
) -> None:
    """Launch the pullback of a layer's LayerNorm, if there is one."""
    if not config.norm:
        return
    norm_rows, columns = norm_blocks(config)
    pull_norm_kernel[(triton.cdiv(pull.count, norm_rows), groups)](
        network, pull.tape, pull.tape_rows, groups * pull.tape_rows, pull.tape_start, pull.grads,
        pull.start, pull.count, pull.rows, pull.normed, index, norm_rows, columns, config,
        **(tile_options(precision, 128) | {"num_warps": 2 * WARPS}),
    )  # fmt: skip


def pull_hidden_layers(
    network: Network, pull: Pull, groups: int, config: KernelConfig, precision: str
) -> None:
    """Launch the pullback from the last hidden layer's dz to the first one's."""
    tiles = triton.cdiv(pull.count, config.block_m)
    for index in range(config.depth - 2, -1, -1):
        pull_hidden_kernel[(tiles, config.width // config.block_n, groups)](
            network, pull.tape, pull.tape_rows, groups * pull.tape_rows, pull.tape_start,
            pull.grads, pull.start, pull.count, pull.rows, index, config,
            **tile_options(precision),
        )  # fmt: skip
        pull_norm(network, pull, groups, index, config, precision)


def backward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    tape: Sequence[Tensor],
    cotangent: Tensor,
    precision: str,
    want_inputs: bool,
    gradients: Sequence[Tensor],
) -> Tensor:
    """Write the weights' gradients, `PackedGradients`, unless there is no place for them.

    Returns:
        Gradients of the inputs, `[G, K * B, in]`, or of none.
    """
    groups, rows = cotangent.shape[:2]
    tape, want_weights = Tape(*tape), len(gradients) > 0
    tape_rows = tape.out.shape[2]
    config = config_for(
        weights, inputs.observations, inputs.x, precision, train=want_weights, rows=rows
    )
    width, depth, new = config.width, config.depth, cotangent.new_empty
    tiles = triton.cdiv(rows, config.block_m)
    sum_tiles = triton.cdiv(rows, norm_blocks(config)[0]) if config.norm else tiles
    kinds = (3 if config.norm else 1) if want_weights else 0
    store = operand_dtype(config)
    grads = Gradients(
        new(depth if want_weights else 2, groups, rows, width, dtype=store),
        new(groups if config.norm else 0, rows, width),
        new(kinds, depth, sum_tiles, groups, width),
        groups * rows * width,
        sum_tiles * groups * width,
    )
    d_inputs = new(groups if want_inputs else 0, rows, config.inputs)
    normed = new(depth if config.norm and want_weights else 0, groups, rows, width, dtype=store)
    pull = Pull(tape, tape_rows, 0, grads, 0, rows, rows, normed)
    options = tile_options(precision)
    with torch.cuda.device_of(cotangent):
        # The pullback of LayerNorm needs its scale alone, so nothing is folded.
        network = Network(weight_pointers(weights, config), Folded(*[cotangent] * 4))
        pull_output_kernel[(tiles, width // config.block_n, groups)](
            network, tape, tape_rows, groups * tape_rows, grads, cotangent, rows, config, **options
        )
        pull_norm(network, pull, groups, depth - 1, config, precision)
        pull_hidden_layers(network, pull, groups, config, precision)
        if want_inputs:
            block_in = triton.next_power_of_2(max(config.inputs, 16))
            block_in = min(block_in, 32 if precision == "ieee" else 64)  # 64 spill in float32
            pull_inputs_kernel[(tiles, triton.cdiv(config.inputs, block_in), groups)](
                network, grads, d_inputs, rows, block_in, config, **options
            )
    if want_weights:
        if config.norm:
            tape, tape_rows = tape._replace(out=normed), rows
        packed = PackedGradients(*gradients)
        kept = fused_config(weights, inputs.observations, inputs.x, precision, train=True)
        weight_gradients(kept, inputs, tape, tape_rows, grads, cotangent, packed, precision)
    return d_inputs
