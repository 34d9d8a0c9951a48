"""The critics' loss, its gradient and the values' sizes: a run in one program, as it has few."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.td_loss.inputs import TDInputs

ELEMENTS, WARPS = 4096, 16
"""Values of an ensemble that are loaded at a time, unless one row has more."""


@triton.jit
def mean_of(values, row, within, members, batch, MEMBERS: tl.constexpr):
    """Return an ensemble's values at some rows, which count, and their mean over the members."""
    member = tl.arange(0, MEMBERS)[:, None]
    mask = (member < members) & within[None, :]
    value = tl.load(values + member * batch + row[None, :], mask=mask, other=0.0)
    return value, mask, tl.sum(value, 0) / tl.cast(members, tl.float32)


@triton.jit(
    do_not_specialize=["members", "next_members", "policy_members", "batch", "discount", "rho"]
)
def td_loss_kernel(
    values,  # [S, E, B]
    next_values,  # [S, E', B]
    rewards,  # [S, B]
    masks,  # [S, B]
    valid,  # [S, B]
    policy_values,  # [S, E'', B] with POLICY
    found,  # [5, S], written: loss, mean, smallest, largest, gap
    gradient,  # [S, E, B], written with GRADIENT
    members,  # E
    next_members,  # E'
    policy_members,  # E''
    batch,  # B
    discount,
    rho,
    GRADIENT: tl.constexpr,
    POLICY: tl.constexpr,
    MEMBERS: tl.constexpr,  # powers of two that hold the members
    NEXT_MEMBERS: tl.constexpr,
    POLICY_MEMBERS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """With y = R + discount m (mean_e Q' - rho std_e Q'): mean of (Q - y)^2 valid; grid [S]."""
    run, runs = tl.program_id(0), tl.num_programs(0)
    wide = tl.cast(run, tl.int64)
    values += wide * members * batch
    next_values += wide * next_members * batch
    policy_values += wide * policy_members * batch
    gradient += wide * members * batch
    size = tl.cast(members * batch, tl.float32)
    losses = tl.zeros((MEMBERS, ROWS), tl.float32)
    means = tl.zeros((ROWS,), tl.float32)
    policy_means = tl.zeros((ROWS,), tl.float32)
    smallest = tl.full((MEMBERS, ROWS), float("inf"), tl.float32)
    largest = tl.full((MEMBERS, ROWS), float("-inf"), tl.float32)
    bad = tl.zeros((MEMBERS, ROWS), tl.int32)
    member = tl.arange(0, MEMBERS)[:, None]
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS)
        within = row < batch
        after, mask, mean = mean_of(next_values, row, within, next_members, batch, NEXT_MEMBERS)
        apart = tl.where(mask, after - mean[None, :], 0.0)
        count = tl.cast(next_members, tl.float32)
        deviation = tl.sqrt_rn(tl.sum(apart * apart, 0) / count)
        # Without pessimism the deviation does not count, not even where it is infinite or NaN.
        pessimistic = tl.where(rho > 0, mean - rho * deviation, mean)
        at = wide * batch + row
        future = discount * tl.load(masks + at, mask=within, other=0.0)
        target = tl.load(rewards + at, mask=within, other=0.0) + future * pessimistic
        weight = tl.load(valid + at, mask=within, other=0.0)[None, :]
        value, mask, mean = mean_of(values, row, within, members, batch, MEMBERS)
        apart = tl.where(mask, value - target[None, :], 0.0)
        losses += apart * apart * weight
        if GRADIENT:
            into = gradient + member * batch + row[None, :]
            tl.store(into, 2.0 * apart * weight / size, mask=mask)
        means += mean
        smallest = tl.minimum(smallest, tl.where(mask, value, float("inf")))
        largest = tl.maximum(largest, tl.where(mask, value, float("-inf")))
        bad += (value != value).to(tl.int32)
        if POLICY:
            _, _, mean = mean_of(policy_values, row, within, policy_members, batch, POLICY_MEMBERS)
            policy_means += mean
    rows = tl.cast(batch, tl.float32)
    mean = tl.sum(means) / rows
    # A minimum drops what is no number.
    nothing = tl.where(tl.sum(tl.sum(bad, 0), 0) > 0, float("nan"), 0.0)
    tl.store(found + run, tl.sum(tl.sum(losses, 0), 0) / size)
    tl.store(found + runs + run, mean)
    tl.store(found + 2 * runs + run, tl.min(tl.min(smallest, 0), 0) + nothing)
    tl.store(found + 3 * runs + run, tl.max(tl.max(largest, 0), 0) + nothing)
    tl.store(found + 4 * runs + run, tl.sum(policy_means) / rows - mean)


def td_loss(
    inputs: TDInputs, discount: float, rho: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return loss, mean, smallest and largest value, and gap, `[5, S]`, and the loss's gradient.

    The gap is of no use without the policy's values; the gradient is empty where none is wanted.

    Raises:
        ValueError: a run has 2^31 values or more.
    """
    values, with_policy = inputs.values, inputs.policy_values is not None
    runs, members, batch = values.shape
    policy_values = values if inputs.policy_values is None else inputs.policy_values
    given = inputs._replace(policy_values=policy_values)
    counts = (members, inputs.next_values.shape[1], policy_values.shape[1])
    if max(counts) * batch >= 2**31:
        raise ValueError(
            f"td_loss: an ensemble has {max(counts)} x {batch} values in a run; the Triton kernel "
            "addresses fewer than 2^31, so split the batch"
        )
    padded = [triton.next_power_of_2(count) for count in counts]
    rows = max(1, min(ELEMENTS // max(padded), triton.next_power_of_2(batch)))
    found = values.new_empty(5, runs)
    gradient = torch.empty_like(values) if with_gradient else values.new_empty(0)
    with torch.cuda.device_of(values):
        td_loss_kernel[(runs,)](
            *given, found, gradient, *counts, batch, discount, rho, with_gradient, with_policy,
            *padded, rows, num_warps=WARPS,
        )  # fmt: skip
    return found, gradient
