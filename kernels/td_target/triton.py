"""The target of temporal differences: some rows of all members in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS, ROWS = 4096, 64
"""Values that a program holds at most, unless one row has more, and rows that it does."""


@triton.jit(do_not_specialize=["members", "batch", "discount", "rho"])
def td_target_kernel(
    values,  # [S, E, B]
    rewards,  # [S, B]
    masks,  # [S, B]
    target,  # [S, B], written
    members,  # E
    batch,  # B
    discount,
    rho,
    MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of y = R + discount m (mean_e Q' - rho std_e Q'); grid [blocks of rows, S]."""
    run = tl.cast(tl.program_id(1), tl.int64)
    member = tl.arange(0, MEMBERS)[:, None]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    within = row < batch
    mask = (member < members) & within[None, :]
    at = (run * members + member) * batch + row[None, :]
    value = tl.load(values + at, mask=mask, other=0.0)
    count = tl.cast(members, tl.float32)
    mean = tl.sum(value, 0) / count
    apart = tl.where(mask, value - mean[None, :], 0.0)
    deviation = tl.sqrt_rn(tl.sum(apart * apart, 0) / count)
    at = run * batch + row
    reward = tl.load(rewards + at, mask=within, other=0.0)
    future = discount * tl.load(masks + at, mask=within, other=0.0)
    # Without pessimism the deviation does not count, not even where it is infinite or NaN.
    pessimistic = tl.where(rho > 0, mean - rho * deviation, mean)
    tl.store(target + at, reward + future * pessimistic, mask=within)


def td_target(
    values: Tensor, rewards: Tensor, masks: Tensor, discount: float, rho: float
) -> Tensor:
    """Return y, `[S, B]`; see the package's `td_target`."""
    runs, members, batch = values.shape
    padded = triton.next_power_of_2(members)
    rows = max(1, min(ROWS, ELEMENTS // padded))
    target = torch.empty_like(rewards)
    with torch.cuda.device_of(values):
        td_target_kernel[(triton.cdiv(batch, rows), runs)](
            values, rewards, masks, target, members, batch, discount, rho, padded, rows,
            num_warps=4,
        )  # fmt: skip
    return target
