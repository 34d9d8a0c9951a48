r"""Device functions: a tile of rows through a stack of MLPs, forward and back.

One program owns `block_m` rows of one network and does all its layers. Between layers the tile's
activations lie in global memory, where they stay in L2 and, for training, are the tape that the
backward pass reads; a barrier of the program separates writing from reading. The weights stream
through shared memory block by block. With the notation of `trqam_fast.kernels.mlp.ops`:

    forward   z_l = y_{l-1} W_l + b_l,   h_l = gelu(z_l),   y_l = LayerNorm(h_l) or h_l
    pullback  dy_l = dz_{l+1} W_{l+1}^T,  dz_l = gelu'(z_l) * LayerNorm'(h_l)^T dy_l

LayerNorm needs a row's statistics before its first element, so a first sweep over the columns
gathers them (mean and squared deviations, merged block by block: no cancellation) and a second one
applies them. Its pullback, with n = (h - mean) rstd and dn = scale * dy, is

    dh = rstd (dn - mean_w(dn) - n mean_w(dn n)),   dscale = sum_rows dy n,   dshift = sum_rows dy

Columns beyond a layer's true width hold zero weights, so they add nothing to what is kept.

Longer than 400 lines, as the ways forward and back agree on where a tape keeps what.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.triton_operands import to_operand
from trqam_fast.kernels.mlp.triton_weights import WeightPointers

EPS = tl.constexpr(NORM_EPS)


class Tape(NamedTuple):
    """Activations: `[layers, G, rows, width]` and statistics `[depth, G, rows]`.

    Without `train`, `pre` has one layer and `out` two that take turns. `stride` and `stat_stride`,
    the elements between two layers of either kind, are set inside a kernel.
    """

    pre: Any
    out: Any
    mean: Any
    rstd: Any
    stride: Any = 0
    stat_stride: Any = 0


class Gradients(NamedTuple):
    """Pulled-back gradients: of pre-activations, `[layers, G, rows, width]`, and column sums.

    Without `train`, `pre` has two layers that take turns. `normed` is scratch `[G, rows, width]`;
    `sums` is `[3, depth, tiles, G, width]`: of dz, dscale, dshift; `row_scale` is `[G, rows]`, the
    powers of two over which float16 gradients are stored (`triton_operands`).
    """

    pre: Any
    normed: Any
    sums: Any
    row_scale: Any
    stride: Any
    sum_stride: Any


class TileInputs(NamedTuple):
    """Where a tile's inputs `[s, x, t]` come from: pointers, and rows in each.

    With `SHARED`, `observations` is instead the share of s in the first pre-activation, rows of
    `width`, and `time` is a scalar.
    """

    observations: Any
    x: Any
    obs_row: Any
    x_row: Any
    time: Any
    mask: Any


@triton.jit
def zeros(ROWS: tl.constexpr, COLS: tl.constexpr):
    """Zeros `[ROWS, COLS]`, float32."""
    return tl.zeros((ROWS, COLS), tl.float32)


@triton.jit
def row_zeros(ROWS: tl.constexpr):
    """Zeros `[ROWS]`, float32."""
    return tl.zeros((ROWS,), tl.float32)


@triton.jit
def gelu(z):
    """GELU, tanh approximation: z sigmoid(2u), u = sqrt(2/pi) (z + 0.044715 z^3)."""
    return z * tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))


@triton.jit
def gelu_slope(z):
    """Derivative of `gelu`."""
    s = tl.sigmoid(1.5957691216057308 * z * (1.0 + 0.044715 * z * z))
    return s + z * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)


@triton.jit
def member_of(net, run, member, C: tl.constexpr):
    """Return the network of one member of one run."""
    kernels = tl.cast(run, tl.int64) * net.kernel_stride
    vectors = tl.cast(run, tl.int64) * net.vector_stride
    wide = member * C.width
    return WeightPointers(
        net.w_in + kernels + member * (C.inputs * C.width),
        net.w_hid + kernels + member * (C.width * C.width),
        net.w_out + kernels + member * (C.width * C.out),
        net.b_hid + vectors + wide,
        net.b_out + vectors + member * C.out,
        net.scale + vectors + wide,
        net.shift + vectors + wide,
        net.kernel_stride,
        net.vector_stride,
    )


@triton.jit
def group_of(tape, group, rows, layer_rows, C: tl.constexpr):
    """Return one network's part of a tape with `rows` rows, `layer_rows` in all networks.

    Both come from the host: what is computed here would occupy registers throughout.
    """
    at = tl.cast(group, tl.int64) * rows
    layer_rows = tl.cast(layer_rows, tl.int64)
    return Tape(
        tape.pre + at * C.width,
        tape.out + at * C.width,
        tape.mean + at,
        tape.rstd + at,
        layer_rows * C.width,
        layer_rows,
    )


@triton.jit
def gradients_of(grads, group, groups, rows, tile, C: tl.constexpr):
    """Return one network's part of the gradients, and of the sums that of a tile of rows."""
    wide = tl.cast(group, tl.int64)
    return Gradients(
        grads.pre + wide * rows * C.width,
        grads.normed + wide * rows * C.width,
        grads.sums + (tl.cast(tile, tl.int64) * groups + wide) * C.width,
        grads.row_scale + wide * rows,
        tl.cast(grads.stride, tl.int64),
        tl.cast(grads.sum_stride, tl.int64),
    )


