"""The lookup of sequences: one of them in a program, as its parts lie in whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


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
    BLOCK: tl.constexpr,  # power of two that holds O and H A
):
    """What a sequence consists of; grid [S B].

    The rows lie anywhere in memory, so all of them are asked for before the first is stored.
    """
    row = tl.cast(tl.program_id(0), tl.int64)
    start = tl.load(starts + row)
    next_row = tl.load(next_rows + start)
    at = tl.arange(0, BLOCK)
    observation = tl.load(pool + start * width + at, mask=at < width)
    sequence = tl.load(actions + start * step + at, mask=at < size)
    reward = tl.load(outcomes + 3 * start)
    mask = tl.load(outcomes + 3 * start + 1)
    is_valid = tl.load(outcomes + 3 * start + 2)
    follower = tl.load(pool + next_row * width + at, mask=at < width)
    tl.store(observations + row * width + at, observation, mask=at < width)
    tl.store(sequences + row * size + at, sequence, mask=at < size)
    tl.store(rewards + row, reward)
    tl.store(masks + row, mask)
    tl.store(valid + row, is_valid)
    tl.store(following + row * width + at, follower, mask=at < width)


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
    block = triton.next_power_of_2(max(pool.shape[1], size))
    with torch.cuda.device_of(pool):
        gather_sequences_kernel[(starts.numel(),)](
            starts, pool, actions, outcomes, next_rows, *into, pool.shape[1], actions.shape[1],
            size, block, num_warps=min(max(block // 512, 1), 8),
        )  # fmt: skip
