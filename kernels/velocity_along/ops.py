"""The compiled evaluation: a forward pass that keeps nothing, over the rows of all steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import DEPENDENT, TRITON
from trqam_fast.kernels.layout import dense_runs
from trqam_fast.kernels.mlp.cpp import describe
from trqam_fast.kernels.mlp.ops import triton_passes
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.registration import register


class VelocityAlong(NamedTuple):
    """csrc/mlp.h: VelocityAlong."""

    velocity: list[int]
    batch: int
    observation: int
    action: int
    steps: int
    observations: int
    points: int
    point_stride: int
    velocities: int


def _along(velocity, observations, points, backend, precision):
    weights, observations = MLPWeights.from_tensors(velocity), observations.contiguous()
    if backend in TRITON:
        from trqam_fast.kernels.mlp.triton_inputs import Inputs

        inputs, passes = Inputs(observations, points, points.shape[1]), triton_passes()
        out, _ = passes.forward_pass(
            weights, inputs, precision, train=False, dependent=backend == DEPENDENT
        )
        return out.view(points.shape)
    points = dense_runs(points)  # as those of a trajectory are
    velocities = points.new_empty(points.shape)
    _, steps, batch, dim = points.shape
    numbers, _alive = describe(weights)
    fields = VelocityAlong(
        velocity=numbers,
        batch=batch,
        observation=observations.shape[-1],
        action=dim,
        steps=steps,
        observations=observations.data_ptr(),
        points=points.data_ptr(),
        point_stride=points.stride(0),
        velocities=velocities.data_ptr(),
    )
    call("velocity_along", fields, points, precision)
    return velocities


def _along_fake(velocity, observations, points, backend, precision):
    return points.new_empty(points.shape)


register(
    "velocity_along(Tensor[] velocity, Tensor observations, Tensor points, str backend, "
    "str precision) -> Tensor",
    _along,
    _along_fake,
)


def velocity_along(
    velocity: MLPWeights,
    observations: Tensor,
    points: Tensor,
    backend: str,
    precision: str,
) -> Tensor:
    """Return v(s, X_k, t_k), `[S, K, B, D]`; see the package's `velocity_along`."""
    return torch.ops.trqam_fast.velocity_along(
        list(velocity.tensors), observations, points, backend, precision
    )