@triton.jit
def true_width(index, C: tl.constexpr):
    """Return the width of hidden layer `index` without padding."""
    width = C.widths[0]
    for i in tl.static_range(len(C.widths)):
        width = tl.where(index == i, C.widths[i], width)
    return width


@triton.jit
def load_inputs(source, cols, C: tl.constexpr):
    """Load columns `cols` of the concatenated inputs, float32."""
    mask = source.mask[:, None]
    at = source.obs_row[:, None] * C.obs + cols[None, :]
    value = tl.load(source.observations + at, mask=mask & (cols < C.obs)[None, :], other=0.0)
    if C.dim > 0:
        inside = (cols >= C.obs) & (cols < C.obs + C.dim)
        at = source.x_row[:, None] * C.dim + (cols - C.obs)[None, :]
        value += tl.load(source.x + at, mask=mask & inside[None, :], other=0.0)
    if C.time > 0:
        value += tl.where((cols == C.obs + C.dim)[None, :] & mask, source.time[:, None], 0.0)
    return value


@triton.jit
def first_product(source, net, cols, C: tl.constexpr):
    """Inputs times the first kernel's columns `cols`."""
    acc = zeros(C.block_m, C.block_n)
    for k in range(0, C.inputs, C.block_k):
        ks = k + tl.arange(0, C.block_k)
        a = to_operand(load_inputs(source, ks, C), C)
        at = ks[:, None] * C.width + cols[None, :]
        w = to_operand(tl.load(net.w_in + at, mask=(ks < C.inputs)[:, None], other=0.0), C)
        acc = tl.dot(a, w, acc, input_precision=C.precision)
    return acc


@triton.jit
def observation_share(source, net, C: tl.constexpr, into):
    """Store s W_s + b of the tile's rows to `into`, rows of `width`."""
    row = source.obs_row
    for n in tl.range(0, C.width, C.block_n, num_stages=1):
        cols = n + tl.arange(0, C.block_n)
        acc = zeros(C.block_m, C.block_n)
        for k in range(0, C.obs, C.block_k):
            ks = k + tl.arange(0, C.block_k)
            inside = ks < C.obs
            a = tl.load(
                source.observations + row[:, None] * C.obs + ks[None, :],
                mask=source.mask[:, None] & inside[None, :],
                other=0.0,
            )
            w = tl.load(
                net.w_in + ks[:, None] * C.width + cols[None, :], mask=inside[:, None], other=0.0
            )
            a, w = to_operand(a, C), to_operand(w, C)
            acc = tl.dot(a, w, acc, input_precision=C.precision)
        acc += tl.load(net.b_hid + cols)[None, :]
        tl.store(into + row[:, None] * C.width + cols[None, :], acc, mask=source.mask[:, None])


