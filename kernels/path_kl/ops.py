r"""Path KL by the compiled extension, registered with torch.library.

D_b = sum_k w_k ||v_k - u_k||^2,  w_k = 2 h_k / (g_k^2 H)
dD_b / dv_k = 2 w_k (v_k - u_k) = -dD_b / du_k
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.noise_schedule import NoiseSchedule, schedule_table
from trqam_fast.kernels.registration import register


class PathKL(NamedTuple):
    """csrc/path_kl.h: PathKl."""

    shape: tuple[int, ...]
    schedule: int
    horizon: int
    velocity: int
    base_velocity: int
    sums: int | None
    per_trajectory: int
    mean: int


class PathKLBackward(NamedTuple):
    """csrc/path_kl.h: PathKlBackward."""

    shape: tuple[int, ...]
    schedule: int
    horizon: int
    velocity: int
    base_velocity: int
    upstream: int
    grad_velocity: int


def _forward(velocity, base_velocity, schedule, horizon):
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    runs, steps, batch, _ = velocity.shape
    if schedule is None:
        schedule = schedule_table(None, steps, torch.float64, velocity.device)
    per_trajectory, mean = velocity.new_empty(runs, batch), velocity.new_empty(runs)
    sums = velocity.new_empty(runs, batch, dtype=torch.float64) if velocity.is_cuda else None
    fields = PathKL(
        shape=velocity.shape,
        schedule=schedule.data_ptr(),
        horizon=horizon,
        velocity=velocity.data_ptr(),
        base_velocity=base_velocity.data_ptr(),
        sums=None if sums is None else sums.data_ptr(),
        per_trajectory=per_trajectory.data_ptr(),
        mean=mean.data_ptr(),
    )
    call("path_kl", fields, velocity)
    return per_trajectory, mean


def _forward_fake(velocity, base_velocity, schedule, horizon):
    runs, _, batch, _ = velocity.shape
    return velocity.new_empty(runs, batch), velocity.new_empty(runs)


def _backward(velocity, base_velocity, upstream, schedule, horizon):
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    upstream, grad_velocity = upstream.contiguous(), torch.empty_like(velocity)
    if schedule is None:
        schedule = schedule_table(None, velocity.shape[1], torch.float64, velocity.device)
    fields = PathKLBackward(
        shape=velocity.shape,
        schedule=schedule.data_ptr(),
        horizon=horizon,
        velocity=velocity.data_ptr(),
        base_velocity=base_velocity.data_ptr(),
        upstream=upstream.data_ptr(),
        grad_velocity=grad_velocity.data_ptr(),
    )
    call("path_kl_backward", fields, velocity)
    return grad_velocity


def _backward_fake(velocity, base_velocity, upstream, schedule, horizon):
    return velocity.new_empty(velocity.shape)


register(
    "path_kl(Tensor velocity, Tensor base_velocity, Tensor? schedule, int horizon) "
    "-> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)
register(
    "path_kl_backward(Tensor velocity, Tensor base_velocity, Tensor upstream, Tensor? schedule, "
    "int horizon) -> Tensor",
    _backward,
    _backward_fake,
)


class _PathKL(torch.autograd.Function):
    """Per-trajectory path KL and its mean over the batch, differentiable in both velocities."""

    @staticmethod
    def forward(ctx, velocity, base_velocity, schedule, horizon):
        ctx.schedule, ctx.horizon = schedule, horizon
        ctx.save_for_backward(velocity, base_velocity)
        return torch.ops.trqam_fast.path_kl(velocity, base_velocity, schedule, horizon)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_per_trajectory, grad_mean):
        velocity, base_velocity = ctx.saved_tensors
        upstream = grad_per_trajectory + grad_mean.unsqueeze(-1) / velocity.shape[2]
        grad = torch.ops.trqam_fast.path_kl_backward(
            velocity, base_velocity, upstream, ctx.schedule, ctx.horizon
        )
        first, second = ctx.needs_input_grad[:2]
        return grad if first else None, -grad if second else None, None, None


def path_kl(
    velocity: Tensor, base_velocity: Tensor, schedule: NoiseSchedule | None, horizon: int
) -> tuple[Tensor, Tensor]:
    """Return (per trajectory `[S, B]`, mean `[S]`)."""
    table, steps = None, velocity.shape[1]
    if schedule is not None:
        table = schedule_table(schedule, steps, torch.float64, velocity.device)
    return _PathKL.apply(velocity, base_velocity, table, horizon)
