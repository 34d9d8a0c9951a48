r"""Operands of products: how a float32 number becomes one, and how gradients stay in its range.

float16 has TF32's mantissa in half the bytes, but numbers end at 65504 and lose bits below 6e-5.
Weights, inputs and activations are of the order of one; what is larger than 65504 becomes 65504,
never infinite, and NaN stays NaN (`to_operand`).

Gradients may have any size. A pullback is linear in the gradient it starts from, row by row, so a
row of a cotangent is divided by a power of two that brings its largest element into [1, 2)
(`row_scaled`), the whole chain of layers runs on that, and what leaves is multiplied by it again in
float32: gradients of the inputs, column sums, the adjoint of every step of a sweep, which starts
the next one with powers of its own. Powers of two change no mantissa, so nothing is rounded for it.

A gradient of weights adds up rows that have different powers. There `common` of them, the largest
of a network's rows, is used for all: an operand is multiplied by its row's power over that one,
which is 1 at the most, and the sum by the common power at the end.

Range: float32's own for a cotangent's row. Within a chain a row may grow to 65504 times its largest
element at the start before it is cut off, and keeps 11 bits down to 6e-5 times it, an absolute
error of 3e-8 times it below. A row that is more than 2^24 times smaller than the largest one adds
nothing to a gradient of weights, as in a sum of float32 numbers.

The other types have float32's range: for them all of this compiles to nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LARGEST = tl.constexpr(65504.0)
"""Largest number of float16."""

SCANNED_ROWS = tl.constexpr(1024)
"""Rows whose powers of two are loaded at a time."""


class Scales(NamedTuple):
    """Powers of two of the gradients of a network's rows, with `scaled` alone.

    Attributes:
        rows: Pointer to those over which they are stored, `[rows]`.
        common: The largest of them.
        inverse: 1 / `common`.
    """

    rows: Any
    common: Any
    inverse: Any


@triton.jit
def to_operand(value, C: tl.constexpr):
    """Round to the type of the operands; float16 ends at its largest number."""
    if C.operand == tl.float16 and value.dtype == tl.float32:
        value = tl.clamp(value, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return value.to(C.operand)


@triton.jit
def power_of_two(size):
    """Return the power of two up to non-negative numbers, within [2^-126, 2^126], and 1 / it."""
    exponent = size.to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    return power, ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def row_scaled(values, C: tl.constexpr):
    """Return gradients `[rows, columns]` over their rows' powers of two, and those."""
    power = 1.0
    if C.scaled:
        power, inverse = power_of_two(tl.max(tl.abs(values), 1))
        values *= inverse[:, None]
    return values, power


@triton.jit
def row_scales(row_scale, row, mask, C: tl.constexpr):
    """Load the powers of two over which the gradients of some rows are stored."""
    power = 1.0
    if C.scaled:
        power = tl.load(row_scale + row, mask=mask, other=0.0)
    return power


@triton.jit
def scales_of(row_scale, rows, C: tl.constexpr):
    """Return the powers of two of a network's rows and the largest of them."""
    common, inverse = 1.0, 1.0
    if C.scaled:
        found = tl.zeros((SCANNED_ROWS,), tl.float32)
        for r in range(0, rows, SCANNED_ROWS):
            row = r + tl.arange(0, SCANNED_ROWS)
            found = tl.maximum(found, tl.load(row_scale + row, mask=row < rows, other=0.0))
        common, inverse = power_of_two(tl.max(found, 0))
    return Scales(row_scale, common, inverse)


@triton.jit
def common_operand(values, scales, row, mask, STORED: tl.constexpr, C: tl.constexpr):
    """Return gradients of some rows as operands over the common power.

    `STORED` ones lie over their rows' powers; a cotangent lies as it is.
    """
    if C.scaled:
        factor = scales.inverse
        if STORED:
            factor = (row_scales(scales.rows, row, mask, C) * factor)[:, None]
        values = values.to(tl.float32) * factor
    return to_operand(values, C)
