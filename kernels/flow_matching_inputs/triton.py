"""Inputs and target of flow matching: some rows in one program, read where they lie."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.layout import dense_runs

ELEMENTS, ROWS = 2048, 16
"""Inputs that a program holds at most, unless one row has more, and rows that it does."""


@triton.jit(
    do_not_specialize=[
        "observation_stride", "action_stride", "x0_stride", "time_stride", "batch", "width", "dim",
    ]
)  # fmt: skip
def flow_matching_inputs_kernel(
    observations,  # [S, B, O]
    observation_stride,  # elements between two runs, here and below
    actions,  # [S, B, D]
    action_stride,
    x0,  # [S, B, D]
    x0_stride,
    times,  # [S, B, 1]
    time_stride,
    inputs,  # [S, B, O + D + 1], written
    velocity,  # [S, B, D], written
    batch,  # B
    width,  # O
    dim,  # D
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # power of two that holds O + D + 1
):
    """Rows of [s, x_t, t] and a - x_0; grid [blocks of rows, S]."""
    run = tl.cast(tl.program_id(1), tl.int64)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    within = row < batch
    moved = column - width
    of_x = within & (moved >= 0) & (moved < dim)
    s_at = run * observation_stride + row * width + column
    s = tl.load(observations + s_at, mask=within & (moved < 0), other=0.0)
    action = tl.load(actions + run * action_stride + row * dim + moved, mask=of_x, other=0.0)
    x = tl.load(x0 + run * x0_stride + row * dim + moved, mask=of_x, other=0.0)
    time = tl.load(times + run * time_stride + row, mask=within, other=0.0)
    apart = action - x
    # As torch.lerp has it: from the nearer end.
    between = tl.where(time < 0.5, x + time * apart, action - apart * (1.0 - time))
    value = tl.where(moved < 0, s, tl.where(moved < dim, between, time))
    at = run * batch + row
    tl.store(inputs + at * (width + dim + 1) + column, value, mask=within & (moved <= dim))
    tl.store(velocity + at * dim + moved, apart, mask=of_x)


def flow_matching_inputs(
    observations: Tensor, actions: Tensor, x0: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Return inputs and velocity; see the package's `flow_matching_inputs`.

    Raises:
        ValueError: a run has 2^31 inputs or more.
    """
    runs, batch, dim = actions.shape
    width, columns = observations.shape[-1], observations.shape[-1] + dim + 1
    if batch * columns >= 2**31:
        raise ValueError(
            f"flow_matching_inputs: a run has {batch} x {columns} inputs; the Triton kernel "
            "addresses fewer than 2^31, so split the batch"
        )
    inputs = actions.new_empty(runs, batch, columns)
    velocity = actions.new_empty(runs, batch, dim)
    padded = triton.next_power_of_2(columns)
    rows = max(1, min(ROWS, ELEMENTS // padded))
    given = map(dense_runs, (observations, actions, x0, times))
    strided = [part for tensor in given for part in (tensor, tensor.stride(0))]
    with torch.cuda.device_of(actions):
        flow_matching_inputs_kernel[(triton.cdiv(batch, rows), runs)](
            *strided, inputs, velocity, batch, width, dim, rows, padded, num_warps=4
        )
    return inputs, velocity
