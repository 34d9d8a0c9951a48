"""Device functions that the Triton passes share: where things lie, the activation, the inputs.

With the notation of `trqam_fast.kernels.mlp.ops`:

    forward   z_l = y_{l-1} W_l + b_l,   h_l = gelu(z_l),   y_l = LayerNorm(h_l) or h_l
    pullback  dy_l = dz_{l+1} W_{l+1}^T,  dz_l = gelu'(z_l) * LayerNorm'(h_l)^T dy_l

LayerNorm's pullback, with n = (h - mean) rstd and dn = scale * dy, is

    dh = rstd (dn - mean_w(dn) - n mean_w(dn n)),   dscale = sum_rows dy n,   dshift = sum_rows dy

Columns beyond a layer's true width hold zero weights, so they add nothing to what is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.triton_weights import WeightPointers

EPS = tl.constexpr(NORM_EPS)


class Tape(NamedTuple):
    """Activations: `[layers, G, rows, width]`, and means and squared deviations of feature tiles.

    Without `train`, `pre` has no layers and the others two that take turns. `stride` and
    `stat_stride`, the elements between two layers and between two tiles' statistics, are set inside
    a kernel.
    """

    pre: Any
    out: Any
    mean: Any
    squares: Any
    stride: Any = 0
    stat_stride: Any = 0


class Gradients(NamedTuple):
    """Pulled-back gradients: of pre-activations, `[layers, G, rows, width]`, and column sums.

    Without `train`, `pre` has two layers that take turns. `dy` is what is pulled back to a layer's
    normalised output, before LayerNorm is, `[G, rows, width]`; `sums` is
    `[kinds, depth, tiles, G, width]`: with `train` of dz, with LayerNorm of dscale and dshift too;
    `row_scale` is `[G, rows]`, the powers of two over which float16 gradients are stored
    (`triton_operands`).
    """

    pre: Any
    dy: Any
    sums: Any
    row_scale: Any
    stride: Any
    sum_stride: Any


class TileInputs(NamedTuple):
    """Where a tile's inputs `[s, x, t]` come from: pointers, and rows in each."""

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
def await_predecessor(C: tl.constexpr):
    """Wait in a dependent launch until the one before has ended; a kernel's first statement.

    No program lets the launch behind begin before its own end (`gdc_launch_dependents`): programs
    that wait would hold places that another branch's launches could have.
    """
    if C.dependent:
        tl.extra.cuda.gdc_wait()


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
def either(second, weights, others):
    """Return the second one of two WeightPointers where `second`, else the first."""
    return WeightPointers(
        tl.where(second, others.w_in, weights.w_in),
        tl.where(second, others.w_hid, weights.w_hid),
        tl.where(second, others.w_out, weights.w_out),
        tl.where(second, others.b_hid, weights.b_hid),
        tl.where(second, others.b_out, weights.b_out),
        tl.where(second, others.scale, weights.scale),
        tl.where(second, others.shift, weights.shift),
        tl.where(second, others.kernel_stride, weights.kernel_stride),
        tl.where(second, others.vector_stride, weights.vector_stride),
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
        tape.squares + at,
        layer_rows * C.width,
        layer_rows,
    )


@triton.jit
def gradients_of(grads, group, groups, rows, tile, C: tl.constexpr):
    """Return one network's part of the gradients, and of the sums that of a tile of rows."""
    wide = tl.cast(group, tl.int64)
    return Gradients(
        grads.pre + wide * rows * C.width,
        grads.dy + wide * rows * C.width,
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
    """Load columns `cols` of prepared inputs, float32, zeros where they hold none."""
    mask = source.mask[:, None]
    at = source.obs_row[:, None] * C.obs + cols[None, :]
    value = tl.load(source.observations + at, mask=mask & (cols < C.obs)[None, :], other=0.0)
    if C.dim > 0:
        inside = (cols >= C.x_column) & (cols < C.x_column + C.dim)
        at = source.x_row[:, None] * C.dim + (cols - C.x_column)[None, :]
        x = tl.load(source.x + at, mask=mask & inside[None, :], other=0.0)
        if C.clip:
            x = tl.clamp(x, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        value += x
    if C.time > 0:
        value += tl.where((cols == C.time_column)[None, :] & mask, source.time[:, None], 0.0)
    return value


@triton.jit
def slot(layers, stride, index, C: tl.constexpr):
    """Return where layer `index` lies: with `train` all are kept, else two take turns."""
    if C.train:
        return layers + index * stride
    return layers + (index % 2) * stride
