"""Values of a velocity field along trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor
from trqam_fast.kernels.dispatch import choose_backend
from trqam_fast.kernels.fields import Velocity, check_velocity
from trqam_fast.kernels.velocity_along import ops, reference


@torch.no_grad()
def velocity_along(
    velocity: Velocity,
    observations: Tensor,
    points: Tensor,
    *,
    backend: str = "auto",
    precision: str = "ieee",
) -> Tensor:
    """Evaluate a field at (s, X_k, t_k) for all k in one batched pass, without gradients.

    Args:
        velocity: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        observations: `[S, B, O]`, float32 or float64.
        points: X_0..X_{K-1}, `[S, K, B, D]`; t_k = k / K.
        backend: ``auto``, ``reference``, or for packed weights ``cpp`` or ``triton``.
        precision: ``ieee``, ``tf32`` (Triton) or ``bf16`` (Triton or ``cpp``) operands.

    Returns:
        `[S, K, B, D]`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    op = "velocity_along"
    check_tensor(op, "observations", observations, (None, None, None))
    runs, batch, _ = observations.shape
    check_tensor(op, "points", points, (runs, None, batch, None))
    check_same(op, observations=observations, points=points)
    check_velocity(op, "velocity", velocity, observations, points.shape[-1])
    chosen = choose_backend(
        op, backend, points.device, dtype=points.dtype, precision=precision, networks=[velocity]
    )
    if chosen == "reference":
        return reference.velocity_along(velocity, observations, points)
    return ops.velocity_along(velocity, observations, points, chosen, precision)


__all__ = ["velocity_along"]
