r"""Compiled passes of the stacked MLP, registered with torch.library and wrapped for autograd.

With pre-activations z_l, activations h_l = gelu(z_l) and layer outputs y_l (= LayerNorm(h_l) when
it is on), l = 0..L-1:

    z_{l+1} = y_l W_{l+1} + b_{l+1}                                       (forward)
    dy_l    = dz_{l+1} W_{l+1}^T                                          (input gradient)
    dh_l    = LayerNorm'(h_l)^T dy_l       dz_l = gelu'(z_l) * dh_l
    dW_{l+1} = y_l^T dz_{l+1}              db_{l+1} = sum over rows of dz_{l+1}

In C++ the forward pass keeps gelu'(z_l), which shares its exponential with gelu(z_l), and the
normalised h_l; LayerNorm's scale and shift are folded into the next layer (csrc/mlp_passes.inl).
The tape that a forward pass keeps is one tensor there; in Triton it is four, and the kernels as
16-bit operands.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.dispatch import DEPENDENT, TRITON
from trqam_fast.kernels.mlp.cpp import MLPBackward, MLPForward, describe, tape_elements
from trqam_fast.kernels.mlp.inputs import stack_inputs
from trqam_fast.kernels.mlp.weights import GradientMemory, MLPWeights
from trqam_fast.kernels.registration import register


class Pass(NamedTuple):
    """How a network is passed through.

    Attributes:
        backend: ``cpp`` or one of `TRITON`.
        precision: Operands of the products.
        train: Whether the forward pass keeps a tape.
        memory: Memory for the weights' gradients; None for new tensors.
    """

    backend: str
    precision: str
    train: bool
    memory: GradientMemory | None


def triton_passes() -> ModuleType:
    """Return the module with the Triton passes; Triton need not be installed for the others."""
    return importlib.import_module("trqam_fast.kernels.mlp.triton")


def triton_preparation() -> ModuleType:
    """Return the module that prepares weights for them."""
    return importlib.import_module("trqam_fast.kernels.mlp.triton_prepare")


def described(tensors: Sequence[Tensor]) -> str:
    """Return types and shapes of what one op prepares for another."""
    return ", ".join(f"{part.dtype} {list(part.shape)}".removeprefix("torch.") for part in tensors)


def _operands(tensors, others, first, backend, precision):
    if backend not in TRITON:
        return []
    stacks = [MLPWeights.from_tensors(each) for each in (tensors, others) if each]
    return triton_preparation().mlp_operands(
        stacks, precision, first, dependent=backend == DEPENDENT
    )


def _operands_fake(tensors, others, first, backend, precision):
    if backend not in TRITON:
        return []
    weights, preparation = MLPWeights.from_tensors(tensors), triton_preparation()
    config = preparation.operands_config(weights, precision, first)
    return preparation.empty_mlp_operands(config, weights.kernels[0], 2 if others else 1)


def operands_of(weights: MLPWeights, first: int | None, backend: str) -> list[Tensor]:
    """Return the weights' operands where the backend reads some, and they are for such inputs.

    `first` is as of `with_operands`. Without operands a pass prepares the weights itself.
    """
    fit = backend in TRITON and weights.first == first
    return list(weights.operands) if fit else []


def check_operands(operands, weights, first, precision):
    """Raise unless they have the types and shapes of those that the network's passes read."""
    preparation, kernel = triton_preparation(), weights.kernels[0]
    config = preparation.operands_config(weights, precision, first)
    right = preparation.empty_mlp_operands(config, kernel.new_empty(kernel.shape, device="meta"))
    if described(operands) != described(right):
        raise ValueError(
            f"mlp: the weights' operands are {described(operands)}, the pass needs "
            f"{described(right)}; prepare them by with_operands for its backend and precision"
        )


