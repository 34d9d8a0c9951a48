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
"""

from __future__ import annotations

import triton
import triton.language as tl

from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.triton_config import Network, Tape

EPS = tl.constexpr(NORM_EPS)


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
def member_of(net, run, member, P: tl.constexpr):
    """Return the network of one member of one run."""
    kernels = tl.cast(run, tl.int64) * net.kernel_stride
    vectors = tl.cast(run, tl.int64) * net.vector_stride
    wide = member * P.width
    return Network(
        net.w_in + kernels + member * (P.inputs * P.width),
        net.w_hid + kernels + member * (P.width * P.width),
        net.w_out + kernels + member * (P.width * P.out),
        net.b_hid + vectors + wide,
        net.b_out + vectors + member * P.out,
        net.scale + vectors + wide,
        net.shift + vectors + wide,
        net.kernel_stride,
        net.vector_stride,
    )


@triton.jit
def group_of(tape, group, rows, layer_rows, P: tl.constexpr):
    """Return one network's part of a tape with `rows` rows, `layer_rows` in all networks.

    Both come from the host: what is computed here would occupy registers throughout.
    """
    at = tl.cast(group, tl.int64) * rows
    layer_rows = tl.cast(layer_rows, tl.int64)
    return Tape(
        tape.pre + at * P.width,
        tape.out + at * P.width,
        tape.mean + at,
        tape.rstd + at,
        layer_rows * P.width,
        layer_rows,
    )


@triton.jit
def true_width(index, P: tl.constexpr):
    """Return the width of hidden layer `index` without padding."""
    width = P.widths[0]
    for i in tl.static_range(len(P.widths)):
        width = tl.where(index == i, P.widths[i], width)
    return width


@triton.jit
def load_inputs(source, cols, P: tl.constexpr):
    """Load columns `cols` of the concatenated inputs, float32."""
    mask = source.mask[:, None]
    at = source.obs_row[:, None] * P.obs + cols[None, :]
    value = tl.load(source.observations + at, mask=mask & (cols < P.obs)[None, :], other=0.0)
    if P.dim > 0:
        inside = (cols >= P.obs) & (cols < P.obs + P.dim)
        at = source.x_row[:, None] * P.dim + (cols - P.obs)[None, :]
        value += tl.load(source.x + at, mask=mask & inside[None, :], other=0.0)
    if P.time > 0:
        value += tl.where((cols == P.obs + P.dim)[None, :] & mask, source.time[:, None], 0.0)
    return value


@triton.jit
def first_product(source, net, cols, P: tl.constexpr):
    """Inputs times the first kernel's columns `cols`."""
    acc = zeros(P.block_m, P.block_n)
    for k in range(0, P.inputs, P.block_k):
        ks = k + tl.arange(0, P.block_k)
        a = load_inputs(source, ks, P).to(P.operand)
        at = ks[:, None] * P.width + cols[None, :]
        w = tl.load(net.w_in + at, mask=(ks < P.inputs)[:, None], other=0.0).to(P.operand)
        acc = tl.dot(a, w, acc, input_precision=P.precision)
    return acc


@triton.jit
def observation_share(source, net, P: tl.constexpr, into):
    """Store s W_s + b of the tile's rows to `into`, rows of `width`."""
    row = source.obs_row
    for n in tl.range(0, P.width, P.block_n, num_stages=1):
        cols = n + tl.arange(0, P.block_n)
        acc = zeros(P.block_m, P.block_n)
        for k in range(0, P.obs, P.block_k):
            ks = k + tl.arange(0, P.block_k)
            inside = ks < P.obs
            a = tl.load(
                source.observations + row[:, None] * P.obs + ks[None, :],
                mask=source.mask[:, None] & inside[None, :],
                other=0.0,
            )
            w = tl.load(
                net.w_in + ks[:, None] * P.width + cols[None, :], mask=inside[:, None], other=0.0
            )
            acc = tl.dot(a.to(P.operand), w.to(P.operand), acc, input_precision=P.precision)
        acc += tl.load(net.b_hid + cols)[None, :]
        tl.store(into + row[:, None] * P.width + cols[None, :], acc, mask=source.mask[:, None])


