"""Backward sweep of the lean adjoint through the base field."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor, refuse_gradient
from trqam_fast.kernels.dispatch import choose_backend
from trqam_fast.kernels.fields import Velocity, check_velocity
from trqam_fast.kernels.lean_adjoint import ops, reference


def lean_adjoint(
    base_velocity: Velocity,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    *,
    backend: str = "auto",
    precision: str = "ieee",
) -> Tensor:
    """Carry the critic's action gradient back along sampled chains.

    For k = K-1..0, with h = 1/K and the base field at time t_k + h::

        a_k = a_{k+1} + h (d/dX [2 v_base(s, X_k, t_k + h) - X_k / (t_k + h)])^T a_{k+1}

    Source: TRQAM section "Lean adjoint sweep" (docs/algorithm.md).

    Args:
        base_velocity: `MLPWeights` on `[s, x, t]`, or a callable v(s, x, t) that `torch.func.vjp`
            can differentiate and that treats its B rows independently.
        observations: `[S, B, O]`, float32 or float64.
        trajectory: X_0..X_K, `[S, K + 1, B, D]`; X_K itself is not used.
        terminal_adjoint: a_K, `[S, B, D]`.
        backend: ``auto``, ``reference``, or for packed weights ``cpp`` or ``triton``.
        precision: ``ieee``, ``tf32`` (Triton) or ``bf16`` (Triton or ``cpp``) operands.

    Returns:
        a_0..a_{K-1}, `[S, K, B, D]`: regression targets, constants to autograd. The weights of
        the base field, or whatever a callable depends on, get no gradient from here.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
        RuntimeError: `observations`, `trajectory` or `terminal_adjoint` needs a gradient.
    """
    op = "lean_adjoint"
    check_tensor(op, "observations", observations, (None, None, None))
    runs, batch, _ = observations.shape
    check_tensor(op, "terminal_adjoint", terminal_adjoint, (runs, batch, None))
    dim = terminal_adjoint.shape[-1]
    check_tensor(op, "trajectory", trajectory, (runs, None, batch, dim))
    if trajectory.shape[1] < 2:
        raise ValueError(f"{op}: trajectory has {trajectory.shape[1]} points; K + 1 must be >= 2")
    check_same(
        op, observations=observations, trajectory=trajectory, terminal_adjoint=terminal_adjoint
    )
    check_velocity(op, "base_velocity", base_velocity, observations, dim)
    refuse_gradient(
        op,
        observations=observations.requires_grad,
        trajectory=trajectory.requires_grad,
        terminal_adjoint=terminal_adjoint.requires_grad,
    )
    chosen = choose_backend(
        op,
        backend,
        trajectory.device,
        dtype=trajectory.dtype,
        precision=precision,
        networks=[base_velocity],
    )
    data = (base_velocity, observations, trajectory, terminal_adjoint)
    with torch.no_grad():
        if chosen == "reference":
            return reference.lean_adjoint(*data)
        return ops.lean_adjoint(*data, chosen, precision)


__all__ = ["lean_adjoint"]
