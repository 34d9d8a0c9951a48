"""Rollouts of a flow policy: the memoryless SDE of training and the ODE of acting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import check_same, check_tensor, choose_backend
from trqam_fast.kernels.sde_rollout import ops, reference
from trqam_fast.kernels.velocity import Velocity, callable_problem, check_velocity


class Rollout(NamedTuple):
    """Result of `sde_rollout`.

    Attributes:
        trajectory: X_0..X_K, `[S, K + 1, B, D]`; carries no gradient.
        velocity: v(s, X_k, t_k) for k = 0..K-1, `[S, K, B, D]`; differentiable in the weights of
            the field (or in whatever a callable field depends on) with the X_k held fixed.
        ode_x: X_K of the noise-free rows, `[S, N, D]`, or None without such rows.
    """

    trajectory: Tensor
    velocity: Tensor
    ode_x: Tensor | None


def sde_rollout(
    velocity: Velocity,
    base_velocity: Velocity,
    observations: Tensor,
    x0: Tensor,
    noise: Tensor,
    *,
    ode_observations: Tensor | None = None,
    ode_x0: Tensor | None = None,
    backend: str = "auto",
) -> Rollout:
    """Sample chains of the memoryless SDE, the last step by the base field's ODE.

    For k = 0..K-2, with h = 1/K, t_k = k h and g_k^2 = 2 (1 - t_k + h) / (t_k + h)::

        X_{k+1} = X_k + h (2 v(s, X_k, t_k) - X_k / (t_k + h)) + sqrt(h) g_k eps_k
        X_K     = X_{K-1} + h v_base(s, X_{K-1}, t_{K-1})

    Source: TRQAM section "Rollout" (docs/algorithm.md). Rows given as `ode_observations` and
    `ode_x0` follow the noise-free flow of the same field in the same call, as `ode_rollout` does.

    Args:
        velocity: Fine-tuned field: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        base_velocity: Field of the last step; never differentiated.
        observations: `[S, B, O]`, float32 or float64.
        x0: `[S, B, D]`, standard normal.
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`, standard normal; it fixes K >= 2.
        ode_observations: `[S, N, O]`, optional.
        ode_x0: `[S, N, D]`, with `ode_observations`.
        backend: ``auto``, ``reference`` or ``cpp`` (packed weights only).

    Returns:
        The `Rollout`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if `observations`, `x0` or `noise` need a gradient.
    """
    op = "sde_rollout"
    check_tensor(op, "observations", observations, (None, None, None))
    runs, batch, _ = observations.shape
    check_tensor(op, "x0", x0, (runs, batch, None))
    check_tensor(op, "noise", noise, (runs, None, batch, x0.shape[-1]))
    if noise.shape[1] < 1:
        raise ValueError(f"{op}: noise has no step; K = noise.shape[1] + 1 must be at least 2")
    check_same(op, observations=observations, x0=x0, noise=noise)
    check_velocity(op, "velocity", velocity, observations, x0.shape[-1])
    check_velocity(op, "base_velocity", base_velocity, observations, x0.shape[-1])
    if (ode_observations is None) != (ode_x0 is None):
        raise ValueError(f"{op}: ode_observations and ode_x0 go together; pass both or neither")

    match choose_backend(op, backend, callable_problem(velocity, base_velocity)):
        case "reference":
            trajectory, velocities = reference.sde_rollout(
                velocity, base_velocity, observations, x0, noise
            )
        case _:
            trajectory, velocities = ops.sde_rollout(
                velocity, base_velocity, observations, x0, noise
            )
    ode_x = None
    if ode_observations is not None and ode_x0 is not None:
        with torch.no_grad():
            ode_x = ode_rollout(
                velocity, ode_observations, ode_x0, noise.shape[1] + 1, backend=backend
            )
    return Rollout(trajectory, velocities, ode_x)


def ode_rollout(
    velocity: Velocity,
    observations: Tensor,
    x0: Tensor,
    flow_steps: int,
    *,
    backend: str = "auto",
) -> Tensor:
    """Integrate the noise-free flow: K Euler steps x <- x + h v(s, x, t_k), not clipped.

    Source: TRQAM section "Acting" (docs/algorithm.md).

    Args:
        velocity: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        observations: `[S, N, O]`, float32 or float64.
        x0: `[S, N, D]`, standard normal.
        flow_steps: K >= 1.
        backend: ``auto``, ``reference`` or ``cpp`` (packed weights only; no gradient).

    Returns:
        X_K, `[S, N, D]`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or `flow_steps` is below 1.
        BackendError: the backend asked for cannot run.
    """
    op = "ode_rollout"
    check_tensor(op, "observations", observations, (None, None, None))
    check_tensor(op, "x0", x0, (*observations.shape[:2], None))
    check_same(op, observations=observations, x0=x0)
    check_velocity(op, "velocity", velocity, observations, x0.shape[-1])
    if flow_steps < 1:
        raise ValueError(f"{op}: flow_steps is {flow_steps}; it must be at least 1")
    match choose_backend(op, backend, callable_problem(velocity)):
        case "reference":
            return reference.ode_rollout(velocity, observations, x0, flow_steps)
        case _:
            return ops.ode_rollout(velocity, observations, x0, flow_steps)


__all__ = ["Rollout", "ode_rollout", "sde_rollout"]
