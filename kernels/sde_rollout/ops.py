"""Rollouts of the MLP field with stored activations, on ATen's kernels.

The K steps write into one tape of K * B rows, so the gradient of the velocities with respect to
the field's weights is one batched backward pass and needs no second forward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import refuse_gradient
from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.field import first_layer, static_share
from trqam_fast.kernels.mlp.ops import (
    Regroup,
    backward,
    forward,
    make_tape,
    unpack_tape,
)
from trqam_fast.kernels.schedule import diffusion_squared, flow_times


class _SDERollout(torch.autograd.Function):
    """Trajectory (constant) and velocities (differentiable in the field's weights)."""

    @staticmethod
    def forward(ctx, group, base, observations, x0, noise, *tensors):
        weights = group(tensors)
        runs, batch, dim = x0.shape
        flow_steps = noise.shape[1] + 1
        h = 1.0 / flow_steps
        diffusion = (h * diffusion_squared(flow_steps)).sqrt().tolist()
        times = flow_times(flow_steps, dtype=x0.dtype, device=x0.device)
        action_kernel = first_layer(weights, observations.shape[-1]).action

        tape = make_tape(weights, static_share(weights, observations, times).flatten(1, 2))
        trajectory = x0.new_empty(runs, flow_steps + 1, batch, dim)
        velocities = x0.new_empty(runs, flow_steps, batch, dim)
        trajectory[:, 0] = x0
        for k in range(flow_steps):
            x, begin, end = trajectory[:, k], k * batch, (k + 1) * batch
            tape.pre[0][:, begin:end].baddbmm_(x, action_kernel)
            v = forward(weights, tape, begin, end)
            velocities[:, k] = v
            if k < flow_steps - 1:
                # x + h (2 v - x / (t + h)) + sqrt(h) g eps, and h / (t_k + h) = 1 / (k + 1)
                step = torch.add(x * (1.0 - 1.0 / (k + 1)), v, alpha=2.0 * h)
                torch.add(step, noise[:, k], alpha=diffusion[k], out=trajectory[:, k + 1])
        ode_step(base, observations, x, times[-1:], h, out=trajectory[:, flow_steps])

        ctx.group = group
        ctx.mark_non_differentiable(trajectory)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            observations, trajectory, times, *tensors, *tape.pre, *tape.out, *tape.mean, *tape.rstd
        )
        return trajectory, velocities

    @staticmethod
    @once_differentiable
    def backward(ctx, _, cotangent):
        refuse_gradient(
            "sde_rollout",
            observations=ctx.needs_input_grad[2],
            x0=ctx.needs_input_grad[3],
            noise=ctx.needs_input_grad[4],
        )
        count = len(ctx.needs_input_grad) - 5
        observations, trajectory, times, *saved = ctx.saved_tensors
        weights = ctx.group(saved[:count])
        tape = unpack_tape(weights, saved[count:])
        runs, flow_steps, batch, dim = cotangent.shape
        rows = flow_steps * batch
        gradients = [None] * count
        grad = backward(weights, tape, cotangent.reshape(runs, rows, dim), 0, rows, gradients)
        inputs = torch.cat(
            [
                observations.unsqueeze(1).expand(-1, flow_steps, -1, -1),
                trajectory[:, :-1],
                times.view(1, -1, 1, 1).expand(runs, -1, batch, 1),
            ],
            dim=-1,
        ).flatten(1, 2)
        gradients[0] = torch.bmm(inputs.transpose(1, 2), grad)
        return None, None, None, None, None, *gradients


def ode_step(
    weights: MLPWeights, observations: Tensor, x: Tensor, time: Tensor, h: float, out: Tensor
) -> None:
    """Write `x + h v(s, x, time)` to `out`, for one time `[1]`."""
    tape = make_tape(weights, static_share(weights, observations, time).squeeze(1))
    tape.pre[0].baddbmm_(x, first_layer(weights, observations.shape[-1]).action)
    torch.add(x, forward(weights, tape, 0, x.shape[1]), alpha=h, out=out)


def sde_rollout(
    velocity: MLPWeights,
    base_velocity: MLPWeights,
    observations: Tensor,
    x0: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the trajectory and the velocities along it; see the package's `sde_rollout`."""
    return _SDERollout.apply(
        Regroup(velocity), base_velocity.detach(), observations, x0, noise, *velocity.tensors
    )


@torch.no_grad()
def ode_rollout(velocity: MLPWeights, observations: Tensor, x0: Tensor, flow_steps: int) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    times = flow_times(flow_steps, dtype=x0.dtype, device=x0.device)
    action_kernel = first_layer(velocity, observations.shape[-1]).action
    shares = static_share(velocity, observations, times)
    tape = make_tape(velocity, torch.empty_like(shares[:, 0]))
    x = x0
    for k in range(flow_steps):
        torch.baddbmm(shares[:, k], x, action_kernel, out=tape.pre[0])
        x = torch.add(x, forward(velocity, tape, 0, x.shape[1]), alpha=1.0 / flow_steps)
    return x
