"""What a rollout and a sweep accept as a velocity field, and its values along trajectories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import (
    check_same,
    check_tensor,
    choose_backend,
    triton_problem,
)
from trqam_fast.kernels.mlp import MLPWeights, ops, size_problem
from trqam_fast.kernels.mlp.cpp import compiled_problem
from trqam_fast.kernels.mlp.reference import mlp as reference_mlp
from trqam_fast.kernels.mlp.triton_ops import forward_along
from trqam_fast.kernels.noise_schedule import flow_times

VelocityFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`v(observations, x, t)` with `[S, N, O]`, `[S, N, D]`, `[S, N, 1]` to `[S, N, D]`."""

Velocity = MLPWeights | VelocityFunction
"""The project's MLP on `[observations, x, t]` as packed weights, or any callable."""


def as_function(velocity: Velocity) -> VelocityFunction:
    """Return `velocity` as a callable; packed weights run in plain PyTorch."""
    if not isinstance(velocity, MLPWeights):
        return velocity

    def field(observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return reference_mlp(velocity, torch.cat([observations, x, t], dim=-1))

    return field


def callable_problem(*fields: Velocity) -> str | None:
    """Return why the hand-derived passes cannot run `fields`, or None if they can."""
    if all(isinstance(field, MLPWeights) for field in fields):
        return None
    return "it needs the field as MLPWeights; a callable runs with 'reference'"


def passes_problem(like: Tensor, precision: str, *fields: Velocity) -> str | None:
    """Return why the compiled passes cannot run `fields` on such tensors, or None if they can."""
    problem = callable_problem(*fields)
    return problem or compiled_problem(like.device, like.dtype, precision, *fields)


def fields_problem(observations: Tensor, *fields: Velocity) -> str | None:
    """Return why the Triton kernels cannot run `fields`, or None if they can."""
    problem = callable_problem(*fields) or triton_problem(observations.device, observations.dtype)
    if problem is None:
        problem = next(filter(None, map(size_problem, fields)), None)
    if problem is None and len({tuple(t.shape for t in field.tensors) for field in fields}) > 1:
        problem = "its kernels need fields of one architecture"
    return problem


def check_velocity(op: str, name: str, velocity: Velocity, observations: Tensor, dim: int) -> None:
    """Raise unless `velocity` is callable, or an MLP from `[O + dim + 1]` to `[dim]`."""
    if not isinstance(velocity, MLPWeights):
        if not callable(velocity):
            raise TypeError(
                f"{op}: {name} is a {type(velocity).__name__}; pass MLPWeights or a callable "
                "v(observations, x, t)"
            )
        return
    velocity.check(op, name)
    runs, _, obs_dim = observations.shape
    if tuple(velocity.lead) != (runs,):
        raise ValueError(
            f"{op}: {name} has leading axes {list(velocity.lead)}; expected [{runs}], one set of "
            "weights for each run of observations"
        )
    check_tensor(op, f"{name}.kernels[0]", velocity.kernels[0], (runs, obs_dim + dim + 1, None))
    check_tensor(op, f"{name}.kernels[-1]", velocity.kernels[-1], (runs, None, dim))
    check_same(op, observations=observations, **{name: velocity.kernels[0]})


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
    dim, flow_steps = points.shape[-1], points.shape[1]
    check_velocity(op, "velocity", velocity, observations, dim)
    chosen = choose_backend(
        op, backend, observations.device, cpp=passes_problem(points, precision, velocity),
        triton=fields_problem(observations, velocity), precision=precision,
    )  # fmt: skip
    match chosen:
        case "triton":
            result = forward_along(velocity, observations, points, precision)
        case "reference":
            times = flow_times(flow_steps, dtype=points.dtype, device=points.device)
            rows = observations.unsqueeze(1).expand(-1, flow_steps, -1, -1).flatten(1, 2)
            time = times.view(1, -1, 1, 1).expand(runs, -1, batch, 1).flatten(1, 2)
            result = as_function(velocity)(rows, points.flatten(1, 2), time)
        case _:
            result = ops.forward_along(velocity, observations, points, precision)
    return result.view(runs, flow_steps, batch, dim)