@triton.jit
def shared_product(source, net, cols, C: tl.constexpr):
    """First pre-activation from the stored share: share + x W_x + t w_t."""
    at = source.obs_row[:, None] * C.width + cols[None, :]
    acc = tl.load(source.observations + at, mask=source.mask[:, None], other=0.0)
    dims = tl.arange(0, C.block_out)
    inside = dims < C.dim
    x = tl.load(
        source.x + source.x_row[:, None] * C.dim + dims[None, :],
        mask=source.mask[:, None] & inside[None, :],
        other=0.0,
    )
    w = net.w_in + C.obs * C.width
    w_x = tl.load(w + dims[:, None] * C.width + cols[None, :], mask=inside[:, None], other=0.0)
    acc = tl.dot(to_operand(x, C), to_operand(w_x, C), acc, input_precision=C.precision)
    return acc + source.time * tl.load(w + C.dim * C.width + cols).to(tl.float32)[None, :]


@triton.jit
def product(a, row, mask, w, w_mask, w_step, acc, NARROW: tl.constexpr, C: tl.constexpr):
    """Return acc plus rows of `a` `[*, width]` times the blocks at `w`, which advance by `w_step`.

    `w_mask` counts for a `NARROW` second factor, whose other axis does not fill its block.
    """
    a = a + row[:, None] * C.width + tl.arange(0, C.block_k)[None, :]
    for _ in range(0, C.width, C.block_k):
        left = tl.load(a, mask=mask[:, None], other=0.0)
        if NARROW:
            right = tl.load(w, mask=w_mask, other=0.0)
        else:
            right = tl.load(w)
        acc = tl.dot(left, to_operand(right, C), acc, input_precision=C.precision)
        a += C.block_k
        w += w_step
    return acc


@triton.jit
def slot(layers, stride, index, C: tl.constexpr):
    """Return where layer `index` lies: with `train` all are kept, else two take turns."""
    if C.train:
        return layers + index * stride
    return layers + (index % 2) * stride


@triton.jit
def pre_slot(tape, index, C: tl.constexpr):
    """Return where the tape keeps the pre-activation of hidden layer `index`."""
    if C.train:
        return tape.pre + index * tape.stride
    return tape.pre


@triton.jit
def layer(
    source, net, tape, row, index, FIRST: tl.constexpr, SHARED: tl.constexpr, C: tl.constexpr
):
    """One hidden layer of the tile; ends with a barrier, so that the next may read it."""
    vector = index * (C.ensemble * C.width)
    pre, out = pre_slot(tape, index, C), slot(tape.out, tape.stride, index, C)
    mask = source.mask
    for n in tl.range(0, C.width, C.block_n, num_stages=1):
        cols = n + tl.arange(0, C.block_n)
        if SHARED:
            z = shared_product(source, net, cols, C)
        elif FIRST:
            z = first_product(source, net, cols, C)
            z += tl.load(net.b_hid + cols)[None, :]
        else:
            w = net.w_hid + tl.cast(index - 1, tl.int64) * (C.ensemble * C.width * C.width)
            ks = tl.arange(0, C.block_k)[:, None]
            z = zeros(C.block_m, C.block_n)
            before = slot(tape.out, tape.stride, index - 1, C)
            if C.k_major:
                w += cols[None, :] * C.width + ks
                z = product(before, row, mask, w, True, C.block_k, z, False, C)
            else:
                w += ks * C.width + cols[None, :]
                z = product(before, row, mask, w, True, C.block_k * C.width, z, False, C)
            z += tl.load(net.b_hid + vector + cols)[None, :]
        at = row[:, None] * C.width + cols[None, :]
        if C.train or C.norm:
            tl.store(pre + at, z, mask=mask[:, None])
        if not C.norm:
            tl.store(out + at, to_operand(gelu(z), C), mask=mask[:, None])
    tl.debug_barrier()
    if C.norm:
        normalise(net, tape, pre, out, row, mask, index, C)
        tl.debug_barrier()