def _forward(tensors, inputs, x, backend, precision, train, operands):
    weights, inputs = MLPWeights.from_tensors(tensors), inputs.contiguous()
    if backend in TRITON:
        from trqam_fast.kernels.mlp.triton_inputs import Inputs

        if operands:
            check_operands(operands, weights, None if x is None else inputs.shape[-1], precision)
        return triton_passes().forward_pass(
            weights, Inputs(inputs, x), precision, train=train, dependent=backend == DEPENDENT,
            operands=operands,
        )  # fmt: skip
    rows = inputs.shape[1]
    out = inputs.new_empty(weights.lead.numel(), rows, weights.out_features)
    tape = [inputs.new_empty(tape_elements(weights, rows))] if train else []
    numbers, _alive = describe(weights)
    fields = MLPForward(
        network=numbers,
        inputs=inputs.data_ptr(),
        rows=rows,
        out=out.data_ptr(),
        tape=tape[0].data_ptr() if train else None,
    )
    call("mlp_forward", fields, inputs, precision)
    return out, tape


def _forward_fake(tensors, inputs, x, backend, precision, train, operands):
    weights, rows = MLPWeights.from_tensors(tensors), inputs.shape[1]
    out = inputs.new_empty(weights.lead.numel(), rows, weights.out_features)
    if backend in TRITON:
        passes = triton_passes()
        config = passes.config_for(weights, inputs, x, precision, train=train)
        return out, passes.empty_kept(
            config, len(out), rows, weights.kernels[0], operands=len(operands) == 0
        )
    return out, [inputs.new_empty(tape_elements(weights, rows))] if train else []


def _backward(tensors, inputs, x, tape, cotangent, backend, precision, want_inputs, gradients):
    weights, cotangent = MLPWeights.from_tensors(tensors), cotangent.contiguous()
    steps = 1 if x is None else cotangent.shape[1] // max(inputs.shape[1], 1)
    if backend in TRITON:
        from trqam_fast.kernels.mlp.triton_inputs import Inputs

        parts = Inputs(inputs.contiguous(), x, steps)
        return triton_passes().backward_pass(
            weights, parts, tape, cotangent, precision, want_inputs, gradients,
            dependent=backend == DEPENDENT,
        )  # fmt: skip
    if x is not None:
        inputs = torch.cat(stack_inputs(inputs, x[:, :steps]), dim=-1)
    inputs, (stack, rows) = inputs.contiguous(), cotangent.shape[:2]
    d_inputs = cotangent.new_empty(stack if want_inputs else 0, rows, weights.in_features)
    numbers, _alive = describe(weights)
    fields = MLPBackward(
        network=numbers,
        gradients=describe(MLPWeights.from_tensors(gradients))[0] if gradients else None,
        inputs=inputs.data_ptr(),
        cotangent=cotangent.data_ptr(),
        tape=tape[0].data_ptr(),
        rows=rows,
        want_weights=len(gradients) > 0,
        d_inputs=d_inputs.data_ptr() if want_inputs else None,
    )
    call("mlp_backward", fields, inputs, precision)
    return d_inputs


def _backward_fake(tensors, inputs, x, tape, cotangent, backend, precision, want_inputs, gradients):
    weights, (stack, rows) = MLPWeights.from_tensors(tensors), cotangent.shape[:2]
    return cotangent.new_empty(stack if want_inputs else 0, rows, weights.in_features)


register(
    "mlp_operands(Tensor[] weights, Tensor[] others, int? first, str backend, str precision) "
    "-> Tensor[]",
    _operands,
    _operands_fake,
)
register(
    "mlp_forward(Tensor[] weights, Tensor inputs, Tensor? x, str backend, str precision, "
    "bool train, Tensor[] operands) -> (Tensor, Tensor[])",
    _forward,
    _forward_fake,
)
register(
    "mlp_backward(Tensor[] weights, Tensor inputs, Tensor? x, Tensor[] tape, Tensor cotangent, "
    "str backend, str precision, bool want_inputs, Tensor(a!)[] gradients) -> Tensor",
    _backward,
    _backward_fake,
)


