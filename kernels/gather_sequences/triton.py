"""The lookup of sequences: one of them in a program, as its parts lie in whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 128, 1


@triton.jit
def copy(source, into, size, BLOCK: tl.constexpr):
    """Copy `size` numbers that lie one after another."""
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(into + at, tl.load(source + at, mask=at < size), mask=at < size)


@triton.jit(do_not_specialize=["width", "step"])
def gather_sequences_kernel(
    starts,  # [S B], int64
    pool,  # [>= N, O]
    actions,  # [N, A]
    outcomes,  # [M, 3]
    next_rows,  # [M], int64
    observations,  # [S B, O], written
    sequences,  # [S B, H A], written
    rewards,  # [S B], written
    masks,  # [S B], written
    valid,  # [S B], written
    following,  # [S B, O], written
    width,  # O
    step,  # A
    size,  # H A
    BLOCK: tl.constexpr,
):
    """What a sequence consists of; grid [S B]."""
    row = tl.cast(tl.program_id(0), tl.int64)
    start = tl.load(starts + row)
    copy(pool + start * width, observations + row * width, width, BLOCK)
    copy(actions + start * step, sequences + row * size, size, BLOCK)
    tl.store(rewards + row, tl.load(outcomes + 3 * start))
    tl.store(masks + row, tl.load(outcomes + 3 * start + 1))
    tl.store(valid + row, tl.load(outcomes + 3 * start + 2))
    copy(pool + tl.load(next_rows + start) * width, following + row * width, width, BLOCK)


def gather_sequences(
    starts: Tensor,
    pool: Tensor,
    actions: Tensor,
    outcomes: Tensor,
    next_rows: Tensor,
    into: Sequence[Tensor],
) -> None:
    """Write the fields of the package's `Sequences`; see its `gather_sequences`."""
    size = math.prod(into[1].shape[-2:])
    with torch.cuda.device_of(pool):
        gather_sequences_kernel[(starts.numel(),)](
            starts, pool, actions, outcomes, next_rows, *into, pool.shape[1], actions.shape[1],
            size, BLOCK, num_warps=WARPS,
        )  # fmt: skip
