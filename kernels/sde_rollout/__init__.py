"""Rollouts of a flow policy: the memoryless SDE of training and the ODE of acting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import check_same, check_tensor, choose_backend
from trqam_fast.kernels.fields import (
    Velocity,
    check_velocity,
    fields_problem,
    passes_problem,
)
from trqam_fast.kernels.philox import Philox, philox_normal
from trqam_fast.kernels.sde_rollout import ops, reference, triton_ops


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
    noise: Tensor | Philox,
    *,
    flow_steps: int | None = None,
    ode_observations: Tensor | None = None,
    ode_x0: Tensor | None = None,
    backend: str = "auto",
    precision: str = "ieee",
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
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`, standard normal; or `Philox` counters, from
            which the same numbers are drawn on every backend, by Triton inside the kernel.
        flow_steps: K >= 2, needed with `Philox`; otherwise `noise` fixes it.
        ode_observations: `[S, N, O]`, optional.
        ode_x0: `[S, N, D]`, with `ode_observations`.
        backend: ``auto``, ``reference``, or for packed weights ``cpp`` or ``triton``.
        precision: ``ieee``, ``tf32`` (Triton) or ``bf16`` (Triton or ``cpp``) operands.

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
    check_same(op, observations=observations, x0=x0)
    flow_steps = check_noise(op, noise, x0, flow_steps)
    check_velocity(op, "velocity", velocity, observations, x0.shape[-1])
    check_velocity(op, "base_velocity", base_velocity, observations, x0.shape[-1])
    if (ode_observations is None) != (ode_x0 is None):
        raise ValueError(f"{op}: ode_observations and ode_x0 go together; pass both or neither")

    if ode_observations is not None:
        check_tensor(op, "ode_observations", ode_observations, (runs, None, observations.shape[-1]))
        check_tensor(op, "ode_x0", ode_x0, (runs, ode_observations.shape[1], x0.shape[-1]))
        check_same(op, x0=x0, ode_observations=ode_observations, ode_x0=ode_x0)

    chosen = choose_backend(
        op, backend, x0.device, cpp=passes_problem(x0, precision, velocity, base_velocity),
        triton=fields_problem(x0, velocity, base_velocity), precision=precision,
    )  # fmt: skip
    if chosen == "triton":
        trajectory, velocities, ode_x = triton_ops.sde_rollout(
            velocity, base_velocity, observations, x0, noise, flow_steps, ode_observations,
            ode_x0, precision,
        )  # fmt: skip
        return Rollout(trajectory, velocities, None if ode_x0 is None else ode_x)
    if isinstance(noise, Philox):
        noise = philox_normal(noise, (flow_steps - 1, batch, x0.shape[-1]), x0.dtype)
    if chosen == "cpp":
        trajectory, velocities, ode_x = ops.sde_rollout(
            velocity, base_velocity, observations, x0, noise, ode_observations, ode_x0, precision
        )
        return Rollout(trajectory, velocities, None if ode_x0 is None else ode_x)
    trajectory, velocities = reference.sde_rollout(velocity, base_velocity, observations, x0, noise)
    if ode_observations is None or ode_x0 is None:
        return Rollout(trajectory, velocities, None)
    with torch.no_grad():
        ode_x = reference.ode_rollout(velocity, ode_observations, ode_x0, flow_steps)
    return Rollout(trajectory, velocities, ode_x)


def check_noise(op: str, noise: Tensor | Philox, x0: Tensor, flow_steps: int | None) -> int:
    """Return K; raise unless `noise` fits `x0` and, if it is given, `flow_steps`."""
    runs, batch, dim = x0.shape
    if not isinstance(noise, Philox):
        check_tensor(op, "noise", noise, (runs, None, batch, dim))
        check_same(op, x0=x0, noise=noise)
        steps = noise.shape[1] + 1
        if steps < 2:
            raise ValueError(f"{op}: noise has no step; K = noise.shape[1] + 1 must be at least 2")
        if flow_steps not in (None, steps):
            raise ValueError(
                f"{op}: flow_steps is {flow_steps}, but noise has {steps - 1} steps; drop one"
            )
        return steps
    if flow_steps is None or flow_steps < 2:
        raise ValueError(f"{op}: flow_steps is {flow_steps}; Philox noise needs K of 2 or more")
    for name, tensor, shape in (("seed", noise.seed, (runs,)), ("offset", noise.offset, ())):
        if tensor.shape != shape or tensor.dtype != torch.int64 or tensor.device != x0.device:
            raise ValueError(
                f"{op}: noise.{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
                f"expected int64 {list(shape)} on {x0.device}"
            )
    return flow_steps


def ode_rollout(
    velocity: Velocity,
    observations: Tensor,
    x0: Tensor,
    flow_steps: int,
    *,
    backend: str = "auto",
    precision: str = "ieee",
) -> Tensor:
    """Integrate the noise-free flow: K Euler steps x <- x + h v(s, x, t_k), not clipped.

    Source: TRQAM section "Acting" (docs/algorithm.md).

    Args:
        velocity: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        observations: `[S, N, O]`, float32 or float64.
        x0: `[S, N, D]`, standard normal.
        flow_steps: K >= 1.
        backend: ``auto``, ``reference``, or ``cpp`` or ``triton`` for packed weights, without
            gradients.
        precision: ``ieee``, ``tf32`` (Triton) or ``bf16`` (Triton or ``cpp``) operands.

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
    chosen = choose_backend(
        op, backend, x0.device, cpp=passes_problem(x0, precision, velocity),
        triton=fields_problem(x0, velocity), precision=precision,
    )  # fmt: skip
    match chosen:
        case "reference":
            return reference.ode_rollout(velocity, observations, x0, flow_steps)
        case "triton":
            return triton_ops.ode_rollout(velocity, observations, x0, flow_steps, precision)
        case _:
            return ops.ode_rollout(velocity, observations, x0, flow_steps, precision)


__all__ = ["Rollout", "ode_rollout", "sde_rollout"]
