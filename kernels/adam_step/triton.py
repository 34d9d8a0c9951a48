"""The step in two passes over packed parameters: the gradient's norm, then everything else.

The first pass reads the gradient and sums its squares in parts, the second adds a run's parts in
their order and clips, moves the targets and takes Adam's step, so that every number is read once
more and what changes is written once. Nothing is added in an order that could change, and the
second pass may be several launches, each of some columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.adam_step.settings import Settings

BLOCK = 1024
NORM_BLOCKS, STEP_BLOCKS = 16, 4
"""Blocks of a program of either pass. With few of them there are many parts, which every program of
the second pass adds up; with many, fewer programs than would fill a GPU."""


@triton.jit(do_not_specialize=["log_beta1", "log_beta2"])
def gradient_norm_kernel(
    gradient,  # [S, P]
    partial,  # [S, parts], sums of squares
    step,  # [], float32; one more afterwards
    corrections,  # [2]: 1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)
    size,  # P
    log_beta1,
    log_beta2,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Sums of squares of `BLOCKS` blocks each, and the step's number; grid [parts, S]."""
    part, run = tl.program_id(0), tl.program_id(1)
    row = gradient + tl.cast(run, tl.int64) * size
    squares = tl.zeros((BLOCK,), tl.float32)
    for block in range(BLOCKS):
        at = (part * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(row + at, mask=at < size, other=0.0)
        squares += value * value
    tl.store(partial + run * tl.num_programs(0) + part, tl.sum(squares))
    if part + run == 0:
        # In float64, as 1 - beta2^t cancels where t is small.
        t = tl.load(step) + 1.0
        tl.store(step, t)
        first = 1.0 - tl.exp(t.to(tl.float64) * log_beta1)
        second = 1.0 - tl.exp(t.to(tl.float64) * log_beta2)
        tl.store(corrections, (1.0 / first).to(tl.float32))
        tl.store(corrections + 1, (1.0 / tl.sqrt(second)).to(tl.float32))


@triton.jit(do_not_specialize=["lr", "rest1", "rest2", "eps", "max_norm", "tau", "parts"])
def adam_step_kernel(
    online,  # [S, P], parameters; Triton has a `params` of its own
    gradient,  # [S, P]
    exp_avg,  # [S, P]
    exp_avg_sq,  # [S, P]
    targets,  # [S, Q], of the last Q parameters; with TARGETS
    partial,  # [S, parts], sums of squares
    corrections,  # [2]
    norms,  # [S], written
    size,  # P, or the columns of a part
    stride,  # elements between two runs
    target_stride,  # the same of the targets
    before,  # P - Q
    parts,
    lr,
    rest1,  # 1 - beta1
    rest2,  # 1 - beta2
    eps,
    max_norm,
    tau,
    CLIP: tl.constexpr,
    TARGETS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """The step of `BLOCKS` blocks of a run; grid [programs, S]."""
    program, run = tl.program_id(0), tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, parts, BLOCK):
        at = first + tl.arange(0, BLOCK)
        squares += tl.load(partial + wide * parts + at, mask=at < parts, other=0.0)
    norm = tl.sqrt_rn(tl.sum(squares))
    if program == 0:
        tl.store(norms + run, norm)
    scale = 1.0
    if CLIP:
        # A norm that is no number compares as false, so that all of its run becomes none.
        scale = tl.where(norm <= max_norm, 1.0, max_norm / norm)
    rate = lr * tl.load(corrections)
    correction = tl.load(corrections + 1)
    online += wide * stride
    gradient += wide * stride
    exp_avg += wide * stride
    exp_avg_sq += wide * stride
    targets += wide * target_stride
    for block in range(BLOCKS):
        at = (program * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        mask = at < size
        value = tl.load(online + at, mask=mask, other=0.0)
        g = tl.load(gradient + at, mask=mask, other=0.0) * scale
        m = tl.load(exp_avg + at, mask=mask, other=0.0)
        v = tl.load(exp_avg_sq + at, mask=mask, other=0.0)
        if TARGETS:
            followed = mask & (at >= before)
            target = tl.load(targets + at - before, mask=followed, other=0.0)
            tl.store(targets + at - before, target + tau * (value - target), mask=followed)
        m += rest1 * (g - m)
        v += rest2 * (g * g - v)
        tl.store(exp_avg + at, m, mask=mask)
        tl.store(exp_avg_sq + at, v, mask=mask)
        value -= rate * tl.div_rn(m, tl.sqrt_rn(v) * correction + eps)
        tl.store(online + at, value, mask=mask)


def empty_norm(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return memory for sums of squares `[S, parts]`, and for the moments' corrections `[2]`.

    Raises:
        ValueError: a run has 2^31 parameters or more.
    """
    runs, size = gradient.shape
    if size >= 2**31:
        raise ValueError(
            f"adam_step: a run has {size} parameters; the Triton kernel addresses fewer than 2^31, "
            "so take another backend"
        )
    parts = triton.cdiv(size, NORM_BLOCKS * BLOCK)
    return gradient.new_empty(runs, parts), gradient.new_empty(2)


def log_of(beta: float) -> float:
    """Return log(beta) of a moment's decay, minus infinity for one that keeps nothing."""
    return math.log(beta) if beta > 0 else -math.inf


def adam_norm(gradient: Tensor, step: Tensor, beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """Count the step, and return what its parts share; see `empty_norm`."""
    partial, corrections = found = empty_norm(gradient)
    runs, parts = partial.shape
    with torch.cuda.device_of(gradient):
        gradient_norm_kernel[(parts, runs)](
            gradient, partial, step, corrections, gradient.shape[1], log_of(beta1),
            log_of(beta2), BLOCK, NORM_BLOCKS, num_warps=4,
        )  # fmt: skip
    return found


def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    targets: Tensor | None,
    norm: Sequence[Tensor],
    settings: Settings,
) -> Tensor:
    """Do the step, or a part of it, with what `adam_norm` returned."""
    runs, size = params.shape
    partial, corrections = norm
    followed = params[:, :0] if targets is None else targets
    norms = params.new_empty(runs)
    with torch.cuda.device_of(params):
        adam_step_kernel[(triton.cdiv(size, STEP_BLOCKS * BLOCK), runs)](
            params, gradient, exp_avg, exp_avg_sq, followed, partial, corrections, norms, size,
            params.stride(0), followed.stride(0), size - followed.shape[1], partial.shape[1],
            settings.lr, 1.0 - settings.beta1, 1.0 - settings.beta2, settings.eps,
            settings.max_norm, settings.tau, settings.max_norm < float("inf"), targets is not None,
            BLOCK, STEP_BLOCKS, num_warps=4,
        )  # fmt: skip
    return norms