@triton.jit
def normalise(net, tape, pre, out, row, mask, index, C: tl.constexpr):
    """LayerNorm of gelu(z): two sweeps over the columns, the first for the statistics."""
    vector = index * (C.ensemble * C.width)
    width = true_width(index, C)
    mean = row_zeros(C.block_m)
    squares = row_zeros(C.block_m)
    for n in tl.range(0, C.width, C.block_k, num_stages=1):
        cols = n + tl.arange(0, C.block_k)
        real = (cols < width)[None, :]
        z = tl.load(pre + row[:, None] * C.width + cols[None, :], mask=mask[:, None], other=0.0)
        h = gelu(z)
        seen = tl.minimum(n, width).to(tl.float32)
        count = tl.minimum(tl.maximum(width - n, 0), C.block_k).to(tl.float32)
        here = tl.sum(tl.where(real, h, 0.0), 1) / tl.maximum(count, 1.0)
        apart = tl.where(real, h - here[:, None], 0.0)
        delta = here - mean
        total = tl.maximum(seen + count, 1.0)
        mean += delta * (count / total)
        squares += tl.sum(apart * apart, 1) + delta * delta * (seen * count / total)
    rstd = 1.0 / tl.sqrt(squares / width + EPS)
    if C.train:
        tl.store(tape.mean + index * tape.stat_stride + row, mean, mask=mask)
        tl.store(tape.rstd + index * tape.stat_stride + row, rstd, mask=mask)
    for n in tl.range(0, C.width, C.block_k, num_stages=1):
        cols = n + tl.arange(0, C.block_k)
        at = row[:, None] * C.width + cols[None, :]
        z = tl.load(pre + at, mask=mask[:, None], other=0.0)
        y = (gelu(z) - mean[:, None]) * rstd[:, None]
        y = y * tl.load(net.scale + vector + cols)[None, :]
        y += tl.load(net.shift + vector + cols)[None, :]
        tl.store(out + at, to_operand(y, C), mask=mask[:, None])


@triton.jit
def forward(source, net, tape, row, SHARED: tl.constexpr, C: tl.constexpr):
    """All layers of the tile: returns the outputs, `[block_m, block_out]` float32."""
    layer(source, net, tape, row, 0, True, SHARED, C)
    for index in range(1, C.depth):
        layer(source, net, tape, row, index, False, False, C)
    outs = tl.arange(0, C.block_out)
    narrow = outs < C.out
    w = net.w_out + tl.arange(0, C.block_k)[:, None] * C.out + outs[None, :]
    acc = zeros(C.block_m, C.block_out)
    last = slot(tape.out, tape.stride, C.depth - 1, C)
    step = C.block_k * C.out
    acc = product(last, row, source.mask, w, narrow[None, :], step, acc, True, C)
    return acc + tl.load(net.b_out + outs, mask=narrow, other=0.0)[None, :]


@triton.jit
def pull_layer(
    cotangent,
    scale,
    net,
    tape,
    grads,
    tape_row,
    row,
    mask,
    index,
    LAST: tl.constexpr,
    C: tl.constexpr,
):
    """Pull the gradient back through hidden layer `index`; ends with a barrier.

    Everything is over the rows' powers of two, `scale`, except the column sums.
    """
    pre = tape.pre + index * tape.stride
    into = slot(grads.pre, grads.stride, index, C)
    sums = grads.sums + index * grads.sum_stride
    for n in tl.range(0, C.width, C.block_n, num_stages=1):
        cols = n + tl.arange(0, C.block_n)
        dy = zeros(C.block_m, C.block_n)
        if LAST:
            outs = tl.arange(0, C.block_out)
            w = net.w_out + cols[None, :] * C.out + outs[:, None]
            right = to_operand(tl.load(w, mask=(outs < C.out)[:, None], other=0.0), C)
            dy = tl.dot(to_operand(cotangent, C), right, dy, input_precision=C.precision)
        else:
            w = net.w_hid + tl.cast(index, tl.int64) * (C.ensemble * C.width * C.width)
            w += cols[None, :] * C.width + tl.arange(0, C.block_k)[:, None]
            behind = slot(grads.pre, grads.stride, index + 1, C)
            dy = product(behind, row, mask, w, True, C.block_k, dy, False, C)
        at = row[:, None] * C.width + cols[None, :]
        if C.norm:
            tl.store(grads.normed + at, dy, mask=mask[:, None])
        else:
            z_at = tape_row[:, None] * C.width + cols[None, :]
            z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
            dz = dy * gelu_slope(z)
            tl.store(into + at, to_operand(dz, C), mask=mask[:, None])
            if C.train:
                if C.scaled:
                    dz *= scale[:, None]
                tl.store(sums + cols, tl.sum(dz, 0))
    tl.debug_barrier()
    if C.norm:
        pull_norm(net, tape, grads, pre, into, sums, scale, tape_row, row, mask, index, C)
        tl.debug_barrier()


