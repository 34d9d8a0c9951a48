"""Values of a velocity field along trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, Precision, choose_backend
from trqam_fast.kernels.fields import (
    Context,
    Velocity,
    check_observations,
    check_velocity,
    tensors_of,
)
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.noise_schedule import NoiseSchedule, check_schedule, has_own_times
from trqam_fast.kernels.velocity_along import ops, reference


@torch.no_grad()
def velocity_along(
    velocity: Velocity,
    observations: Tensor | Context,
    points: Tensor,
    *,
    schedule: NoiseSchedule | None = None,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Evaluate a field at (s, X_k, t_k) for all k, without gradients.

    Packed weights take all K steps as rows of one pass. A callable is called K times, with B rows:
    what it gets besides them is never copied.

    Args:
        velocity: `MLPWeights` on `[s, x, t]` or a callable v(s, x, t).
        observations: `[S, B, O]`, float32 or float64; for a callable also a `Context`.
        points: X_0..X_{K-1}, `[S, K, B, D]`.
        schedule: t_k of the K steps; None for the flow's own, k / K.
        backend: ``auto``, ``reference``, or for packed weights ``cpp``, ``triton`` or
            ``triton_pdl``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        `[S, K, B, D]`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    op = "velocity_along"
    runs, batch = check_observations(op, observations, points, "points", velocity=velocity)
    check_tensor(op, "points", points, (runs, "K", batch, "D"))
    check_same(op, **tensors_of(observations), points=points)
    check_schedule(op, schedule, points.shape[1], "points")
    check_velocity(op, "velocity", velocity, observations, points.shape[-1])
    chosen = choose_backend(
        op,
        backend,
        points.device,
        dtype=points.dtype,
        precision=precision,
        networks=[velocity],
        own_schedule=has_own_times(schedule),
    )
    if chosen == "reference":
        return reference.velocity_along(velocity, observations, points, schedule)
    # A compiled backend has taken packed weights, and they no Context.
    assert isinstance(velocity, MLPWeights) and isinstance(observations, Tensor)
    return ops.velocity_along(velocity, observations, points, chosen, precision)


__all__ = ["velocity_along"]
