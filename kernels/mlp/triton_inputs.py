"""Inputs of a pass as the Triton kernels read them: observations, points and times apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.layout import dense_runs
from trqam_fast.kernels.mlp.triton_tile import TileInputs


class Inputs(NamedTuple):
    """Inputs `[s, x, t]` or `[s, x]` of rows (k, b), k < K: parts that are never concatenated.

    Attributes:
        observations: s, `[S, B, O]`, shared by the K steps and the members; all inputs where
            there is no x.
        x: x, `[S, >= K, B, D]`, or None. Networks that have one input more get the time.
        steps: K; t_k = (k + shift) / K.
        shift: 0 or 1.
        clip: Whether x is clipped to [-1, 1] where the first layer reads it.
    """

    observations: Tensor
    x: Tensor | None = None
    steps: int = 1
    shift: int = 0
    clip: bool = False


class BatchInputs(NamedTuple):
    """`Inputs` inside a kernel: pointers and sizes.

    Attributes:
        observations: `[S, B, O]`.
        x: `[S, >= K, B, D]`.
        x_stride: Elements between two runs of x.
        batch: B.
        rows: K * B.
        steps: K.
        shift: 0 or 1.
    """

    observations: Any
    x: Any
    x_stride: Any
    batch: Any
    rows: Any
    steps: Any
    shift: Any


@triton.jit
def tile_inputs(inputs, run, row, C: tl.constexpr):
    """Return where the rows (k, b) of a run find their inputs."""
    step = row // inputs.batch
    wide = tl.cast(run, tl.int64)
    time = tl.div_rn((step + inputs.shift).to(tl.float32), tl.cast(inputs.steps, tl.float32))
    return TileInputs(
        inputs.observations + wide * inputs.batch * C.obs,
        inputs.x + wide * inputs.x_stride,
        row % inputs.batch,
        row,
        time,
        row < inputs.rows,
    )


@triton.jit
def input_of(column, C: tl.constexpr):
    """Return which input a column of prepared inputs holds, and whether it holds any."""
    source, real = column, column < C.obs
    if C.dim > 0:
        of_x = (column >= C.x_column) & (column < C.x_column + C.dim)
        source = tl.where(of_x, column - C.x_column + C.obs, source)
        real = real | of_x
    if C.time > 0:
        source = tl.where(column == C.time_column, C.obs + C.dim, source)
        real = real | (column == C.time_column)
    return source, real


def points_of(inputs: Inputs) -> tuple[Tensor, int]:
    """Return x with dense rows, or any tensor where there is none, and the stride of its runs."""
    x = dense_runs(inputs.observations if inputs.x is None else inputs.x)
    return x, x.stride(0)
