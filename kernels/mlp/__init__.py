"""Stacked multi-layer perceptrons: the velocity fields and the critics."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_integers, check_same, check_tensor
from trqam_fast.kernels.dispatch import TRITON, Backend, Precision, choose_backend
from trqam_fast.kernels.mlp import ops, reference
from trqam_fast.kernels.mlp.weights import GradientMemory, MLPWeights


def mlp(
    weights: MLPWeights,
    inputs: Tensor | tuple[Tensor, Tensor],
    *,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Apply a stack of MLPs, differentiable in weights and inputs.

    Args:
        weights: Packed weights with leading axes `[S]` or `[S, E]`; for several passes prepare
            them once, by `with_operands`.
        inputs: `[S, N, in]`, float32 or float64; the E members of an ensemble share it. Two parts,
            as (s, a) of critics, are what they are side by side; Triton reads them where they lie.
        backend: ``reference`` (autograd), ``cpp`` (compiled passes, CPU), ``triton`` (a launch for
            each layer), ``triton_pdl`` (dependent launches) or ``auto``. Inside a `torch.func`
            transform, as in a callable given to `lean_adjoint`, take ``reference``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        `[S, N, out]`, or `[S, E, N, out]` for an ensemble.

    Raises:
        TypeError: `weights` are no `MLPWeights`, `inputs` no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    op = "mlp"
    check_weights(op, weights)
    kernel, runs, x = weights.kernels[0], weights.lead[0], None
    if isinstance(inputs, tuple | list):
        if len(inputs) != 2:
            raise ValueError(f"{op}: inputs are {len(inputs)} parts; pass a tensor, or two")
        inputs, x = inputs
        check_tensor(op, "inputs[0]", inputs, (runs, "N", None))
        rest = weights.in_features - check_first(op, weights, inputs.shape[-1])
        check_tensor(op, "inputs[1]", x, (runs, inputs.shape[1], rest))
        check_same(op, inputs=inputs, x=x, weights=kernel)
    else:
        check_tensor(op, "inputs", inputs, (runs, "N", weights.in_features))
        check_same(op, inputs=inputs, weights=kernel)
    chosen = choose_backend(
        op, backend, inputs.device, dtype=inputs.dtype, precision=precision, networks=[weights]
    )
    if chosen == "reference":
        return reference.mlp(weights, inputs if x is None else torch.cat([inputs, x], dim=-1))
    return ops.mlp(weights, inputs, x, chosen, precision)


def with_operands(
    weights: MLPWeights,
    first: int | None = None,
    *,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> MLPWeights:
    """Do what passes do with the weights alone, once for several passes with the same weights.

    With Triton a launch writes them as operands of products, transposed, and LayerNorm's scale and
    shift folded into the layer that reads it. The other backends have nothing to prepare.

    Args:
        weights: As of `mlp`, like all that follow.
        first: Columns of the first part of the inputs, if they are in two.
        backend: ``auto``, ``reference``, ``cpp``, ``triton`` or ``triton_pdl``.
        precision: Operands of matrix products.

    Returns:
        The same weights for `mlp` by the same backend and precision, with what it reads of them as
        they are now: a change of the weights is not seen. Gradients are those of `weights`. For
        inputs in other parts they are prepared anew.

    Raises:
        TypeError: `weights` are no `MLPWeights`, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    return _prepared([weights], first, backend, precision)[0]


def both_with_operands(
    weights: MLPWeights,
    others: MLPWeights,
    first: int | None = None,
    *,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> tuple[MLPWeights, MLPWeights]:
    """Do as `with_operands` for two stacks of the same sizes, by one launch.

    Args:
        weights: As of `with_operands`, like all that follow.
        others: The second stack.
        first: Columns of the first part of the inputs, if they are in two.
        backend: ``auto``, ``reference``, ``cpp``, ``triton`` or ``triton_pdl``.
        precision: Operands of matrix products.

    Returns:
        Both, with operands.

    Raises:
        TypeError: one is no `MLPWeights`, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    check_weights("mlp", weights)
    check_weights("mlp", others, "others")
    check_same("mlp", weights=weights.kernels[0], others=others.kernels[0])
    if weights.tensor_shapes != others.tensor_shapes:
        raise ValueError("mlp: weights and others differ in their shapes; prepare them one by one")
    weights, others = _prepared([weights, others], first, backend, precision)
    return weights, others


def _prepared(
    stacks: list[MLPWeights], first: int | None, backend: str, precision: str
) -> list[MLPWeights]:
    """Return one or two stacks with operands."""
    op = "mlp"
    for weights in stacks:
        check_weights(op, weights)
    if first is not None:
        check_integers(op, first=first)
        check_first(op, stacks[0], first)
    kernel = stacks[0].kernels[0]
    chosen = choose_backend(
        op, backend, kernel.device, dtype=kernel.dtype, precision=precision, networks=stacks
    )
    if chosen not in TRITON:
        return stacks
    with torch.no_grad():
        operands = ops.mlp_operands(stacks, first, chosen, precision)
    pairs = zip(stacks, operands, strict=True)
    return [replace(weights, operands=tuple(own), first=first) for weights, own in pairs]


def check_weights(op: str, weights: MLPWeights, name: str = "weights") -> None:
    """Raise unless argument `name` is the weights of a stack of networks."""
    if not isinstance(weights, MLPWeights):
        raise TypeError(f"{op}: {name} is a {type(weights).__name__}; pass MLPWeights")
    weights.check(op, name)


def check_first(op: str, weights: MLPWeights, first: int) -> int:
    """Return `first`; raise ValueError unless a second part follows so many columns."""
    if not 0 < first < weights.in_features:
        raise ValueError(
            f"{op}: the first part of the inputs has {first} columns; it must have between 1 and "
            f"{weights.in_features - 1}"
        )
    return first


__all__ = ["GradientMemory", "MLPWeights", "both_with_operands", "mlp", "with_operands"]
