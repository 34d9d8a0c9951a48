"""Weights as the Triton kernels read them.

The kernels want the layers of a kind at equal distances and hidden widths that fill whole blocks.
The trainer's packed parameters are laid out like that, so they are read in place; anything else is
copied into a padded buffer first. Kernels may also lie in a buffer of 16-bit operands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.mlp.constants import aligned
from trqam_fast.kernels.mlp.triton_config import KernelConfig, operand_dtype
from trqam_fast.kernels.mlp.weights import MLPWeights, packed_size, split


class WeightPointers(NamedTuple):
    """Packed weights of a stack: members of a run lie one after another, layers of a kind too.

    Attributes:
        w_in: Kernels of the first layer, `[E, inputs, width]` of each run.
        w_hid: Kernels between hidden layers, `[depth - 1, E, width, width]`.
        w_out: Kernels of the output layer, `[E, width, out]`.
        b_hid: Hidden biases, `[depth, E, width]`.
        b_out: Output biases, `[E, out]`.
        scale: LayerNorm scales, `[depth, E, width]`.
        shift: LayerNorm biases, likewise.
        kernel_stride: Elements between two runs of the kernels.
        vector_stride: Elements between two runs of the vectors.
    """

    w_in: Any
    w_hid: Any
    w_out: Any
    b_hid: Any
    b_out: Any
    scale: Any
    shift: Any
    kernel_stride: Any
    vector_stride: Any


def packed_shapes(config: KernelConfig) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the shapes of one run's packed kernels and vectors, in the order of the weights."""
    members, width = config.ensemble, config.width
    hidden: list[tuple[int, ...]] = [(members, width, width)] * (config.depth - 1)
    kernels = [(members, config.inputs, width), *hidden, (members, width, config.out)]
    layers = [(members, width)] * config.depth
    norms = layers if config.norm else []
    return kernels, [*layers, (members, config.out), *norms, *norms]


def laid_out(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether `[S, *shape]` tensors lie in memory as packed weights do, with any run stride."""
    first, offset = tensors[0], 0
    for tensor, shape in zip(tensors, shapes, strict=True):
        if (
            tensor.shape[1:] != shape
            or not tensor[0].is_contiguous()
            or tensor.data_ptr() != first.data_ptr() + offset * first.element_size()
            or (tensor.shape[0] > 1 and tensor.stride(0) != first.stride(0))
        ):
            return False
        size = math.prod(shape)
        offset += aligned(size)
    return True


def parts_of(weights: MLPWeights) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return kernels and vectors with the axis of members, without gradients."""
    single = len(weights.lead) == 1
    tensors = [t.detach().unsqueeze(1) if single else t.detach() for t in weights.tensors]
    layers = len(weights.kernels)
    return tensors[:layers], tensors[layers:]


def packed(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Return `[S, ...]` tensors that lie as packed weights do: themselves, or padded copies."""
    if laid_out(tensors, shapes):
        return tensors
    parts = split(tensors[0].new_zeros(len(tensors[0]), packed_size(shapes)), shapes)
    for tensor, part in zip(tensors, parts, strict=True):
        part[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)
    return parts


def empty_operands(config: KernelConfig, like: Tensor) -> Tensor:
    """Return memory for a run's kernels as operands, `[S, n]`; `[S, 0]` of float32 ones."""
    dtype, (shapes, _) = operand_dtype(config), packed_shapes(config)
    size = 0 if dtype == torch.float32 else packed_size(shapes)
    return like.new_empty(len(like), size, dtype=dtype)


def weight_pointers(
    weights: MLPWeights, config: KernelConfig, operands: Tensor | None = None
) -> WeightPointers:
    """Return `weights` as the kernels read them: in place if possible, or kernels in `operands`."""
    kernels, vectors = parts_of(weights)
    shapes, vector_shapes = packed_shapes(config)
    if operands is None or operands.numel() == 0:
        kernels = packed(kernels, shapes)
    else:
        kernels = split(operands, shapes)
    return first_parts(kernels, packed(vectors, vector_shapes), config)


def first_parts(
    kernels: Sequence[Tensor], vectors: Sequence[Tensor], config: KernelConfig
) -> WeightPointers:
    """Return the first tensor of each kind, for kernels and vectors in the order of the weights."""
    depth = config.depth
    return WeightPointers(
        kernels[0],
        kernels[min(1, depth - 1)],
        kernels[-1],
        vectors[0],
        vectors[depth],
        vectors[depth + 1 if config.norm else 0],
        vectors[2 * depth + 1 if config.norm else 0],
        kernels[0].stride(0),
        vectors[0].stride(0),
    )