@triton.jit
def shared_product(source, net, cols, P: tl.constexpr):
    """First pre-activation from the stored share: share + x W_x + t w_t."""
    at = source.obs_row[:, None] * P.width + cols[None, :]
    acc = tl.load(source.observations + at, mask=source.mask[:, None], other=0.0)
    dims = tl.arange(0, P.block_out)
    inside = dims < P.dim
    x = tl.load(
        source.x + source.x_row[:, None] * P.dim + dims[None, :],
        mask=source.mask[:, None] & inside[None, :],
        other=0.0,
    )
    w = net.w_in + P.obs * P.width
    w_x = tl.load(w + dims[:, None] * P.width + cols[None, :], mask=inside[:, None], other=0.0)
    acc = tl.dot(x.to(P.operand), w_x.to(P.operand), acc, input_precision=P.precision)
    return acc + source.time * tl.load(w + P.dim * P.width + cols).to(tl.float32)[None, :]


@triton.jit
def product(a, row, mask, w, w_mask, w_step, acc, NARROW: tl.constexpr, P: tl.constexpr):
    """Return acc plus rows of `a` `[*, width]` times the blocks at `w`, which advance by `w_step`.

    `w_mask` counts for a `NARROW` second factor, whose other axis does not fill its block.
    """
    a = a + row[:, None] * P.width + tl.arange(0, P.block_k)[None, :]
    for _ in range(0, P.width, P.block_k):
        left = tl.load(a, mask=mask[:, None], other=0.0)
        if NARROW:
            right = tl.load(w, mask=w_mask, other=0.0)
        else:
            right = tl.load(w)
        acc = tl.dot(left, right.to(P.operand), acc, input_precision=P.precision)
        a += P.block_k
        w += w_step
    return acc


@triton.jit
def slot(layers, stride, index, P: tl.constexpr):
    """Return where layer `index` lies: with `train` all are kept, else two take turns."""
    if P.train:
        return layers + index * stride
    return layers + (index % 2) * stride


@triton.jit
def pre_slot(tape, index, P: tl.constexpr):
    """Return where the tape keeps the pre-activation of hidden layer `index`."""
    if P.train:
        return tape.pre + index * tape.stride
    return tape.pre


@triton.jit
def layer(
    source, net, tape, row, index, FIRST: tl.constexpr, SHARED: tl.constexpr, P: tl.constexpr
):
    """One hidden layer of the tile; ends with a barrier, so that the next may read it."""
    vector = index * (P.ensemble * P.width)
    pre, out = pre_slot(tape, index, P), slot(tape.out, tape.stride, index, P)
    mask = source.mask
    for n in tl.range(0, P.width, P.block_n, num_stages=1):
        cols = n + tl.arange(0, P.block_n)
        if SHARED:
            z = shared_product(source, net, cols, P)
        elif FIRST:
            z = first_product(source, net, cols, P)
            z += tl.load(net.b_hid + cols)[None, :]
        else:
            w = net.w_hid + tl.cast(index - 1, tl.int64) * (P.ensemble * P.width * P.width)
            ks = tl.arange(0, P.block_k)[:, None]
            z = zeros(P.block_m, P.block_n)
            before = slot(tape.out, tape.stride, index - 1, P)
            if P.k_major:
                w += cols[None, :] * P.width + ks
                z = product(before, row, mask, w, True, P.block_k, z, False, P)
            else:
                w += ks * P.width + cols[None, :]
                z = product(before, row, mask, w, True, P.block_k * P.width, z, False, P)
            z += tl.load(net.b_hid + vector + cols)[None, :]
        at = row[:, None] * P.width + cols[None, :]
        if P.train or P.norm:
            tl.store(pre + at, z, mask=mask[:, None])
        if not P.norm:
            tl.store(out + at, gelu(z).to(P.operand), mask=mask[:, None])
    tl.debug_barrier()
    if P.norm:
        normalise(net, tape, pre, out, row, mask, index, P)
        tl.debug_barrier()


