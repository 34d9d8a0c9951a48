r"""The compiled sweep, registered with torch.library.

With h / (t_k + h) = 1 / (k + 1) and J_k = dv_base/dX at (X_k, t_k + h):

    a_k = a_{k+1} + h (2 J_k - I / (t_k + h))^T a_{k+1} = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

In C++ a step's forward pass and its vector-Jacobian product run one after the other on the same
rows, so that its activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import DEPENDENT, TRITON
from trqam_fast.kernels.mlp.cpp import describe
from trqam_fast.kernels.mlp.ops import described, triton_passes
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


def _tape(base, observations, trajectory, backend, precision):
    if backend not in TRITON:
        return []
    from trqam_fast.kernels.mlp.triton_inputs import Inputs

    weights = MLPWeights.from_tensors(base)
    inputs = Inputs(observations.contiguous(), trajectory.contiguous(), trajectory.shape[1] - 1, 1)
    _, kept = triton_passes().forward_pass(
        weights, inputs, precision, train=True, outputs=False, dependent=backend == DEPENDENT
    )
    return kept


def _tape_fake(base, observations, trajectory, backend, precision):
    if backend not in TRITON:
        return []
    weights = MLPWeights.from_tensors(base)
    return _empty_tape(weights, observations, trajectory, precision, weights.kernels[0])


def _empty_tape(weights, observations, trajectory, precision, kernel):
    """Return memory for a tape, on the device of `kernel`; on ``meta`` it has shapes alone."""
    passes, (runs, points, batch, _) = triton_passes(), trajectory.shape
    config = passes.config_for(weights, observations, trajectory, precision, train=True)
    return passes.empty_kept(config, runs, (points - 1) * batch, kernel)


def _sweep(base, observations, trajectory, terminal_adjoint, tape, backend, precision):
    weights = MLPWeights.from_tensors(base)
    observations, trajectory, terminal_adjoint = (
        tensor.contiguous() for tensor in (observations, trajectory, terminal_adjoint)
    )
    if backend in TRITON:
        from trqam_fast.kernels.lean_adjoint import triton

        data = (observations, trajectory, terminal_adjoint)
        kernel = weights.kernels[0]
        meta = kernel.new_empty(kernel.shape, device="meta")
        right = _empty_tape(weights, observations, trajectory, precision, meta)
        if described(tape) != described(right):
            raise ValueError(
                f"lean_adjoint: tape is {described(tape)}, the sweep needs {described(right)}; "
                "pass that of a rollout of the same chain (BasePass.tape), or None"
            )
        dependent = backend == DEPENDENT
        return triton.lean_adjoint(weights, *data, tape, precision, dependent=dependent)
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


def _sweep_fake(base, observations, trajectory, terminal_adjoint, tape, backend, precision):
    runs, points, batch, dim = trajectory.shape
    return trajectory.new_empty(runs, points - 1, batch, dim)


register(
    "sweep_tape(Tensor[] base, Tensor observations, Tensor trajectory, str backend, "
    "str precision) -> Tensor[]",
    _tape,
    _tape_fake,
)
register(
    "lean_adjoint(Tensor[] base, Tensor observations, Tensor trajectory, "
    "Tensor terminal_adjoint, Tensor[] tape, str backend, str precision) -> Tensor",
    _sweep,
    _sweep_fake,
)


def sweep_tape(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    backend: str,
    precision: str,
) -> list[Tensor]:
    """Return what a sweep needs before its terminal adjoint: with Triton a pass's tape."""
    return torch.ops.trqam_fast.sweep_tape(
        list(base_velocity.tensors), observations, trajectory, backend, precision
    )


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    tape: Sequence[Tensor],
    backend: str,
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    return torch.ops.trqam_fast.lean_adjoint(
        list(base_velocity.tensors),
        observations,
        trajectory,
        terminal_adjoint,
        list(tape),
        backend,
        precision,
    )
