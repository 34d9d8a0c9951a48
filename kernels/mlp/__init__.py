"""Stacked multi-layer perceptrons: the velocity fields and the critics."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.dispatch import (
    check_same,
    check_tensor,
    choose_backend,
    triton_problem,
)
from trqam_fast.kernels.mlp import ops, reference, triton_ops
from trqam_fast.kernels.mlp.cpp import compiled_problem
from trqam_fast.kernels.mlp.weights import GradientMemory, MLPWeights, limits_problem, size_problem


def mlp(
    weights: MLPWeights, inputs: Tensor, *, backend: str = "auto", precision: str = "ieee"
) -> Tensor:
    """Apply a stack of MLPs, differentiable in weights and inputs.

    Args:
        weights: Packed weights with leading axes `[S]` or `[S, E]`.
        inputs: `[S, N, in]`, float32 or float64; the E members of an ensemble share it.
        backend: ``reference`` (autograd), ``cpp`` (compiled passes, CPU),
            ``triton`` (fused passes) or ``auto``. Inside a `torch.func` transform, as in a
            callable given to `lean_adjoint`, take ``reference``.
        precision: ``ieee``, ``tf32`` (Triton) or ``bf16`` (Triton or ``cpp``) operands.

    Returns:
        `[S, N, out]`, or `[S, E, N, out]` for an ensemble.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    weights.check("mlp", "weights")
    check_tensor("mlp", "inputs", inputs, (weights.lead[0], None, weights.in_features))
    check_same("mlp", inputs=inputs, weights=weights.kernels[0])
    problem = triton_problem(inputs.device, inputs.dtype) or size_problem(weights)
    match choose_backend(
        "mlp", backend, inputs.device,
        cpp=compiled_problem(inputs.device, inputs.dtype, precision, weights), triton=problem,
        precision=precision,
    ):  # fmt: skip
        case "reference":
            return reference.mlp(weights, inputs)
        case "triton":
            return triton_ops.mlp(weights, inputs, precision)
        case _:
            return ops.mlp(weights, inputs, precision)


__all__ = ["GradientMemory", "MLPWeights", "limits_problem", "mlp", "size_problem"]
