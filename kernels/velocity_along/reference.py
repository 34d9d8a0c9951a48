"""A field along trajectories in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.fields import Velocity, as_function
from trqam_fast.kernels.mlp.inputs import stack_inputs


def velocity_along(velocity: Velocity, observations: Tensor, points: Tensor) -> Tensor:
    """Return v(s, X_k, t_k), `[S, K, B, D]`; see the package's `velocity_along`."""
    return as_function(velocity)(*stack_inputs(observations, points)).view(points.shape)
