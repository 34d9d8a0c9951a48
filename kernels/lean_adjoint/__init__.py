"""Backward sweep of the lean adjoint through the base field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor, refuse_gradient
from trqam_fast.kernels.dispatch import TRITON, Backend, Precision, choose_backend
from trqam_fast.kernels.fields import (
    Context,
    Velocity,
    check_observations,
    check_velocity,
    tensors_of,
)
from trqam_fast.kernels.lean_adjoint import ops, reference
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.noise_schedule import NoiseSchedule, is_own, sde_schedule


def lean_adjoint(
    base_velocity: Velocity,
    observations: Tensor | Context,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    *,
    schedule: NoiseSchedule | None = None,
    tape: Sequence[Tensor] | None = None,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Carry the critic's action gradient back along sampled chains.

    For k = K-1..0, with h = 1/K and the base field at time t_k + h::

        a_k = a_{k+1} + h (d/dX [2 v_base(s, X_k, t_k + h) - X_k / (t_k + h)])^T a_{k+1}

    With a schedule, h is h_k, and t_k + h under the fraction is c_k (`NoiseSchedule`). Source:
    TRQAM section "Lean adjoint sweep" (docs/algorithm.md).

    A callable is differentiated in x by `torch.autograd.grad`, so that whatever autograd runs may
    be inside: non-reentrant gradient checkpointing, an autograd.Function of any style, hooks.

    Args:
        base_velocity: `MLPWeights` on `[s, x, t]`, or a callable v(s, x, t) that treats its B rows
            independently. What it returns must depend on x in autograd's sight; one that does not,
            such as a constant, is taken for a mistake (add `0 * x` where it is none).
        observations: `[S, B, O]`, float32 or float64; for a callable also a `Context`.
        trajectory: X_0..X_K, `[S, K + 1, B, D]`; X_K itself is not used.
        terminal_adjoint: a_K, `[S, B, D]`.
        schedule: That of the chain; None for the flow's own, unless the field has a `path` other
            than the linear one. Another one runs with ``reference``.
        tape: That of `sde_rollout` along this chain with this base field, backend and precision
            (`BasePass.tape`); None computes it here.
        backend: ``auto``, ``reference``, or for packed weights ``cpp``, ``triton`` or
            ``triton_pdl``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        a_0..a_{K-1}, `[S, K, B, D]`: regression targets, constants to autograd. The weights of
        the base field, or whatever a callable depends on, get no gradient from here.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or a schedule is missing.
        BackendError: the backend asked for cannot run.
        RuntimeError: `observations`, `trajectory` or `terminal_adjoint` needs a gradient, or a
            callable gives none with respect to x: it runs under `torch.no_grad`, detaches, or uses
            reentrant gradient checkpointing.
    """
    op = "lean_adjoint"
    check_states(op, base_velocity, observations, trajectory)
    runs, _, batch, dim = trajectory.shape
    check_tensor(op, "terminal_adjoint", terminal_adjoint, (runs, batch, dim))
    given = tensors_of(observations)
    given |= {"trajectory": trajectory, "terminal_adjoint": terminal_adjoint}
    check_same(op, **given)
    steps = trajectory.shape[1] - 1
    schedule = sde_schedule(op, schedule, steps, base_velocity=base_velocity)
    refuse_gradient(op, **{name: tensor.requires_grad for name, tensor in given.items()})
    chosen = choose_backend(
        op,
        backend,
        trajectory.device,
        dtype=trajectory.dtype,
        precision=precision,
        networks=[base_velocity],
        own_schedule=is_own(schedule),
    )
    if tape and chosen not in TRITON:
        raise ValueError(
            f"{op}: backend {chosen} does not take a tape; pass tape=None, as "
            "`Rollout.base` is None with it"
        )
    with torch.no_grad():
        if chosen == "reference":
            return reference.lean_adjoint(
                base_velocity, observations, trajectory, terminal_adjoint, schedule
            )
        # A compiled backend has taken packed weights, and they no Context.
        assert isinstance(base_velocity, MLPWeights) and isinstance(observations, Tensor)
        data = (base_velocity, observations, trajectory)
        if tape is None:
            tape = ops.sweep_tape(*data, chosen, precision)
        return ops.lean_adjoint(*data, terminal_adjoint, tape, chosen, precision)


def check_states(
    op: str, base_velocity: Velocity, observations: Tensor | Context, trajectory: Tensor
) -> None:
    """Raise unless the field fits the observations and states, of which there are two or more."""
    runs, batch = check_observations(
        op, observations, trajectory, "trajectory", base_velocity=base_velocity
    )
    check_tensor(op, "trajectory", trajectory, (runs, "K + 1", batch, "D"))
    if trajectory.shape[1] < 2:
        raise ValueError(f"{op}: trajectory has {trajectory.shape[1]} points; K + 1 must be >= 2")
    check_same(op, **tensors_of(observations), trajectory=trajectory)
    check_velocity(op, "base_velocity", base_velocity, observations, trajectory.shape[-1])


__all__ = ["lean_adjoint"]
