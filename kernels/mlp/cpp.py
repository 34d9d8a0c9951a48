"""Packed weights as the extension reads them, and the size of its tapes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from trqam_fast.kernels.mlp.constants import aligned
from trqam_fast.kernels.mlp.weights import MLPWeights


class MLPForward(NamedTuple):
    """csrc/mlp.h: MlpForward."""

    network: list[int]
    inputs: int
    rows: int
    out: int
    tape: int | None


class MLPBackward(NamedTuple):
    """csrc/mlp.h: MlpBackward."""

    network: list[int]
    gradients: list[int] | None
    inputs: int
    cotangent: int
    tape: int
    rows: int
    want_weights: bool
    d_inputs: int | None


class ActionGradient(NamedTuple):
    """csrc/mlp.h: ActionGradient."""

    network: list[int]
    inputs: int
    rows: int
    observation: int
    cotangent: float
    out: int
    gradient: int


def _dense(tensor: Tensor, lead: int) -> Tensor:
    """Return `tensor` with the part of every network contiguous."""
    if tensor.is_contiguous() or tensor[(0,) * lead].is_contiguous():
        return tensor
    return tensor.contiguous()


def describe(weights: MLPWeights) -> tuple[list[int], list[Tensor]]:
    """Return the numbers that csrc/bindings.cpp reads, and the tensors that they point to."""
    lead = len(weights.lead)
    tensors = [_dense(tensor, lead) for tensor in weights.tensors]
    members = weights.lead[1] if lead == 2 else 1
    numbers = [weights.lead[0], members, len(weights.kernels) - 1, int(weights.layer_norm)]
    numbers += [weights.in_features, *(kernel.shape[-1] for kernel in weights.kernels)]
    for tensor in tensors:
        numbers += (tensor.data_ptr(), tensor.stride(0), tensor.stride(1) if lead == 2 else 0)
    return numbers, tensors


def tape_elements(weights: MLPWeights, rows: int) -> int:
    """Return the elements of a tape that keeps `rows` rows of every network.

    csrc/mlp_weights.h has the layout.
    """
    norm = int(weights.layer_norm)
    per_row = sum(2 * aligned(kernel.shape[-1]) + norm for kernel in weights.kernels[:-1])
    return per_row * rows * weights.lead.numel()
