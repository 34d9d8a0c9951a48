"""Weights as the Triton kernels read them, and the plans that kernels are compiled for.

The kernels want the layers of a kind at equal distances and hidden widths that fill whole blocks.
The trainer's packed parameters are laid out like that, so float32 operands are read in place.
Anything else is copied into a padded buffer first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.constants import aligned
from trqam_fast.kernels.mlp.plan import Network, Plan
from trqam_fast.kernels.mlp.weights import MLPWeights


@dataclass(frozen=True)
class Tile:
    """Blocks and launch of one precision.

    Attributes:
        block_m: Rows of a program.
        block_n: Columns computed at a time.
        block_k: Depth of a product's step.
        block_w: Rows and columns of a block of a weight gradient.
        stages: Stages of the pipelines that load operands.
        lean_stages: The same on GPUs with less than 160 KiB of shared memory.
    """

    block_m: int
    block_n: int
    block_k: int
    block_w: int
    stages: int
    lean_stages: int


# The largest blocks that compile without spills for every architecture, depth and LayerNorm
# setting of tests/test_aot.py: with 64 x 128 the rollout spills 80 to 144 bytes (tf32) and 100
# (bf16), with a depth of 64 up to 256. 64 rows are what wgmma needs.
TILES = {
    "ieee": Tile(32, 32, 32, 32, stages=2, lean_stages=2),
    "tf32": Tile(64, 64, 32, 64, stages=3, lean_stages=2),
    "bf16": Tile(64, 64, 32, 64, stages=4, lean_stages=3),
}
OPERANDS = {"ieee": tl.float32, "tf32": tl.float32, "bf16": tl.bfloat16}
STORED = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}
WARPS = 8
# Left alone, ptxas stops at 128 or 168 registers and spills; 8 warps may use 255.
MAX_REGISTERS = 255


def launch_options(precision: str) -> dict[str, int]:
    """Return Triton's options for a launch on the current device."""
    tile = TILES[precision]
    lean = False
    if not triton.knobs.runtime.interpret:
        lean = has_little_shared_memory(triton.runtime.driver.active.get_current_device())
    return {
        "num_warps": WARPS,
        "num_stages": tile.lean_stages if lean else tile.stages,
        "maxnreg": MAX_REGISTERS,
    }


@functools.cache
def has_little_shared_memory(device: int) -> bool:
    """Whether a program on `device` may have less than 160 KiB of shared memory."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device)
    return properties["max_shared_mem"] < 160 * 1024


def padded_width(widths: Sequence[int]) -> int:
    """Return the common width that hidden layers of `widths` are padded to."""
    widest = max(widths)
    return triton.next_power_of_2(max(widest, 32)) if widest <= 64 else -(-widest // 64) * 64


def make_plan(
    weights: MLPWeights,
    precision: str,
    *,
    obs: int,
    dim: int = 0,
    time: int = 0,
    train: bool,
    k_major: bool = False,
) -> Plan:
    """Return the plan for `weights` on inputs of `obs`, `dim` and `time` columns."""
    widths = tuple(kernel.shape[-1] for kernel in weights.kernels[:-1])
    width = padded_width(widths)
    tile = TILES[precision]
    block_out = triton.next_power_of_2(max(weights.out_features, 16))
    # More than 32 outputs take the registers of as many rows; products on the plain units, whose
    # loops the compiler unrolls, those of the columns too.
    rows = min(tile.block_m, max(16, tile.block_m * 32 // block_out))
    cols = 16 if precision == "ieee" and block_out > 64 else tile.block_n
    # Blocks of columns must divide the width; its lowest set bit is the largest power that does.
    divides = width & -width
    return Plan(
        obs=obs,
        dim=dim,
        time=time,
        widths=widths,
        width=width,
        out=weights.out_features,
        norm=weights.layer_norm,
        ensemble=weights.lead[1] if len(weights.lead) == 2 else 1,
        train=train,
        k_major=k_major,
        block_m=rows,
        block_n=min(cols, divides),
        block_k=min(tile.block_k, divides),
        block_w=min(tile.block_w, divides),
        block_out=block_out,
        operand=OPERANDS[precision],
        precision="tf32" if precision == "tf32" else "ieee",
    )


def operand_dtype(plan: Plan) -> torch.dtype:
    """Return the type in which activations are stored between layers."""
    return STORED[plan.operand]


def packed_shapes(plan: Plan) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the shapes of one run's packed kernels and vectors, in the order of the weights."""
    members, width = plan.ensemble, plan.width
    hidden = [(members, width, width)] * (plan.depth - 1)
    kernels = [(members, plan.inputs, width), *hidden, (members, width, plan.out)]
    layers = [(members, width)] * plan.depth
    norms = layers if plan.norm else []
    return kernels, [*layers, (members, plan.out), *norms, *norms]