@triton.jit
def normalise(net, tape, pre, out, row, mask, index, P: tl.constexpr):
    """LayerNorm of gelu(z): two sweeps over the columns, the first for the statistics."""
    vector = index * (P.ensemble * P.width)
    width = true_width(index, P)
    mean = row_zeros(P.block_m)
    squares = row_zeros(P.block_m)
    for n in tl.range(0, P.width, P.block_k, num_stages=1):
        cols = n + tl.arange(0, P.block_k)
        real = (cols < width)[None, :]
        z = tl.load(pre + row[:, None] * P.width + cols[None, :], mask=mask[:, None], other=0.0)
        h = gelu(z)
        seen = tl.minimum(n, width).to(tl.float32)
        count = tl.minimum(tl.maximum(width - n, 0), P.block_k).to(tl.float32)
        here = tl.sum(tl.where(real, h, 0.0), 1) / tl.maximum(count, 1.0)
        apart = tl.where(real, h - here[:, None], 0.0)
        delta = here - mean
        total = tl.maximum(seen + count, 1.0)
        mean += delta * (count / total)
        squares += tl.sum(apart * apart, 1) + delta * delta * (seen * count / total)
    rstd = 1.0 / tl.sqrt(squares / width + EPS)
    if P.train:
        tl.store(tape.mean + index * tape.stat_stride + row, mean, mask=mask)
        tl.store(tape.rstd + index * tape.stat_stride + row, rstd, mask=mask)
    for n in tl.range(0, P.width, P.block_k, num_stages=1):
        cols = n + tl.arange(0, P.block_k)
        at = row[:, None] * P.width + cols[None, :]
        z = tl.load(pre + at, mask=mask[:, None], other=0.0)
        y = (gelu(z) - mean[:, None]) * rstd[:, None]
        y = y * tl.load(net.scale + vector + cols)[None, :]
        y += tl.load(net.shift + vector + cols)[None, :]
        tl.store(out + at, y.to(P.operand), mask=mask[:, None])


@triton.jit
def forward(source, net, tape, row, SHARED: tl.constexpr, P: tl.constexpr):
    """All layers of the tile: returns the outputs, `[block_m, block_out]` float32."""
    layer(source, net, tape, row, 0, True, SHARED, P)
    for index in range(1, P.depth):
        layer(source, net, tape, row, index, False, False, P)
    outs = tl.arange(0, P.block_out)
    narrow = outs < P.out
    w = net.w_out + tl.arange(0, P.block_k)[:, None] * P.out + outs[None, :]
    acc = zeros(P.block_m, P.block_out)
    last = slot(tape.out, tape.stride, P.depth - 1, P)
    step = P.block_k * P.out
    acc = product(last, row, source.mask, w, narrow[None, :], step, acc, True, P)
    return acc + tl.load(net.b_out + outs, mask=narrow, other=0.0)[None, :]


