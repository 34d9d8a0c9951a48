"""All metrics of all runs by one program, which alone moves the position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows", "runs"])
def record_metrics_kernel(
    metrics,  # M pointers to [S]
    table,  # [N, S, M], a row written
    position,  # [1], int64, written
    rows,  # N
    runs,  # S
    COUNT: tl.constexpr,  # M
    BLOCK: tl.constexpr,
):
    """Grid [1]. Behind the last row nothing is written."""
    row = tl.load(position)
    table += row * runs * COUNT
    for first in range(0, runs, BLOCK):
        run = first + tl.arange(0, BLOCK)
        inside = (run < runs) & (row < rows)
        for index in tl.static_range(COUNT):
            value = tl.load(metrics[index] + run, mask=inside)
            tl.store(table + run * COUNT + index, value, mask=inside)
    tl.store(position, row + 1)


def record_metrics(metrics: Sequence[Tensor], table: Tensor, position: Tensor) -> None:
    """Write the row and count; see the package's `record_metrics`."""
    rows, runs, _ = table.shape
    block = min(triton.next_power_of_2(runs), 32)
    with torch.cuda.device_of(table):
        record_metrics_kernel[(1,)](
            tuple(metrics), table, position, rows, runs, len(metrics), block, num_warps=1
        )
