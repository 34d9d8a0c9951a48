"""What a rollout and a sweep accept as a velocity field, and what they hand to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor
from trqam_fast.kernels.mlp.reference import mlp as reference_mlp
from trqam_fast.kernels.mlp.weights import MLPWeights


@dataclass(frozen=True, eq=False)
class Context:
    """What a callable field needs besides x and t, in place of observations.

    The ops read nothing of it and copy nothing of it: every evaluation is `v(value, x, t)` with the
    same object. A prefix's key-value cache is computed once per batch and used at all K steps.

    Attributes:
        value: Anything: a dictionary, a cache, masks, indices.
    """

    value: Any


VelocityFunction = Callable[[Any, Tensor, Tensor], Tensor]
"""`v(observations, x, t)` with `[S, N, O]`, `[S, N, D]`, `[S, N, 1]` to `[S, N, D]`.

Instead of the observations it gets the value of a `Context` where the caller passes one, which it
must leave as it was; x and t are its own. A callable may say on which `AffinePath` it was trained,
as its attribute `path`.
"""

Velocity = MLPWeights | VelocityFunction
"""The project's MLP on `[observations, x, t]` as packed weights, or any callable."""


def as_function(
    velocity: Velocity, op: str = "velocity field", name: str = "v"
) -> VelocityFunction:
    """Return `velocity` as a callable; packed weights run in plain PyTorch.

    A callable gets copies of x and t, which it may change. What it returns is checked, and
    converted to the type of x: a field that computes in bfloat16, or under autocast, gives the ops
    the type they compute in.

    Args:
        velocity: The field.
        op: Named in errors.
        name: The argument's name, for errors.
    """
    if isinstance(velocity, MLPWeights):

        def packed(observations: Tensor, x: Tensor, t: Tensor) -> Tensor:
            return reference_mlp(velocity, torch.cat([observations, x, t], dim=-1))

        return packed

    def field(observations: Tensor | Context, x: Tensor, t: Tensor) -> Tensor:
        given = observations.value if isinstance(observations, Context) else observations
        # Copies, so that a field may work on them in place: x is the caller's, or a chain's state.
        found = velocity(given, x.clone(), t.clone())
        check_velocities(op, name, found, x)
        return found.to(x.dtype)

    return field


def check_velocities(op: str, name: str, found: Any, x: Tensor) -> None:
    """Raise unless what a callable field returned for `x` is a velocity of `x`.

    Raises:
        TypeError: it is no tensor, or not of a real floating type.
        ValueError: its shape or device is not that of x.
    """
    expected = f"expected {list(x.shape)}, floating point, on {x.device}"
    if not isinstance(found, Tensor):
        raise TypeError(f"{op}: {name} returned a {type(found).__name__}; {expected}")
    returned = f"{op}: {name} returned {list(found.shape)}, {found.dtype}, on {found.device}"
    if not found.is_floating_point():
        raise TypeError(f"{returned}; {expected}")
    if found.shape != x.shape or found.device != x.device:
        raise ValueError(f"{returned}; {expected}")


def scope_of(velocity: Velocity) -> AbstractContextManager:
    """Return the context in which a field is evaluated and differentiated.

    A field that is one state of a shared module, as the base of a `LowRank` is, has a method
    `scope`; gradient checkpointing calls the module again in the backward pass, in that state.
    """
    scope = getattr(velocity, "scope", None)
    return nullcontext() if scope is None else scope()


def check_observations(
    op: str, observations: Tensor | Context, like: Tensor, name: str, **fields: Velocity
) -> tuple[int, int]:
    """Return S and B of the observations, or of `like` where they are a `Context`.

    Args:
        op: Named in errors.
        observations: `[S, B, O]`, or a `Context`.
        like: `[S, ..., B, D]`: the states of the same rows.
        name: The name of `like`.
        fields: The fields that get the observations.

    Raises:
        TypeError: `observations` is neither, or is a `Context` for packed weights.
        ValueError: a shape does not fit.
    """
    if not isinstance(observations, Context):
        check_tensor(op, "observations", observations, ("S", "B", "O"))
        return observations.shape[0], observations.shape[1]
    for field, velocity in fields.items():
        if isinstance(velocity, MLPWeights):
            raise TypeError(
                f"{op}: observations is a Context, but {field} is MLPWeights; a Context is for "
                "callable fields, pass observations [S, B, O]"
            )
    if not isinstance(like, Tensor) or like.dim() < 3:
        found = list(like.shape) if isinstance(like, Tensor) else f"a {type(like).__name__}"
        raise ValueError(f"{op}: {name} is {found}; expected [S, ..., B, D]")
    return like.shape[0], like.shape[-2]


def tensors_of(observations: Tensor | Context) -> dict[str, Tensor]:
    """Return the observations by name where they are a tensor, for checks."""
    return {} if isinstance(observations, Context) else {"observations": observations}


def check_velocity(
    op: str, name: str, velocity: Velocity, observations: Tensor | Context, dim: int
) -> None:
    """Raise unless `velocity` is callable, or an MLP from `[O + dim + 1]` to `[dim]`."""
    if not isinstance(velocity, MLPWeights):
        if not callable(velocity):
            raise TypeError(
                f"{op}: {name} is a {type(velocity).__name__}; pass MLPWeights or a callable "
                "v(observations, x, t)"
            )
        return
    assert isinstance(observations, Tensor)  # as `check_observations` has found
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