@triton.jit
def pull_layer(
    cotangent, net, tape, grads, tape_row, row, mask, index,
    LAST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Pull the gradient back through hidden layer `index`; ends with a barrier."""
    pre = tape.pre + index * tape.stride
    into = slot(grads.pre, grads.stride, index, P)
    sums = grads.sums + index * grads.sum_stride
    for n in tl.range(0, P.width, P.block_n, num_stages=1):
        cols = n + tl.arange(0, P.block_n)
        dy = zeros(P.block_m, P.block_n)
        if LAST:
            outs = tl.arange(0, P.block_out)
            w = net.w_out + cols[None, :] * P.out + outs[:, None]
            right = tl.load(w, mask=(outs < P.out)[:, None], other=0.0).to(P.operand)
            dy = tl.dot(cotangent.to(P.operand), right, dy, input_precision=P.precision)
        else:
            w = net.w_hid + tl.cast(index, tl.int64) * (P.ensemble * P.width * P.width)
            w += cols[None, :] * P.width + tl.arange(0, P.block_k)[:, None]
            behind = slot(grads.pre, grads.stride, index + 1, P)
            dy = product(behind, row, mask, w, True, P.block_k, dy, False, P)
        at = row[:, None] * P.width + cols[None, :]
        if P.norm:
            tl.store(grads.normed + at, dy, mask=mask[:, None])
        else:
            z_at = tape_row[:, None] * P.width + cols[None, :]
            z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
            dz = dy * gelu_slope(z)
            tl.store(into + at, dz.to(P.operand), mask=mask[:, None])
            if P.train:
                tl.store(sums + cols, tl.sum(dz, 0))
    tl.debug_barrier()
    if P.norm:
        pull_norm(net, tape, grads, pre, into, sums, tape_row, row, mask, index, P)
        tl.debug_barrier()


@triton.jit
def pull_norm(net, tape, grads, pre, into, sums, tape_row, row, mask, index, P: tl.constexpr):
    """Pull dy through LayerNorm and GELU: two sweeps over the columns, the first for the means."""
    vector = index * (P.ensemble * P.width)
    mean = tl.load(tape.mean + index * tape.stat_stride + tape_row, mask=mask, other=0.0)
    rstd = tl.load(tape.rstd + index * tape.stat_stride + tape_row, mask=mask, other=0.0)
    mean_dn = row_zeros(P.block_m)
    mean_dnn = row_zeros(P.block_m)
    for n in tl.range(0, P.width, P.block_k, num_stages=1):
        cols = n + tl.arange(0, P.block_k)
        at = row[:, None] * P.width + cols[None, :]
        dy = tl.load(grads.normed + at, mask=mask[:, None], other=0.0)
        z_at = tape_row[:, None] * P.width + cols[None, :]
        z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
        normal = (gelu(z) - mean[:, None]) * rstd[:, None]
        if P.train:
            tl.store(sums + P.depth * grads.sum_stride + cols, tl.sum(dy * normal, 0))
            tl.store(sums + 2 * P.depth * grads.sum_stride + cols, tl.sum(dy, 0))
        dn = dy * tl.load(net.scale + vector + cols)[None, :]
        mean_dn += tl.sum(dn, 1)
        mean_dnn += tl.sum(dn * normal, 1)
    width = true_width(index, P)
    mean_dn /= width
    mean_dnn /= width
    for n in tl.range(0, P.width, P.block_k, num_stages=1):
        cols = n + tl.arange(0, P.block_k)
        at = row[:, None] * P.width + cols[None, :]
        dy = tl.load(grads.normed + at, mask=mask[:, None], other=0.0)
        z_at = tape_row[:, None] * P.width + cols[None, :]
        z = tl.load(pre + z_at, mask=mask[:, None], other=0.0)
        normal = (gelu(z) - mean[:, None]) * rstd[:, None]
        dn = dy * tl.load(net.scale + vector + cols)[None, :]
        dh = rstd[:, None] * (dn - mean_dn[:, None] - normal * mean_dnn[:, None])
        dz = dh * gelu_slope(z)
        tl.store(into + at, dz.to(P.operand), mask=mask[:, None])
        if P.train:
            tl.store(sums + cols, tl.sum(dz, 0))


@triton.jit
def pullback(cotangent, net, tape, grads, tape_row, row, mask, P: tl.constexpr):
    """Pull `cotangent` `[block_m, block_out]` back to the tile's first pre-activation."""
    pull_layer(cotangent, net, tape, grads, tape_row, row, mask, P.depth - 1, True, P)
    for i in range(1, P.depth):
        index = P.depth - 1 - i
        pull_layer(cotangent, net, tape, grads, tape_row, row, mask, index, False, P)


@triton.jit
def input_gradient(net, grads, row, mask, ks, wanted, acc, P: tl.constexpr):
    """Acc + the gradient of the inputs `ks` (where `wanted`), `[block_m, len(ks)]`."""
    w = net.w_in + ks[None, :] * P.width + tl.arange(0, P.block_k)[:, None]
    first = slot(grads.pre, grads.stride, 0, P)
    return product(first, row, mask, w, wanted[None, :], P.block_k, acc, True, P)
