r"""The compiled sweep, registered with torch.library.

With h / (t_k + h) = 1 / (k + 1) and J_k = dv_base/dX at (X_k, t_k + h):

    a_k = a_{k+1} + h (2 J_k - I / (t_k + h))^T a_{k+1} = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

In C++ a step's forward pass and its vector-Jacobian product run one after the other on the same
rows, so that its activations stay in the cache.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import TRITON
from trqam_fast.kernels.mlp.cpp import describe
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.registration import register


class LeanAdjoint(NamedTuple):
    """csrc/mlp.h: LeanAdjoint."""

    base: list[int]
    batch: int
    observation: int
    action: int
    steps: int
    observations: int
    trajectory: int
    terminal: int
    adjoints: int


def _sweep(base, observations, trajectory, terminal_adjoint, backend, precision):
    weights = MLPWeights.from_tensors(base)
    observations, trajectory, terminal_adjoint = (
        tensor.contiguous() for tensor in (observations, trajectory, terminal_adjoint)
    )
    if backend in TRITON:
        module = importlib.import_module(f"trqam_fast.kernels.lean_adjoint.{backend}")
        return module.lean_adjoint(weights, observations, trajectory, terminal_adjoint, precision)
    runs, points, batch, dim = trajectory.shape
    adjoints = trajectory.new_empty(runs, points - 1, batch, dim)
    numbers, _alive = describe(weights)
    fields = LeanAdjoint(
        base=numbers,
        batch=batch,
        observation=observations.shape[-1],
        action=dim,
        steps=points - 1,
        observations=observations.data_ptr(),
        trajectory=trajectory.data_ptr(),
        terminal=terminal_adjoint.data_ptr(),
        adjoints=adjoints.data_ptr(),
    )
    call("lean_adjoint", fields, trajectory, precision)
    return adjoints


def _sweep_fake(base, observations, trajectory, terminal_adjoint, backend, precision):
    runs, points, batch, dim = trajectory.shape
    return trajectory.new_empty(runs, points - 1, batch, dim)


register(
    "lean_adjoint(Tensor[] base, Tensor observations, Tensor trajectory, "
    "Tensor terminal_adjoint, str backend, str precision) -> Tensor",
    _sweep,
    _sweep_fake,
)


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    backend: str,
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    return torch.ops.trqam_fast.lean_adjoint(
        list(base_velocity.tensors),
        observations,
        trajectory,
        terminal_adjoint,
        backend,
        precision,
    )
