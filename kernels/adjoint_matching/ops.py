r"""Adjoint-matching loss by the extension or Triton, registered with torch.library.

With r_k = 2 (v_k - u_k) / sigma_k + sigma_k a_k, one pass over the trajectory computes

    L = mean_b sum_k ||r_k||^2,   dL/dv_k = (4 / (B sigma_k)) r_k
    D = mean_b sum_k w_k ||v_k - u_k||^2,   w_k = 2 h_k / (g_k^2 H)

so the backward pass only scales the stored gradient by the upstream one. L and D are the rows of
one tensor `[2, S]`, for which one launch adds up what the Triton kernel's programs leave.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.checks import refuse_gradient
from trqam_fast.kernels.cotangent import times_cotangent
from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.noise_schedule import NoiseSchedule, schedule_table
from trqam_fast.kernels.registration import register

TABLE = {"cpp": torch.float64, "triton": torch.float32}
"""Type of the schedule that a backend reads."""


class AdjointMatching(NamedTuple):
    """csrc/adjoint_matching.h: AdjointMatching."""

    shape: tuple[int, ...]
    schedule: int
    horizon: int
    velocity: int
    base_velocity: int
    adjoint: int
    lam: int
    sums: int | None
    loss: int
    path_kl: int
    grad_velocity: int | None


def _forward(velocity, base_velocity, adjoint, lam, schedule, horizon, backend, with_gradient):
    velocity, base_velocity = velocity.contiguous(), base_velocity.contiguous()
    adjoint, lam = adjoint.contiguous(), lam.contiguous()
    runs, steps, batch, _ = velocity.shape
    if schedule is None:
        schedule = schedule_table(None, steps, TABLE[backend], velocity.device)
    if backend == "triton":
        from trqam_fast.kernels.adjoint_matching import triton

        return triton.adjoint_matching(
            velocity, base_velocity, adjoint, lam, schedule, horizon, with_gradient
        )
    found = velocity.new_empty(2, runs)
    gradient = torch.empty_like(velocity) if with_gradient else velocity.new_empty(0)
    sums = velocity.new_empty(2, runs, batch, dtype=torch.float64) if velocity.is_cuda else None
    fields = AdjointMatching(
        shape=velocity.shape,
        schedule=schedule.data_ptr(),
        horizon=horizon,
        velocity=velocity.data_ptr(),
        base_velocity=base_velocity.data_ptr(),
        adjoint=adjoint.data_ptr(),
        lam=lam.data_ptr(),
        sums=None if sums is None else sums.data_ptr(),
        loss=found[0].data_ptr(),
        path_kl=found[1].data_ptr(),
        grad_velocity=gradient.data_ptr() if with_gradient else None,
    )
    call("adjoint_matching", fields, velocity)
    return found, gradient


def _forward_fake(velocity, base_velocity, adjoint, lam, schedule, horizon, backend, with_gradient):
    runs = velocity.shape[0]
    gradient = velocity.new_empty(velocity.shape if with_gradient else 0)
    return velocity.new_empty(2, runs), gradient


register(
    "adjoint_matching(Tensor velocity, Tensor base_velocity, Tensor adjoint, Tensor lam, "
    "Tensor? schedule, int horizon, str backend, bool with_gradient) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
)


class _AdjointMatching(torch.autograd.Function):
    """Loss (differentiable in the fine-tuned velocity) and path KL (a constant)."""

    @staticmethod
    def forward(ctx, velocity, base_velocity, adjoint, lam, schedule, horizon, backend):
        found, gradient = torch.ops.trqam_fast.adjoint_matching(
            velocity,
            base_velocity,
            adjoint,
            lam,
            schedule,
            horizon,
            backend,
            any(ctx.needs_input_grad),
        )
        # Rows of one tensor. Views that a Function returns could not be changed in place.
        loss, path_kl = found[0].detach(), found[1].detach()
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(path_kl)
        ctx.set_materialize_grads(False)
        return loss, path_kl

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, _):
        names = ("base_velocity", "adjoint", "lam")
        needed = dict(zip(names, ctx.needs_input_grad[1:4], strict=True))
        refuse_gradient("adjoint_matching", **needed)
        (gradient,) = ctx.saved_tensors
        return times_cotangent(gradient, grad_loss), *[None] * 6


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    schedule: NoiseSchedule | None,
    horizon: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return loss and path KL, both `[S]`, by the Triton kernel or by the extension."""
    table, steps = None, velocity.shape[1]
    if schedule is not None:
        table = schedule_table(schedule, steps, TABLE[backend], velocity.device)
    return _AdjointMatching.apply(velocity, base_velocity, adjoint, lam, table, horizon, backend)