def pull_back(
    how: Pass,
    weights: MLPWeights,
    inputs: Tensor,
    x: Tensor | None,
    tape: Sequence[Tensor],
    cotangent: Tensor,
    *,
    want_inputs: bool,
    want_weights: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Pull a cotangent back through a pass that kept its tape.

    Args:
        how: The pass.
        weights: Its weights, G networks in all.
        inputs: Its inputs `[S, N, in]`; or observations `[S, B, O]`, with points.
        x: Points X_0.. of the rows (k, b), `[S, >= K, B, D]`, at t_k = k / K if there is a time;
            or None.
        tape: What the pass kept.
        cotangent: `[G, K * B, out]`.
        want_inputs: Whether to return gradients of the inputs, `[G, K * B, in]`, or nothing.
        want_weights: Whether to return gradients of `weights.tensors`, or nothing.
    """
    tensors, gradients = list(weights.tensors), []
    if want_weights:
        offered = how.memory.take() if how.memory is not None else None
        gradients = offered or weights.empty_gradients()
    d_inputs = torch.ops.trqam_fast.mlp_backward(
        tensors, inputs, x, tape, cotangent, how.backend, how.precision, want_inputs, gradients
    )
    return d_inputs, gradients


class _MLP(torch.autograd.Function):
    """The whole stack as one node: a tape, and one batched backward pass."""

    @staticmethod
    def forward(ctx, how, inputs, x, operands, *tensors):
        points = None if x is None else x.unsqueeze(1)
        out, tape = torch.ops.trqam_fast.mlp_forward(
            list(tensors), inputs, points, how.backend, how.precision, how.train, operands
        )
        if operands and how.train:
            tape = [*tape[:-1], operands[-1]]
        ctx.how, ctx.kept = how, len(tape)
        ctx.save_for_backward(inputs, points, *tape, *tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, cotangent):
        inputs, points, *saved = ctx.saved_tensors
        tape, tensors = saved[: ctx.kept], saved[ctx.kept :]
        want_inputs, want_weights = any(ctx.needs_input_grad[1:3]), any(ctx.needs_input_grad[4:])
        of_networks, gradients = pull_back(
            ctx.how,
            MLPWeights.from_tensors(tensors),
            inputs,
            points,
            tape,
            cotangent,
            want_inputs=want_inputs,
            want_weights=want_weights,
        )
        d_inputs = d_x = None
        if want_inputs:
            d_inputs = of_networks.unflatten(0, (inputs.shape[0], -1)).sum(1)
            if points is not None:
                d_inputs, d_x = d_inputs.split([inputs.shape[-1], points.shape[-1]], dim=-1)
        return None, d_inputs, d_x, None, *(gradients if want_weights else [None] * len(tensors))


def mlp(
    weights: MLPWeights, inputs: Tensor, x: Tensor | None, backend: str, precision: str
) -> Tensor:
    """Apply the MLPs to `[inputs, x]` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    if x is not None and backend not in TRITON:
        inputs, x = torch.cat([inputs, x], dim=-1), None
    tensors = weights.tensors
    given = (inputs, *tensors) if x is None else (inputs, x, *tensors)
    train = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    how = Pass(backend, precision, train, weights.memory)
    operands = operands_of(weights, None if x is None else inputs.shape[-1], backend)
    out = _MLP.apply(how, inputs, x, operands, *tensors)
    return out.view(*weights.lead, inputs.shape[1], weights.out_features)


def mlp_operands(
    stacks: Sequence[MLPWeights], first: int | None, backend: str, precision: str
) -> list[list[Tensor]]:
    """Return what passes read of each of one or two stacks; nothing where none is prepared."""
    tensors = [list(weights.tensors) for weights in stacks]
    others = tensors[1] if len(tensors) == 2 else []
    operands = torch.ops.trqam_fast.mlp_operands(tensors[0], others, first, backend, precision)
    if not operands:
        return [[] for _ in stacks]
    from trqam_fast.kernels.mlp.triton_prepare import part_of

    return [part_of(operands, len(stacks), index) for index in range(len(stacks))]