def split(buffer: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the parts `[S, *shape]` of packed weights `[S, n]`."""
    parts, offset = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(buffer[:, offset : offset + size].view(-1, *shape))
        offset += aligned(size)
    return parts


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


def fill(buffer: Tensor, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    """Copy `[S, ...]` tensors into packed weights `[S, n]`, zeros beyond their shapes."""
    first, (runs, size) = tensors[0], buffer.shape
    if laid_out(tensors, shapes):
        reach = first.storage_offset() + (runs - 1) * first.stride(0) + size
        if reach * first.element_size() <= first.untyped_storage().nbytes():
            buffer.copy_(first.as_strided(buffer.shape, (first.stride(0), 1)))
            return
    buffer.zero_()
    for tensor, part in zip(tensors, split(buffer, shapes), strict=True):
        part[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)


def parts_of(weights: MLPWeights) -> tuple[list[Tensor], list[Tensor]]:
    """Return kernels and vectors with the axis of members, without gradients."""
    single = len(weights.lead) == 1
    tensors = [t.detach().unsqueeze(1) if single else t.detach() for t in weights.tensors]
    layers = len(weights.kernels)
    return tensors[:layers], tensors[layers:]


def pack(stack: Sequence[MLPWeights], plan: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed kernels `[F, S, n]` of `dtype` and packed vectors `[F, S, m]` of float32."""
    kernel_shapes, vector_shapes = packed_shapes(plan)
    first = stack[0].kernels[0]
    lead = (len(stack), first.shape[0])
    kernels = first.new_empty(*lead, plan.kernel_offsets[-1], dtype=dtype)
    vectors = first.new_empty(*lead, plan.vector_offsets[-1])
    for index, weights in enumerate(stack):
        kernel_parts, vector_parts = parts_of(weights)
        fill(kernels[index], kernel_parts, kernel_shapes)
        if plan.k_major and plan.depth > 1:
            # Hidden kernels are square once padded, so their transposes take the same place, where
            # the copy has left them untransposed.
            begin, end, _ = plan.kernel_offsets
            square = (-1, plan.depth - 1, plan.ensemble, plan.width, plan.width)
            hidden = kernels[index][:, begin:end].view(square)
            hidden.copy_(hidden.clone().transpose(-1, -2))
        fill(vectors[index], vector_parts, vector_shapes)
    return kernels, vectors


def make_network(weights: MLPWeights, plan: Plan, dtype: torch.dtype = torch.float32) -> Network:
    """Return `weights` as the kernels read them: in place if possible, else packed as `dtype`."""
    kernels, vectors = parts_of(weights)
    kernel_shapes, vector_shapes = packed_shapes(plan)
    in_place = laid_out(kernels, kernel_shapes) and laid_out(vectors, vector_shapes)
    if not in_place or dtype != torch.float32:
        packed_kernels, packed_vectors = pack([weights], plan, dtype)
        kernels = split(packed_kernels[0], kernel_shapes)
        vectors = split(packed_vectors[0], vector_shapes)
    depth = plan.depth
    return Network(
        kernels[0],
        kernels[min(1, depth - 1)],
        kernels[-1],
        vectors[0],
        vectors[depth],
        vectors[depth + 1 if plan.norm else 0],
        vectors[2 * depth + 1 if plan.norm else 0],
        kernels[0].stride(0),
        vectors[0].stride(0),
    )
