"""The Triton rollout, registered with torch.library and wrapped for autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.dispatch import refuse_gradient
from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.triton_ops import weight_gradients
from trqam_fast.kernels.mlp.weights import group
from trqam_fast.kernels.philox import Philox

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "sde_rollout_triton(Tensor[] velocity, Tensor[] base, bool norm, Tensor observations, "
    "Tensor x0, Tensor? noise, Tensor? seed, Tensor? offset, Tensor? ode_observations, "
    "Tensor? ode_x0, int flow_steps, str precision, bool train) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _rollout(
    velocity, base, norm, observations, x0, noise, seed, offset, ode_observations, ode_x0,
    flow_steps, precision, train,
):  # fmt: skip
    from trqam_fast.kernels.sde_rollout.triton import rollout

    observations, x0 = observations.contiguous(), x0.contiguous()
    if ode_x0 is None:
        ode_observations, ode_x0 = observations[:, :0], x0[:, :0]
    trajectory, velocities, ode_x, tape = rollout(
        group(velocity, norm), group(base, norm), observations, x0,
        Philox(seed.contiguous(), offset) if noise is None else noise.contiguous(),
        ode_observations.contiguous(), ode_x0.contiguous(), flow_steps, precision, train=train,
    )  # fmt: skip
    return trajectory, velocities, ode_x, *tape[:4]


def _rollout_fake(
    velocity, base, norm, observations, x0, noise, seed, offset, ode_observations, ode_x0,
    flow_steps, precision, train,
):  # fmt: skip
    from trqam_fast.kernels.mlp.triton import empty_tape
    from trqam_fast.kernels.sde_rollout.triton import rollout_plan, tape_rows

    runs, batch, dim = x0.shape
    ode_batch = 0 if ode_x0 is None else ode_x0.shape[1]
    plan = rollout_plan(group(velocity, norm), observations, x0, precision, train)
    rows = tape_rows(batch, ode_batch, flow_steps, train)
    return (
        x0.new_empty(runs, flow_steps + 1, batch, dim),
        x0.new_empty(runs, flow_steps, batch, dim),
        x0.new_empty(runs, ode_batch, dim),
        *empty_tape(plan, runs, rows, x0)[:4],
    )


for _device in ("CPU", "CUDA"):
    _library.impl("sde_rollout_triton", _rollout, _device)
torch.library.register_fake("trqam_fast::sde_rollout_triton", _rollout_fake, lib=_library)


class _TritonRollout(torch.autograd.Function):
    """Trajectory and X_K of the ODE (constants), velocities (differentiable in the weights)."""

    @staticmethod
    def forward(
        ctx, norm, precision, train, flow_steps, base, observations, x0, noise, seed, offset,
        ode_observations, ode_x0, *tensors,
    ):  # fmt: skip
        trajectory, velocities, ode_x, *tape = torch.ops.trqam_fast.sde_rollout_triton(
            list(tensors), list(base), norm, observations, x0, noise, seed, offset,
            ode_observations, ode_x0, flow_steps, precision, train,
        )  # fmt: skip
        ctx.norm, ctx.precision = norm, precision
        ctx.mark_non_differentiable(trajectory, ode_x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(observations, trajectory, *tape, *tensors)
        return trajectory, velocities, ode_x

    @staticmethod
    @once_differentiable
    def backward(ctx, _, cotangent, __):
        names = ("observations", "x0", "noise")
        needed = dict(zip(names, ctx.needs_input_grad[5:8], strict=True))
        refuse_gradient("sde_rollout", **needed)
        observations, trajectory, *saved = ctx.saved_tensors
        tape, tensors = saved[:4], saved[4:]
        steps = cotangent.shape[1]
        _, *gradients = torch.ops.trqam_fast.mlp_triton_backward(
            tensors, ctx.norm, observations, trajectory, steps, 0, *tape,
            cotangent.flatten(1, 2), ctx.precision, False, True,
        )  # fmt: skip
        weights = group(tensors, ctx.norm)
        return *[None] * 12, *weight_gradients(weights, *gradients)


def sde_rollout(
    velocity: MLPWeights,
    base_velocity: MLPWeights,
    observations: Tensor,
    x0: Tensor,
    noise: Tensor | Philox,
    flow_steps: int,
    ode_observations: Tensor | None,
    ode_x0: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return trajectory, velocities and X_K of the ODE; see the package's `sde_rollout`."""
    train = torch.is_grad_enabled() and any(t.requires_grad for t in velocity.tensors)
    drawn = isinstance(noise, Philox)
    return _TritonRollout.apply(
        velocity.layer_norm, precision, train, flow_steps, base_velocity.detach().tensors,
        observations, x0, None if drawn else noise, noise.seed if drawn else None,
        noise.offset if drawn else None, ode_observations, ode_x0, *velocity.tensors,
    )  # fmt: skip


@torch.no_grad()
def ode_rollout(
    velocity: MLPWeights, observations: Tensor, x0: Tensor, flow_steps: int, precision: str
) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    no_rows = x0[:, :0]
    return torch.ops.trqam_fast.sde_rollout_triton(
        list(velocity.tensors), list(velocity.tensors), velocity.layer_norm,
        observations[:, :0], no_rows, no_rows, None, None, observations, x0, flow_steps,
        precision, False,
    )[2]  # fmt: skip