@triton.jit
def pull_norm(
    net, tape, grads, pre, into, sums, scale, tape_row, row, mask, index, C: tl.constexpr
):
    """Pull dy through LayerNorm and GELU: two sweeps over the columns, the first for the means."""
    vector = index * (C.ensemble * C.width)
    mean = tl.load(tape.mean + index * tape.stat_stride + tape_row, mask=mask, other=0.0)
    rstd = tl.load(tape.rstd + index * tape.stat_stride + tape_row, mask=mask, other=0.0)
    mean_dn = row_zeros(C.block_m)
    mean_dnn = row_zeros(C.block_m)
    for n in tl.range(0, C.width, C.block_k, num_stages=1):
        cols = n + tl.arange(0, C.block_k)
        at = row[:, None] * C.width + cols[None, :]
        dy = tl.load(grads.normed + at, mask=mask[:, None], other=0.0)
        z_at = tape_row[:, None] * C.width + cols[None, :]
        z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
        normal = (gelu(z) - mean[:, None]) * rstd[:, None]
        if C.train:
            given = dy
            if C.scaled:
                given *= scale[:, None]
            tl.store(sums + C.depth * grads.sum_stride + cols, tl.sum(given * normal, 0))
            tl.store(sums + 2 * C.depth * grads.sum_stride + cols, tl.sum(given, 0))
        dn = dy * tl.load(net.scale + vector + cols)[None, :]
        mean_dn += tl.sum(dn, 1)
        mean_dnn += tl.sum(dn * normal, 1)
    width = true_width(index, C)
    mean_dn /= width
    mean_dnn /= width
    for n in tl.range(0, C.width, C.block_k, num_stages=1):
        cols = n + tl.arange(0, C.block_k)
        at = row[:, None] * C.width + cols[None, :]
        dy = tl.load(grads.normed + at, mask=mask[:, None], other=0.0)
        z_at = tape_row[:, None] * C.width + cols[None, :]
        z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
        normal = (gelu(z) - mean[:, None]) * rstd[:, None]
        dn = dy * tl.load(net.scale + vector + cols)[None, :]
        dh = rstd[:, None] * (dn - mean_dn[:, None] - normal * mean_dnn[:, None])
        dz = dh * gelu_slope(z)
        tl.store(into + at, to_operand(dz, C), mask=mask[:, None])
        if C.train:
            if C.scaled:
                dz *= scale[:, None]
            tl.store(sums + cols, tl.sum(dz, 0))


@triton.jit
def pullback(cotangent, scale, net, tape, grads, tape_row, row, mask, C: tl.constexpr):
    """Pull `cotangent` `[block_m, block_out]` back to the tile's first pre-activation.

    Both are over the rows' powers of two, `scale` (`row_scaled`).
    """
    pull_layer(cotangent, scale, net, tape, grads, tape_row, row, mask, C.depth - 1, True, C)
    for i in range(1, C.depth):
        index = C.depth - 1 - i
        pull_layer(cotangent, scale, net, tape, grads, tape_row, row, mask, index, False, C)


@triton.jit
def input_gradient(net, grads, row, mask, ks, wanted, acc, C: tl.constexpr):
    """Acc + the gradient of the inputs `ks` (where `wanted`), `[block_m, len(ks)]`, as stored."""
    w = net.w_in + ks[None, :] * C.width + tl.arange(0, C.block_k)[:, None]
    first = slot(grads.pre, grads.stride, 0, C)
    return product(first, row, mask, w, wanted[None, :], C.block_k, acc, True, C)
