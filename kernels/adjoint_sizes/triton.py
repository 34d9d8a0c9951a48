"""The sizes of a run's adjoints in one program: its sums are over too little for more."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS, WARPS = 16384, 16
"""Elements of all steps that are loaded at a time: 32 of a thread."""

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit(do_not_specialize=["steps", "batch", "size"])
def adjoint_sizes_kernel(
    terminal,  # [S, B, D]
    adjoint,  # [S, K, B, D]
    sizes,  # [4, S], written
    steps,  # K
    batch,  # B
    size,  # B D
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean, deviation and largest of |a_K|, and max_k n(a_k) / n(a_K); grid [S]."""
    run, runs = tl.program_id(0), tl.num_programs(0)
    terminal += tl.cast(run, tl.int64) * size
    adjoint += tl.cast(run, tl.int64) * steps * size
    count = tl.cast(size, tl.float32)
    step = tl.arange(0, STEPS)[:, None]
    total = tl.zeros((BLOCK,), tl.float32)
    largest = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((STEPS, BLOCK), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        a = tl.abs(tl.load(terminal + at, mask=at < size, other=0.0))
        total += a
        largest = tl.maximum(largest, a)
        squares += a * a
        mask = (step < steps) & (at < size)[None, :]
        of_steps = tl.cast(step, tl.int64) * size + at[None, :]
        a = tl.load(adjoint + of_steps, mask=mask, other=0.0)
        along += a * a
    mean = tl.sum(total) / count
    apart = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        a = tl.abs(tl.load(terminal + at, mask=at < size, other=0.0)) - mean
        apart += tl.where(at < size, a * a, 0.0)
    norms = tl.sum(along, 1)
    most, everything = tl.max(norms), tl.sum(norms)
    rows = tl.cast(batch, tl.float32)
    start = tl.maximum(tl.sqrt_rn(tl.sum(squares) / rows), TINY)
    # A maximum drops what is no number; a sum does not.
    furthest = tl.where(mean == mean, tl.max(largest), mean)
    most = tl.where(everything == everything, most, everything)
    start = tl.where(mean == mean, start, mean)
    tl.store(sizes + run, mean)
    tl.store(sizes + runs + run, tl.sqrt_rn(tl.sum(apart) / count))
    tl.store(sizes + 2 * runs + run, furthest)
    tl.store(sizes + 3 * runs + run, tl.div_rn(tl.sqrt_rn(most / rows), start))


def adjoint_sizes(terminal: Tensor, adjoint: Tensor) -> Tensor:
    """Return mean, deviation, maximum and gain, `[4, S]`; see the package's `adjoint_sizes`.

    Without steps the gain is 0.

    Raises:
        ValueError: a step has 2^31 elements or more.
    """
    runs, batch, dim = terminal.shape
    steps, size = adjoint.shape[1], batch * dim
    if size >= 2**31:
        raise ValueError(
            f"adjoint_sizes: terminal has {batch} x {dim} elements; the Triton kernel addresses "
            "fewer than 2^31, so split the batch"
        )
    padded = triton.next_power_of_2(max(steps, 1))
    block = min(1024, max(16, ELEMENTS // padded))
    sizes = terminal.new_empty(4, runs)
    with torch.cuda.device_of(terminal):
        adjoint_sizes_kernel[(runs,)](
            terminal, adjoint, sizes, steps, batch, size, padded, block, num_warps=WARPS
        )
    return sizes
