"""Rollouts of a flow policy: the memoryless SDE of training and the ODE of acting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_counts, check_same, check_tensor, refusing
from trqam_fast.kernels.dispatch import TRITON, Backend, Precision, choose_backend
from trqam_fast.kernels.fields import (
    Context,
    Velocity,
    check_observations,
    check_velocity,
    tensors_of,
)
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.noise_schedule import NoiseSchedule, is_own, sde_schedule
from trqam_fast.kernels.sde_rollout import ops, reference
from trqam_fast.kernels.sde_rollout.inputs import RolloutInputs


class BasePass(NamedTuple):
    """What a rollout found of its base field at the states of the chain.

    Attributes:
        velocity: v_base(s, X_k, t_k) for k = 0..K-1, `[S, K, B, D]`; carries no gradient.
        tape: What `lean_adjoint` takes as its `tape`: the field's pass through (s, X_k, t_k + h).
    """

    velocity: Tensor
    tape: list[Tensor]


class Rollout(NamedTuple):
    """Result of `sde_rollout`.

    Attributes:
        trajectory: X_0..X_K, `[S, K + 1, B, D]`; carries no gradient.
        velocity: v(s, X_k, t_k) for k = 0..K-1, `[S, K, B, D]`; differentiable in the weights of
            the field (or in whatever a callable field depends on) with the X_k held fixed.
        ode_x: X_K of the noise-free rows, `[S, N, D]`, or None without such rows.
        base: What `with_base` asks for, or None.
    """

    trajectory: Tensor
    velocity: Tensor
    ode_x: Tensor | None
    base: BasePass | None = None


def sde_rollout(
    velocity: Velocity,
    base_velocity: Velocity,
    observations: Tensor | Context,
    x0: Tensor,
    noise: Tensor,
    *,
    ode_observations: Tensor | Context | None = None,
    ode_x0: Tensor | None = None,
    schedule: NoiseSchedule | None = None,
    with_base: bool = False,
    operands: Sequence[Tensor] | None = None,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> Rollout:
    """Sample chains of the memoryless SDE, the last step by the base field's ODE.

    For k = 0..K-2, with h = 1/K, t_k = k h and g_k^2 = 2 (1 - t_k + h) / (t_k + h)::

        X_{k+1} = X_k + h (2 v(s, X_k, t_k) - X_k / (t_k + h)) + sqrt(h) g_k eps_k
        X_K     = X_{K-1} + h v_base(s, X_{K-1}, t_{K-1})

    With a schedule, h is h_k, and t_k + h under the fraction is c_k (`NoiseSchedule`). Source:
    TRQAM section "Rollout" (docs/algorithm.md). Rows given as `ode_observations` and `ode_x0`
    follow the noise-free flow of the same field in the same call, as `ode_rollout` does.

    A callable field keeps the graphs of its K evaluations for the gradient of `velocity`. Call
    this under `torch.no_grad()` and match by `adjoint_matching_steps` to keep one at a time.

    Args:
        velocity: Fine-tuned field: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        base_velocity: Field of the last step; never differentiated.
        observations: `[S, B, O]`, float32 or float64; for callables also a `Context`.
        x0: `[S, B, D]`, standard normal.
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`, standard normal, K >= 1.
        ode_observations: `[S, N, O]`, or a `Context`; optional.
        ode_x0: `[S, N, D]`, with `ode_observations`.
        schedule: K steps of an SDE, as `AffinePath` makes them; None for the flow's own, unless a
            field has a `path` other than the linear one. Another one runs with ``reference``.
        with_base: Evaluate the base field at all states, too, beside the other one, where that is
            cheaper than afterwards: with Triton, if the fine-tuned field's weights need a gradient.
            Elsewhere `Rollout.base` is None, and `velocity_along` and `lean_adjoint` do it.
        operands: What `rollout_operands` returned for the same fields, backend and precision; None
            prepares them here.
        backend: ``auto``, ``reference``, or for packed weights ``cpp``, ``triton`` or
            ``triton_pdl``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        The `Rollout`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or a schedule is missing.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if `observations`, `x0` or `noise` need a gradient.
    """
    op = "sde_rollout"
    fields = {"velocity": velocity, "base_velocity": base_velocity}
    runs, batch = check_observations(op, observations, x0, "x0", **fields)
    check_tensor(op, "x0", x0, (runs, batch, "D"))
    check_tensor(op, "noise", noise, (runs, "K - 1", batch, x0.shape[-1]))
    check_same(op, **tensors_of(observations), x0=x0, noise=noise)
    schedule = sde_schedule(op, schedule, noise.shape[1] + 1, **fields)
    check_velocity(op, "velocity", velocity, observations, x0.shape[-1])
    check_velocity(op, "base_velocity", base_velocity, observations, x0.shape[-1])
    if (ode_observations is None) != (ode_x0 is None):
        raise ValueError(f"{op}: ode_observations and ode_x0 go together; pass both or neither")
    ode: tuple[Any, Tensor] | None = None
    if ode_observations is not None and ode_x0 is not None:
        _, rows = check_observations(op, ode_observations, ode_x0, "ode_x0", velocity=velocity)
        check_tensor(op, "ode_x0", ode_x0, (runs, rows, x0.shape[-1]))
        check_same(op, x0=x0, ode_x0=ode_x0)
        if isinstance(ode_observations, Tensor):
            if isinstance(observations, Tensor):
                shape = (runs, None, observations.shape[-1])
                check_tensor(op, "ode_observations", ode_observations, shape)
            check_same(op, x0=x0, ode_observations=ode_observations)
            ode_observations = ode_observations.detach()
        ode = (ode_observations, ode_x0.detach())
    chosen = choose_backend(
        op,
        backend,
        x0.device,
        dtype=x0.dtype,
        precision=precision,
        networks=[velocity, base_velocity],
        own_schedule=is_own(schedule),
    )
    if operands and chosen not in TRITON:
        raise ValueError(
            f"{op}: operands are given, and backend {chosen} takes none; pass what "
            "rollout_operands returned for it, or None"
        )
    if chosen == "reference":
        constants = tensors_of(observations) | {"x0": x0, "noise": noise}
        if isinstance(observations, Tensor):
            observations = observations.detach()
        trajectory, velocities = reference.sde_rollout(
            velocity, base_velocity, observations, x0, noise, schedule
        )
        ode_x = None
        if ode is not None:
            with torch.no_grad():
                ode_x = reference.ode_rollout(velocity, *ode, len(schedule), schedule)
        return Rollout(trajectory, refusing(op, velocities, **constants), ode_x)
    # A compiled backend has taken packed weights, and they no Context.
    assert isinstance(velocity, MLPWeights) and isinstance(base_velocity, MLPWeights)
    assert isinstance(observations, Tensor)
    rows_of_ode = (observations[:, :0].detach(), x0[:, :0].detach()) if ode is None else ode
    inputs = RolloutInputs(observations, x0, noise, *rows_of_ode)
    trajectory, velocities, ode_x, of_base = ops.sde_rollout(
        velocity, base_velocity, inputs, with_base, operands or (), chosen, precision
    )
    base = BasePass(of_base[0], of_base[1:]) if of_base else None
    return Rollout(trajectory, velocities, None if ode is None else ode_x, base)


def rollout_operands(
    velocity: Velocity,
    base_velocity: Velocity,
    *,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> list[Tensor]:
    """Do what a rollout does with its fields' weights alone, so that it can be done before.

    With Triton a launch writes them as operands of products, as `with_operands` does for `mlp`. The
    other backends have nothing to prepare.

    Args:
        velocity: As of `sde_rollout`, like all that follow.
        base_velocity: A field of the same sizes.
        backend: ``auto``, ``reference``, ``cpp``, ``triton`` or ``triton_pdl``.
        precision: Operands of matrix products.

    Returns:
        What `sde_rollout` takes as its `operands`, of the weights as they are now: a change of them
        is not seen. Empty where there is nothing to prepare, as for callables.

    Raises:
        TypeError: a field is of an unsupported dtype.
        ValueError: the fields do not fit together.
        BackendError: the backend asked for cannot run.
    """
    op = "sde_rollout"
    if not (isinstance(velocity, MLPWeights) and isinstance(base_velocity, MLPWeights)):
        return []
    velocity.check(op, "velocity")
    base_velocity.check(op, "base_velocity")
    kernel = velocity.kernels[0]
    check_same(op, velocity=kernel, base_velocity=base_velocity.kernels[0])
    if velocity.tensor_shapes != base_velocity.tensor_shapes:
        raise ValueError(
            f"{op}: velocity and base_velocity differ in their shapes; pass fields of the same "
            "widths"
        )
    chosen = choose_backend(
        op, backend, kernel.device, dtype=kernel.dtype, precision=precision,
        networks=[velocity, base_velocity],
    )  # fmt: skip
    if chosen not in TRITON:
        return []
    return ops.rollout_operands(velocity, base_velocity, chosen, precision)


def ode_rollout(
    velocity: Velocity,
    observations: Tensor | Context,
    x0: Tensor,
    flow_steps: int,
    *,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Integrate the noise-free flow: K Euler steps x <- x + h v(s, x, t_k), not clipped.

    The same for fields of every path: how a velocity was learned does not enter.

    Source: TRQAM section "Acting" (docs/algorithm.md).

    Args:
        velocity: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        observations: `[S, N, O]`, float32 or float64; for a callable also a `Context`.
        x0: `[S, N, D]`, standard normal.
        flow_steps: K >= 1.
        backend: ``auto``, ``reference``, or for packed weights ``cpp``, ``triton`` or
            ``triton_pdl``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        X_K, `[S, N, D]`, a constant to autograd: nothing gets a gradient from here.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, or `flow_steps` no integer.
        ValueError: shapes, dtypes or devices do not fit, or `flow_steps` is below 1.
        BackendError: the backend asked for cannot run.
    """
    op = "ode_rollout"
    runs, rows = check_observations(op, observations, x0, "x0", velocity=velocity)
    check_tensor(op, "x0", x0, (runs, rows, "D"))
    check_same(op, **tensors_of(observations), x0=x0)
    check_velocity(op, "velocity", velocity, observations, x0.shape[-1])
    check_counts(op, flow_steps=flow_steps)
    chosen = choose_backend(
        op, backend, x0.device, dtype=x0.dtype, precision=precision, networks=[velocity]
    )
    if chosen == "reference":
        with torch.no_grad():
            return reference.ode_rollout(velocity, observations, x0, flow_steps)
    # A compiled backend has taken packed weights, and they no Context.
    assert isinstance(velocity, MLPWeights) and isinstance(observations, Tensor)
    return ops.ode_rollout(velocity, observations, x0, flow_steps, chosen, precision)


__all__ = ["BasePass", "Rollout", "ode_rollout", "rollout_operands", "sde_rollout"]
