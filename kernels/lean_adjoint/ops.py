r"""Lean adjoint sweep of the MLP field, on ATen's kernels.

All X_k are known before the sweep, so the base field's forward at (X_k, t_k + h) is one batched
pass over K * B rows, and only the vector-Jacobian products are sequential. With
h / (t_k + h) = 1 / (k + 1) and J_k = dv_base/dX:

    a_k = a_{k+1} + h (2 J_k - I / (t_k + h))^T a_{k+1} = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

and J_k^T a = (backward pass of the tape's rows of step k) W_x^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.field import first_layer, static_share
from trqam_fast.kernels.mlp.ops import backward, forward, make_tape
from trqam_fast.kernels.schedule import flow_times


def lean_adjoint(
    base_velocity: MLPWeights, observations: Tensor, trajectory: Tensor, terminal_adjoint: Tensor
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    runs, points, batch, dim = trajectory.shape
    flow_steps = points - 1
    h = 1.0 / flow_steps
    times = flow_times(flow_steps, dtype=trajectory.dtype, device=trajectory.device) + h
    action_kernel = first_layer(base_velocity, observations.shape[-1]).action
    first = static_share(base_velocity, observations, times).flatten(1, 2)
    first.baddbmm_(trajectory[:, :-1].reshape(runs, -1, dim), action_kernel)
    tape = make_tape(base_velocity, first)
    forward(base_velocity, tape, 0, flow_steps * batch)

    adjoints = trajectory.new_empty(runs, flow_steps, batch, dim)
    pull = action_kernel.transpose(1, 2)
    adjoint = terminal_adjoint
    for k in range(flow_steps - 1, -1, -1):
        grad = backward(base_velocity, tape, adjoint, k * batch, (k + 1) * batch)
        torch.baddbmm(adjoint, grad, pull, beta=k / (k + 1), alpha=2.0 * h, out=adjoints[:, k])
        adjoint = adjoints[:, k]
    return adjoints
