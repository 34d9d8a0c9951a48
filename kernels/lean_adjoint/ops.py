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
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import refuse_gradient
from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.field import first_layer, static_share
from trqam_fast.kernels.mlp.ops import Regroup, backward, forward, make_tape
from trqam_fast.kernels.schedule import flow_times


class _LeanAdjoint(torch.autograd.Function):
    """The sweep; the adjoints are regression targets, so nothing flows back through it."""

    @staticmethod
    def forward(ctx, group, observations, trajectory, terminal_adjoint, *tensors):
        weights = group(tensors)
        runs, points, batch, dim = trajectory.shape
        flow_steps = points - 1
        h = 1.0 / flow_steps
        times = flow_times(flow_steps, dtype=trajectory.dtype, device=trajectory.device) + h
        action_kernel = first_layer(weights, observations.shape[-1]).action
        first = static_share(weights, observations, times).flatten(1, 2)
        first.baddbmm_(trajectory[:, :-1].reshape(runs, -1, dim), action_kernel)
        tape = make_tape(weights, first)
        forward(weights, tape, 0, flow_steps * batch)

        adjoints = trajectory.new_empty(runs, flow_steps, batch, dim)
        pull = action_kernel.transpose(1, 2)
        adjoint = terminal_adjoint
        for k in range(flow_steps - 1, -1, -1):
            grad = backward(weights, tape, adjoint, k * batch, (k + 1) * batch)
            torch.baddbmm(adjoint, grad, pull, beta=k / (k + 1), alpha=2.0 * h, out=adjoints[:, k])
            adjoint = adjoints[:, k]
        return adjoints

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        refuse_gradient(
            "lean_adjoint",
            observations=ctx.needs_input_grad[1],
            trajectory=ctx.needs_input_grad[2],
            terminal_adjoint=ctx.needs_input_grad[3],
            base_velocity=any(ctx.needs_input_grad[4:]),
        )


def lean_adjoint(
    base_velocity: MLPWeights, observations: Tensor, trajectory: Tensor, terminal_adjoint: Tensor
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    return _LeanAdjoint.apply(
        Regroup(base_velocity),
        observations,
        trajectory,
        terminal_adjoint,
        *base_velocity.tensors,
    )
