"""Path-space KL between the fine-tuned and the base process."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from trqam_fast.kernels.checks import (
    check_action_mask,
    check_counts,
    check_not_empty,
    check_same,
    check_tensor,
    masked,
)
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.noise_schedule import NoiseSchedule, check_schedule
from trqam_fast.kernels.path_kl import ops, reference


def path_kl(
    velocity: Tensor,
    base_velocity: Tensor,
    *,
    horizon: int = 1,
    schedule: NoiseSchedule | None = None,
    action_mask: Tensor | None = None,
    reduction: Literal["mean", "none"] = "mean",
    backend: Backend = "auto",
) -> Tensor:
    """Path KL of trajectories sampled from the fine-tuned process.

    In nats per action step::

        D_b = sum_k (2 h_k / g_k^2) ||v_ft(s, X_k, t_k) - v_base(s, X_k, t_k)||^2 / horizon

    By Girsanov's theorem its expectation is KL(P^u || P^base) of the discretised chain divided by
    the horizon. Source: TRQAM section "Path KL" (docs/algorithm.md).

    Args:
        velocity: v_ft along the trajectories, `[S, K, B, D]`, float32 or float64.
        base_velocity: v_base at the same points, same shape, dtype and device.
        horizon: Executed action steps of a chunk; 1 without chunking.
        schedule: h_k and g_k^2 of the K steps; None for the flow's own.
        action_mask: True for the D dimensions that count, a bool `[D]`; None for all.
        reduction: ``mean`` over the batch, or ``none``.
        backend: ``auto``, ``reference`` or ``cpp``.

    Returns:
        `[S]` for ``mean``, `[S, B]` for ``none``; differentiable once in both velocities.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, or `horizon` no integer.
        ValueError: shapes, dtypes, devices or the number of steps do not fit; a size is 0; unknown
            `reduction`; `horizon` below 1.
        BackendError: the backend asked for cannot run.
    """
    op = "path_kl"
    check_tensor(op, "velocity", velocity, ("S", "K", "B", "D"))
    check_not_empty(op, "velocity", velocity)
    check_tensor(op, "base_velocity", base_velocity, tuple(velocity.shape))
    check_same(op, velocity=velocity, base_velocity=base_velocity)
    check_counts(op, horizon=horizon)
    if reduction not in ("mean", "none"):
        raise ValueError(f"{op}: reduction is {reduction!r}; choose 'mean' or 'none'")
    check_schedule(op, schedule, velocity.shape[1])
    check_action_mask(op, action_mask, velocity)
    velocity, base_velocity = masked(action_mask, velocity, base_velocity)
    chosen = choose_backend(op, backend, velocity.device, dtype=velocity.dtype)
    if chosen == "reference":
        per_trajectory = reference.path_kl(velocity, base_velocity, schedule, horizon)
        return per_trajectory.mean(-1) if reduction == "mean" else per_trajectory
    per_trajectory, mean = ops.path_kl(velocity, base_velocity, schedule, horizon)
    return mean if reduction == "mean" else per_trajectory


__all__ = ["path_kl"]
