"""The compiled rollout, registered with torch.library and wrapped for autograd.

The K steps write into one tape of K * B rows, so the gradient of the velocities with respect to
the field's weights is one batched backward pass and needs no second forward. In Triton the tape has
further rows: with the base field at all states, K * B of those that a sweep walks back along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.checks import refuse_gradient
from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import DEPENDENT, TRITON
from trqam_fast.kernels.mlp.cpp import describe, tape_elements
from trqam_fast.kernels.mlp.ops import Pass, described, pull_back
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.registration import register
from trqam_fast.kernels.sde_rollout.inputs import RolloutInputs


class RolloutCall(NamedTuple):
    """csrc/mlp.h: Rollout."""

    velocity: list[int]
    base: list[int]
    batch: int
    observation: int
    action: int
    steps: int
    ode_batch: int
    observations: int
    x0: int
    noise: int
    ode_observations: int
    ode_x0: int
    trajectory: int
    velocities: int
    ode_x: int
    tape: int | None


def _empty(inputs: RolloutInputs, with_base: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    runs, batch, dim = inputs.x0.shape
    new, steps = inputs.x0.new_empty, inputs.flow_steps
    ode_x = new(runs, inputs.ode_x0.shape[1], dim)
    of_base = new(runs, steps if with_base else 0, batch, dim)
    return new(runs, steps + 1, batch, dim), new(runs, steps, batch, dim), of_base, ode_x


def _operands(velocity, base, backend, precision):
    if backend not in TRITON:
        return []
    from trqam_fast.kernels.sde_rollout import triton

    fields = MLPWeights.from_tensors(velocity), MLPWeights.from_tensors(base)
    return triton.rollout_operands(*fields, precision, dependent=backend == DEPENDENT)


def _operands_fake(velocity, base, backend, precision):
    if backend not in TRITON:
        return []
    return _empty_operands(MLPWeights.from_tensors(velocity), precision, velocity[0])


def _empty_operands(velocity, precision, kernel):
    """Return memory for operands, on the device of `kernel`; on ``meta`` it has shapes alone."""
    from trqam_fast.kernels.sde_rollout import triton

    return triton.empty_rollout_operands(triton.operands_config(velocity, precision), kernel)


def _check_operands(field, operands, precision):
    """Raise ValueError unless operands, if there are any, are those of rollouts of such fields."""
    if not operands:
        return
    kernel = field.kernels[0]
    meta = kernel.new_empty(kernel.shape, device="meta")
    right = _empty_operands(field, precision, meta)
    if described(operands) != described(right):
        raise ValueError(
            f"sde_rollout: operands are {described(operands)}, it needs {described(right)}; pass "
            "what rollout_operands returned for the same fields, or None"
        )


def _rollout(
    velocity, base, observations, x0, noise, ode_observations, ode_x0, backend, precision, train,
    with_base, operands,
):  # fmt: skip
    inputs = RolloutInputs(observations, x0, noise, ode_observations, ode_x0)
    velocity, base = MLPWeights.from_tensors(velocity), MLPWeights.from_tensors(base)
    if backend in TRITON:
        from trqam_fast.kernels.sde_rollout import triton

        _check_operands(velocity, operands, precision)
        return triton.sde_rollout(
            velocity, base, inputs, precision, train=train,
            with_base=with_base, dependent=backend == DEPENDENT, operands=operands,
        )  # fmt: skip
    inputs = RolloutInputs(*(tensor.contiguous() for tensor in inputs))
    trajectory, velocities, no_velocities, ode_x = _empty(inputs, with_base=False)
    rows = velocities.shape[1] * velocities.shape[2]
    tape = [velocities.new_empty(tape_elements(velocity, rows))] if train else []
    (numbers, _alive), (base_numbers, _base_alive) = describe(velocity), describe(base)
    fields = RolloutCall(
        velocity=numbers,
        base=base_numbers,
        batch=inputs.x0.shape[1],
        observation=inputs.observations.shape[-1],
        action=inputs.x0.shape[-1],
        steps=inputs.flow_steps,
        ode_batch=inputs.ode_x0.shape[1],
        observations=inputs.observations.data_ptr(),
        x0=inputs.x0.data_ptr(),
        noise=inputs.noise.data_ptr(),
        ode_observations=inputs.ode_observations.data_ptr(),
        ode_x0=inputs.ode_x0.data_ptr(),
        trajectory=trajectory.data_ptr(),
        velocities=velocities.data_ptr(),
        ode_x=ode_x.data_ptr(),
        tape=tape[0].data_ptr() if train else None,
    )
    call("sde_rollout", fields, inputs.x0, precision)
    return trajectory, velocities, no_velocities, ode_x, tape


def _rollout_fake(
    velocity, base, observations, x0, noise, ode_observations, ode_x0, backend, precision, train,
    with_base, operands,
):  # fmt: skip
    inputs = RolloutInputs(observations, x0, noise, ode_observations, ode_x0)
    velocity = MLPWeights.from_tensors(velocity)
    *results, ode_x = _empty(inputs, with_base)
    _, steps, batch, _ = results[1].shape
    if backend in TRITON:
        from trqam_fast.kernels.sde_rollout.triton import rollout_kept

        kept = rollout_kept(
            velocity, inputs, precision, train, with_base, operands=len(operands) == 0
        )
        # The last of two that take turns, so that a compiler knows how it is aligned.
        return *results, ode_x.new_empty(2, *ode_x.shape)[steps % 2], kept
    size = tape_elements(velocity, steps * batch)
    return *results, ode_x, [inputs.x0.new_empty(size)] if train else []


register(
    "rollout_operands(Tensor[] velocity, Tensor[] base, str backend, str precision) -> Tensor[]",
    _operands,
    _operands_fake,
)
register(
    "sde_rollout(Tensor[] velocity, Tensor[] base, Tensor observations, Tensor x0, Tensor noise, "
    "Tensor ode_observations, Tensor ode_x0, str backend, str precision, bool train, "
    "bool with_base, Tensor[] operands) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    _rollout,
    _rollout_fake,
)


class _Rollout(torch.autograd.Function):
    """Velocities (differentiable in the weights), and what is constant."""

    @staticmethod
    def forward(ctx, how, base, operands, with_base, *tensors):
        inputs, weights = tensors[:5], tensors[5:]
        trajectory, velocities, of_base, ode_x, tape = torch.ops.trqam_fast.sde_rollout(
            list(weights), base, *inputs, how.backend, how.precision, how.train, with_base, operands
        )
        constants = [trajectory, ode_x]
        if with_base:
            from trqam_fast.kernels.sde_rollout import triton

            constants += [of_base, *triton.sweep_part(tape, *velocities.shape[1:3])]
        if operands:
            tape = [*tape[:-1], operands[-2]]
        ctx.how, ctx.kept = how, len(tape)
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], trajectory, *tape, *weights)
        return velocities, *constants

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent, *_):
        needed = dict(zip(RolloutInputs._fields, ctx.needs_input_grad[4:9], strict=True))
        refuse_gradient("sde_rollout", **needed)
        observations, trajectory, *saved = ctx.saved_tensors
        no_inputs, gradients = pull_back(
            ctx.how,
            MLPWeights.from_tensors(saved[ctx.kept :]),
            observations,
            trajectory,
            saved[: ctx.kept],
            cotangent.flatten(1, 2),
            want_inputs=False,
            want_weights=True,
        )
        return *[None] * 9, *gradients


def sde_rollout(
    velocity: MLPWeights,
    base_velocity: MLPWeights,
    inputs: RolloutInputs,
    with_base: bool,
    operands: Sequence[Tensor],
    backend: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return trajectory, velocities, X_K of the ODE, and the base field's velocities and tape.

    The last is empty where the rollout does not find it.
    """
    train = torch.is_grad_enabled() and any(t.requires_grad for t in velocity.tensors)
    with_base = with_base and train and backend in TRITON
    if with_base and not operands:
        operands = rollout_operands(velocity, base_velocity, backend, precision)
    how = Pass(backend, precision, train, velocity.memory)
    base = list(base_velocity.detach().tensors)
    velocities, trajectory, ode_x, *of_base = _Rollout.apply(
        how, base, list(operands), with_base, *inputs, *velocity.tensors
    )
    return trajectory, velocities, ode_x, [*of_base, operands[-1]] if with_base else []


@torch.no_grad()
def rollout_operands(
    velocity: MLPWeights, base_velocity: MLPWeights, backend: str, precision: str
) -> list[Tensor]:
    """Return what a rollout reads of its fields; see the package's `rollout_operands`."""
    return torch.ops.trqam_fast.rollout_operands(
        list(velocity.tensors), list(base_velocity.tensors), backend, precision
    )


@torch.no_grad()
def ode_rollout(
    velocity: MLPWeights,
    observations: Tensor,
    x0: Tensor,
    flow_steps: int,
    backend: str,
    precision: str,
) -> Tensor:
    """Return X_K of the noise-free flow; see the package's `ode_rollout`."""
    weights, no_rows = list(velocity.tensors), x0[:, :0]
    noise = no_rows.unsqueeze(1).expand(-1, flow_steps - 1, -1, -1)
    inputs = RolloutInputs(observations[:, :0], no_rows, noise, observations, x0)
    return torch.ops.trqam_fast.sde_rollout(
        weights, weights, *inputs, backend, precision, False, False, []
    )[3]
