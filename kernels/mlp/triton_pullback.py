r"""Triton kernels of one layer of a pullback: `block_m` rows and `block_n` features a program.

Grid [tiles of rows, tiles of features, networks], products transposed as in the forward pass
(`trqam_fast.kernels.mlp.triton_forward`), GELU's derivative and column sums before the store:

    dz_l^T = gelu'(z_l)^T * (W_{l+1} dz_{l+1}^T)

The pullback of LayerNorm needs two sums over a row before its first element, so it is a launch of
its own (`pull_norm_kernel`), which also writes y_l for the gradient of the next kernel. Behind one
output, as critics have it, that of the last layer begins with the cotangent itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trqam_fast.kernels.mlp.triton_forward import merge
from trqam_fast.kernels.mlp.triton_operands import row_scaled, row_scales, to_operand
from trqam_fast.kernels.mlp.triton_tile import (
    await_predecessor,
    gelu,
    gelu_slope,
    gradients_of,
    group_of,
    member_of,
    slot,
    true_width,
    zeros,
)


@triton.jit
def load_pre(tape, tape_row, mask, tile, index, C: tl.constexpr):
    """Load pre-activations `[block_n, rows]`, for `finish_pull`; nothing where LayerNorm follows.

    Called before the product, so that they arrive while it runs.
    """
    z = 0.0
    if not C.norm:
        features = tile * C.block_n + tl.arange(0, C.block_n)
        at = tape_row[None, :] * C.width + features[:, None]
        z = tl.load(tape.pre + index * tape.stride + at, mask=mask[None, :], other=0.0)
        z = z.to(tl.float32)
    return z


@triton.jit
def finish_pull(dy, z, scale, grads, row, mask, sums, tile, index, C: tl.constexpr):
    """Store dy `[block_n, rows]`, or where there is no LayerNorm dz and its column sums.

    dy and dz are over the rows' powers of two, `scale`; the sums are not.
    """
    features = tile * C.block_n + tl.arange(0, C.block_n)
    at = row[None, :] * C.width + features[:, None]
    if C.norm:
        tl.store(grads.dy + at, to_operand(dy, C), mask=mask[None, :])
    else:
        dz = dy * gelu_slope(z)
        into = slot(grads.pre, grads.stride, index, C)
        tl.store(into + at, to_operand(dz, C), mask=mask[None, :])
        if C.train:
            if C.scaled:
                dz *= scale[None, :]
            tl.store(sums + index * grads.sum_stride + features, tl.sum(dz, 1))


@triton.jit
def pull_outputs(cotangent, net, tile, C: tl.constexpr):
    """Return dy of the last hidden layer `[block_n, rows]` for a cotangent `[rows, block_out]`."""
    features = tile * C.block_n + tl.arange(0, C.block_n)
    outs = tl.arange(0, C.block_out)
    w = net.w_out + features[:, None] * C.out + outs[None, :]
    w = to_operand(tl.load(w, mask=(outs < C.out)[None, :], other=0.0), C)
    dy = zeros(C.block_n, C.block_m)
    given = tl.trans(to_operand(cotangent, C))
    return tl.dot(w, given, dy, input_precision=C.precision)


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def pull_output_kernel(
    weights,  # WeightPointers of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    rows,
    C: tl.constexpr,
):
    """Pull a cotangent back to the last hidden layer; grid [tiles, tiles of features, G]."""
    await_predecessor(C)
    group = tl.program_id(2)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = member_of(weights, group // C.ensemble, group % C.ensemble, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(2), rows, tl.program_id(0), C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    given = tl.load(cotangent + at, mask=mask[:, None] & (outs < C.out)[None, :], other=0.0)
    given, scale = row_scaled(given, C)
    tile = tl.program_id(1)
    if C.scaled:
        tl.store(grads.row_scale + row, scale, mask=mask & (tile == 0))
    z = load_pre(tape, row, mask, tile, C.depth - 1, C)
    dy = pull_outputs(given, net, tile, C)
    finish_pull(dy, z, scale, grads, row, mask, grads.sums, tile, C.depth - 1, C)


@triton.jit(
    do_not_specialize=["tape_rows", "layer_rows", "tape_start", "start", "count", "rows", "index"]
)
def pull_hidden_kernel(
    weights,  # WeightPointers of G networks
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
    await_predecessor(C)
    tile = tl.program_id(1)
    group = tl.program_id(2)
    local = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = local < count
    row = start + local
    net = member_of(weights, group // C.ensemble, group % C.ensemble, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(2), rows, tl.program_id(0), C)
    features = tile * C.block_n + tl.arange(0, C.block_n)
    hidden = net.w_hid + tl.cast(index, tl.int64) * (C.ensemble * C.width * C.width)
    behind = slot(grads.pre, grads.stride, index + 1, C)
    inner = tl.arange(0, C.block_k)
    w_at = hidden + features[:, None] * C.width + inner[None, :]
    dz_at = behind + row[None, :] * C.width + inner[:, None]
    z = load_pre(tape, tape_start + local, mask, tile, index, C)
    dy = zeros(C.block_n, C.block_m)
    for _ in range(0, C.width, C.block_k):
        w = to_operand(tl.load(w_at), C)
        dz = tl.load(dz_at, mask=mask[None, :], other=0.0)
        dy = tl.dot(w, dz, dy, input_precision=C.precision)
        w_at += C.block_k
        dz_at += C.block_k
    scale = row_scales(grads.row_scale, row, mask, C)
    finish_pull(dy, z, scale, grads, row, mask, grads.sums, tile, index, C)


@triton.jit(
    do_not_specialize=[
        "tape_rows", "layer_rows", "tape_start", "start", "count", "rows", "index", "uniform",
    ]
)  # fmt: skip
def pull_norm_kernel(
    weights,  # WeightPointers of G networks
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
    cotangent,  # [G, rows, 1] with OUTPUT
    uniform,  # in its place with UNIFORM
    OUTPUT: tl.constexpr,
    UNIFORM: tl.constexpr,
    NORM_ROWS: tl.constexpr,
    COLS: tl.constexpr,
    C: tl.constexpr,
):
    """Pull dy back through LayerNorm and GELU, row after row; grid [tiles of rows, G].

    A tile's column sums grow in registers: nothing is added across rows before the last one. With
    OUTPUT, of the last layer, dy is the only output's cotangent times its kernel.
    """
    await_predecessor(C)
    group = tl.program_id(1)
    net = member_of(weights, group // C.ensemble, group % C.ensemble, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    grads = gradients_of(grads, group, tl.num_programs(1), rows, tl.program_id(0), C)
    layer_stats = index * (C.width // C.block_n) * tape.stat_stride
    means, squares = tape.mean + layer_stats, tape.squares + layer_stats
    width = true_width(index, C)
    cols = tl.arange(0, COLS)
    real = cols < C.width
    vector = index * (C.ensemble * C.width) + cols
    scale = tl.load(net.scale + vector, mask=real, other=0.0)[None, :]
    shift = tl.load(net.shift + vector, mask=real, other=0.0)[None, :]
    into = normed + tl.cast(index, tl.int64) * grads.stride
    into += tl.cast(group, tl.int64) * rows * C.width
    sum_dz, sum_dscale, sum_dshift = zeros(1, COLS), zeros(1, COLS), zeros(1, COLS)
    if OUTPUT:
        w = to_operand(tl.load(net.w_out + cols, mask=real, other=0.0), C).to(tl.float32)[None, :]
        given_at = cotangent + tl.cast(group, tl.int64) * rows
    for n in range(0, NORM_ROWS):
        local = tl.program_id(0) * NORM_ROWS + n + tl.arange(0, 1)
        mask = local < count
        row, tape_row = start + local, tape_start + local
        mean, rstd = merge(means, squares, tape, tape_row, mask, index, C)
        inside = mask[:, None] & real[None, :]
        at = row[:, None] * C.width + cols[None, :]
        z_at = tape_row[:, None] * C.width + cols[None, :]
        if OUTPUT:
            given = zeros(1, 1) + uniform
            if not UNIFORM:
                given = tl.load(given_at + row, mask=mask, other=0.0)[:, None]
            given, power = row_scaled(given, C)
            if C.scaled:
                tl.store(grads.row_scale + row, power, mask=mask)
            dy = to_operand(given, C).to(tl.float32) * w
        else:
            dy = tl.load(grads.dy + at, mask=inside, other=0.0).to(tl.float32)
            power = row_scales(grads.row_scale, row, mask, C)
        z = tl.load(tape.pre + index * tape.stride + z_at, mask=inside, other=0.0).to(tl.float32)
        normal = (gelu(z) - mean[:, None]) * rstd[:, None]
        dn = dy * scale
        mean_dn = tl.sum(dn, 1) / width
        mean_dnn = tl.sum(dn * normal, 1) / width
        dh = rstd[:, None] * (dn - mean_dn[:, None] - normal * mean_dnn[:, None])
        dz = dh * gelu_slope(z)
        tl.store(slot(grads.pre, grads.stride, index, C) + at, to_operand(dz, C), mask=inside)
        if C.train:
            if C.scaled:
                dz *= power[:, None]
                dy *= power[:, None]
            sum_dz += dz
            sum_dscale += dy * normal
            sum_dshift += dy
            tl.store(into + at, to_operand(normal * scale + shift, C), mask=inside)
    if C.train:
        sums = grads.sums + index * grads.sum_stride + cols
        tl.store(sums, tl.sum(sum_dz, 0), mask=real)
        tl.store(sums + C.depth * grads.sum_stride, tl.sum(sum_dscale, 0), mask=real)
        tl.store(sums + 2 * C.depth * grads.sum_stride, tl.sum(sum_dshift, 0), mask=real)


@triton.jit(do_not_specialize=["rows"])
def pull_inputs_kernel(
    weights,  # WeightPointers of G networks
    grads,  # Gradients of G networks
    d_inputs,  # [G, rows, in]
    rows,
    BLOCK_IN: tl.constexpr,
    C: tl.constexpr,
):
    """Gradients of the inputs; grid [tiles of rows, tiles of inputs, G]."""
    await_predecessor(C)
    group = tl.program_id(2)
    wide = tl.cast(group, tl.int64)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = member_of(weights, group // C.ensemble, group % C.ensemble, C)
    ins = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    first = grads.pre + wide * rows * C.width
    acc = zeros(BLOCK_IN, C.block_m)
    for k in range(0, C.width, C.block_k):
        ks = k + tl.arange(0, C.block_k)
        w = net.w_in + ins[:, None] * C.width + ks[None, :]
        w = to_operand(tl.load(w, mask=(ins < C.inputs)[:, None], other=0.0), C)
        dz = tl.load(first + row[None, :] * C.width + ks[:, None], mask=mask[None, :], other=0.0)
        acc = tl.dot(w, dz, acc, input_precision=C.precision)
    if C.scaled:
        acc *= row_scales(grads.row_scale + wide * rows, row, mask, C)[None, :]
    at = wide * rows * C.inputs + row[None, :] * C.inputs + ins[:, None]
    tl.store(d_inputs + at, acc, mask=mask[None, :] & (ins < C.inputs)[:, None])
