"""The compiled rollout, registered with torch.library and wrapped for autograd.

The K steps write into one tape of K * B rows, so the gradient of the velocities with respect to
the field's weights is one batched backward pass and needs no second forward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import refuse_gradient
from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.cpp import call, describe, tape_elements
from trqam_fast.kernels.mlp.ops import new_gradients
from trqam_fast.kernels.mlp.weights import group
from trqam_fast.kernels.noise_schedule import flow_times

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "sde_rollout_cpp(Tensor[] velocity, bool norm, Tensor[] base, bool base_norm, "
    "Tensor observations, Tensor x0, Tensor noise, Tensor ode_observations, Tensor ode_x0, "
    "int flow_steps, str precision, bool train) -> (Tensor, Tensor, Tensor, Tensor)"
)


def _empty(
    velocity: MLPWeights, x0: Tensor, ode_x0: Tensor, flow_steps: int, train: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    runs, batch, dim = x0.shape
    return (
        x0.new_empty(runs, flow_steps + 1, batch, dim),
        x0.new_empty(runs, flow_steps, batch, dim),
        x0.new_empty(runs, ode_x0.shape[1], dim),
        x0.new_empty(tape_elements(velocity, flow_steps * batch) if train else 0),
    )


def _rollout(
    velocity, norm, base, base_norm, observations, x0, noise, ode_observations, ode_x0, flow_steps,
    precision, train,
):  # fmt: skip
    observations, x0, noise, ode_observations, ode_x0 = (
        tensor.contiguous() for tensor in (observations, x0, noise, ode_observations, ode_x0)
    )
    velocity = group(velocity, norm)
    trajectory, velocities, ode_x, tape = _empty(velocity, x0, ode_x0, flow_steps, train)
    (numbers, _alive), (base_numbers, _base) = describe(velocity), describe(group(base, base_norm))
    call(
        "sde_rollout", x0, precision, numbers, base_numbers, x0.shape[1], ode_x0.shape[1],
        observations.shape[-1], x0.shape[-1], flow_steps, observations.data_ptr(), x0.data_ptr(),
        noise.data_ptr(), ode_observations.data_ptr(), ode_x0.data_ptr(), trajectory.data_ptr(),
        velocities.data_ptr(), ode_x.data_ptr(), tape.data_ptr() if train else 0,
    )  # fmt: skip
    return trajectory, velocities, ode_x, tape


_library.impl("sde_rollout_cpp", _rollout, "CPU")


@torch.library.register_fake("trqam_fast::sde_rollout_cpp", lib=_library)
def _(
    velocity, norm, base, base_norm, observations, x0, noise, ode_observations, ode_x0, flow_steps,
    precision, train,
):  # fmt: skip
    return _empty(group(velocity, norm), x0, ode_x0, flow_steps, train)


class _CompiledRollout(torch.autograd.Function):
    """Trajectory and X_K of the ODE (constants), velocities (differentiable in the weights)."""

    @staticmethod
    def forward(
        ctx, memory, norm, precision, train, base, base_norm, observations, x0, noise,
        ode_observations, ode_x0, *tensors,
    ):  # fmt: skip
        trajectory, velocities, ode_x, tape = torch.ops.trqam_fast.sde_rollout_cpp(
            list(tensors), norm, list(base), base_norm, observations, x0, noise, ode_observations,
            ode_x0, noise.shape[1] + 1, precision, train,
        )  # fmt: skip
        ctx.norm, ctx.precision, ctx.memory = norm, precision, memory
        ctx.mark_non_differentiable(trajectory, ode_x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(observations, trajectory, tape, *tensors)
        return trajectory, velocities, ode_x

    @staticmethod
    @once_differentiable
    def backward(ctx, _, cotangent, __):
        names = ("observations", "x0", "noise")
        refuse_gradient("sde_rollout", **dict(zip(names, ctx.needs_input_grad[6:9], strict=True)))
        observations, trajectory, tape, *tensors = ctx.saved_tensors
        runs, flow_steps, batch, _ = cotangent.shape
        times = flow_times(flow_steps, dtype=cotangent.dtype, device=cotangent.device)
        inputs = torch.cat(
            [
                observations.unsqueeze(1).expand(-1, flow_steps, -1, -1),
                trajectory[:, :-1],
                times.view(1, -1, 1, 1).expand(runs, -1, batch, 1),
            ],
            dim=-1,
        ).flatten(1, 2)
        gradients = new_gradients(ctx.memory, tensors)
        torch.ops.trqam_fast.mlp_cpp_backward(
            tensors, ctx.norm, inputs, tape, cotangent.flatten(1, 2), ctx.precision, False,
            gradients,
        )  # fmt: skip
        return *[None] * 11, *gradients


def sde_rollout(
    velocity: MLPWeights,
    base_velocity: MLPWeights,
    observations: Tensor,
    x0: Tensor,
    noise: Tensor,
    ode_observations: Tensor | None,
    ode_x0: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return trajectory, velocities and X_K of the ODE; see the package's `sde_rollout`."""
    train = torch.is_grad_enabled() and any(t.requires_grad for t in velocity.tensors)
    if ode_observations is None or ode_x0 is None:
        ode_observations, ode_x0 = observations[:, :0], x0[:, :0]
    return _CompiledRollout.apply(
        velocity.memory, velocity.layer_norm, precision, train,
        base_velocity.detach().tensors, base_velocity.layer_norm, observations, x0, noise,
        ode_observations.detach(), ode_x0.detach(), *velocity.tensors,
    )  # fmt: skip


@torch.no_grad()
def ode_rollout(
    velocity: MLPWeights, observations: Tensor, x0: Tensor, flow_steps: int, precision: str
) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    norm, tensors, no_rows = velocity.layer_norm, list(velocity.tensors), x0[:, :0]
    return torch.ops.trqam_fast.sde_rollout_cpp(
        tensors, norm, tensors, norm, observations[:, :0], no_rows, no_rows, observations, x0,
        flow_steps, precision, False,
    )[2]  # fmt: skip
