"""Adjoint-matching loss, its gradient and the path KL in one pass over the trajectory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.adjoint_matching.constants import MIN_LAM

LOWEST_LAM = tl.constexpr(MIN_LAM)
BLOCK = 1024


@triton.jit
def bound(lam):
    """Raise `lam` to its lower bound; NaN stays NaN."""
    return tl.maximum(lam, LOWEST_LAM, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["steps", "batch", "dim", "horizon"])
def adjoint_matching_kernel(
    velocity,  # [S, K, B, D]
    base_velocity,  # [S, K, B, D]
    adjoint,  # [S, K, B, D]
    lam,  # [S]
    schedule,  # [2, K]: h_k, g_k^2
    gradient,  # [S, K, B, D], written with GRADIENT
    partial,  # [2, S, K * blocks of a step]: sums of the loss and of the path KL
    steps,  # K
    batch,  # B
    dim,  # D
    horizon,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements of one flow step; grid [K * blocks of a step, S].

    With sigma_k = g_k / sqrt(max(lam, 1e-8)) and r = 2 (v - u) / sigma_k + sigma_k a: the loss
    sums r^2 / B, its gradient in v is 4 r / (B sigma_k), and the path KL sums
    2 h_k (v - u)^2 / (g_k^2 B horizon).
    """
    run = tl.program_id(1)
    size = batch * dim
    blocks = tl.cdiv(size, BLOCK)
    k = tl.program_id(0) // blocks
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = element < size
    at = (tl.cast(run, tl.int64) * steps + k) * size + element
    rows = tl.cast(batch, tl.float32)
    g_squared = tl.load(schedule + steps + k)
    sigma = tl.sqrt_rn(tl.div_rn(g_squared, bound(tl.load(lam + run))))
    delta = tl.load(velocity + at, mask=mask, other=0.0)
    delta -= tl.load(base_velocity + at, mask=mask, other=0.0)
    residual = tl.div_rn(2.0 * delta, sigma + tl.zeros((BLOCK,), tl.float32))
    residual += sigma * tl.load(adjoint + at, mask=mask, other=0.0)
    if GRADIENT:
        tl.store(gradient + at, residual * tl.div_rn(4.0, rows * sigma), mask=mask)
    into = partial + run * tl.num_programs(0) + tl.program_id(0)
    tl.store(into, tl.sum(residual * residual) / rows)
    scale = 2.0 * tl.load(schedule + k) / (g_squared * rows * tl.cast(horizon, tl.float32))
    tl.store(into + tl.num_programs(1) * tl.num_programs(0), tl.sum(delta * delta) * scale)


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    schedule: Tensor,
    horizon: int,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return loss and path KL, `[2, S]`, and the loss's gradient in `velocity`, or an empty one."""
    runs, steps, batch, dim = velocity.shape
    if batch * dim >= 2**31:
        raise ValueError(
            f"adjoint_matching: velocity has {batch} x {dim} elements in a flow step; the Triton "
            "kernel addresses fewer than 2^31, so split the batch"
        )
    gradient = torch.empty_like(velocity) if with_gradient else velocity.new_empty(0)
    blocks = steps * triton.cdiv(batch * dim, BLOCK)
    partial = velocity.new_empty(2, runs, blocks)
    with torch.cuda.device_of(velocity):
        adjoint_matching_kernel[(blocks, runs)](
            velocity,
            base_velocity,
            adjoint,
            lam,
            schedule,
            gradient,
            partial,
            steps,
            batch,
            dim,
            horizon,
            with_gradient,
            BLOCK,
            num_warps=4,
        )
    return partial.sum(-1), gradient
