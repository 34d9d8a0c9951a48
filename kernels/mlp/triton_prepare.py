"""Weights prepared for passes: transposed, as operands, LayerNorm folded into what reads it.

`trqam_fast.kernels.mlp.triton_forward` says what a layer makes of them. One launch prepares all
layers of a stack of networks, or of two that lie one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    KernelConfig,
    config_for,
    operand_dtype,
    tile_options,
)
from trqam_fast.kernels.mlp.triton_forward import Prepared
from trqam_fast.kernels.mlp.triton_inputs import input_of
from trqam_fast.kernels.mlp.triton_operands import to_operand
from trqam_fast.kernels.mlp.triton_tile import await_predecessor, either, member_of, row_zeros
from trqam_fast.kernels.mlp.triton_weights import empty_operands, weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights


@triton.jit
def folded(w, net, at, slope, offset, C: tl.constexpr):
    """Return rows of a kernel as operands, LayerNorm folded in, and the sums with theirs.

    The slope is of the rounded operands, so that a mean far from the deviation cancels in it; what
    rounding the activations with their mean costs stays. TF32's operands are cut by the products
    alone.
    """
    operand = to_operand(w, C)
    if C.norm:
        offset += tl.sum(w * tl.load(net.shift + at)[:, None], 0)
        operand = to_operand(w * tl.load(net.scale + at)[:, None], C)
        slope += tl.sum(operand.to(tl.float32), 0)
    return operand, slope, offset


@triton.jit
def prepare_kernel(
    weights,  # WeightPointers of G networks, or of the first G / 2 with TWO
    operands,  # WeightPointers of their kernels as operands, written with COPY
    other_weights,  # WeightPointers of the others with TWO
    other_operands,  # likewise
    prepared,  # Prepared, of G networks
    layer_width,  # elements between two layers' slopes or offsets
    TWO: tl.constexpr,
    COPY: tl.constexpr,
    C: tl.constexpr,
):
    """Transpose a layer's kernel and fold its LayerNorm; grid [features, depth + 1, G].

    Layer `depth` is the output layer. Programs beyond a layer's features have nothing to do. With
    COPY the kernel is also written as it lies, for a pullback.
    """
    await_predecessor(C)
    index = tl.program_id(1)
    group = tl.program_id(2)
    wide = tl.cast(group, tl.int64)
    if TWO:
        half = tl.num_programs(2) // 2
        second = group >= half
        group %= half
        weights = either(second, weights, other_weights)
        operands = either(second, operands, other_operands)
    net = member_of(weights, group // C.ensemble, group % C.ensemble, C)
    copy = member_of(operands, group // C.ensemble, group % C.ensemble, C)
    features = tl.program_id(0) * C.block_n + tl.arange(0, C.block_n)
    inner = tl.arange(0, C.block_k)
    slope = row_zeros(C.block_n)
    offset = row_zeros(C.block_n)
    if index == C.depth:
        if tl.program_id(0) * C.block_n < C.block_out:
            there, real = features < C.block_out, features < C.out
            into = prepared.last + (wide * C.block_out + features[None, :]) * C.width
            vector = (C.depth - 1) * (C.ensemble * C.width)
            for k in range(0, C.width, C.block_k):
                ks = k + inner
                at = ks[:, None] * C.out + features[None, :]
                w = tl.load(net.w_out + at, mask=real[None, :], other=0.0).to(tl.float32)
                if COPY:
                    tl.store(copy.w_out + at, to_operand(w, C), mask=real[None, :])
                w, slope, offset = folded(w, net, vector + ks, slope, offset, C)
                tl.store(into + ks[:, None], w, mask=there[None, :])
            offset += tl.load(net.b_out + features, mask=real, other=0.0)
            vector_at = wide * C.block_out + features
            tl.store(prepared.last_offset + vector_at, offset, mask=there)
            if C.norm:
                tl.store(prepared.last_slope + vector_at, slope, mask=there)
    elif tl.program_id(0) * C.block_n < C.width:
        layer = tl.cast(index, tl.int64) * layer_width + wide * C.width + features
        if index == 0:
            into = prepared.first + (wide * C.width + features[None, :]) * C.columns
            for k in range(0, C.columns, C.block_k):
                column = k + inner
                source, real = input_of(column, C)
                at = source[:, None] * C.width + features[None, :]
                w = tl.load(net.w_in + at, mask=real[:, None], other=0.0).to(tl.float32)
                w = to_operand(w, C)
                tl.store(into + column[:, None], w)
                if COPY:
                    tl.store(copy.w_in + at, w, mask=real[:, None])
            tl.store(prepared.offset + layer, tl.load(net.b_hid + features))
        else:
            layers = tl.cast(index - 1, tl.int64) * (C.ensemble * C.width * C.width)
            into = prepared.hidden + (index - 1) * tl.cast(layer_width, tl.int64) * C.width
            into += (wide * C.width + features[None, :]) * C.width
            vector = index * (C.ensemble * C.width)
            for k in range(0, C.width, C.block_k):
                ks = k + inner
                at = layers + ks[:, None] * C.width + features[None, :]
                w = tl.load(net.w_hid + at).to(tl.float32)
                if COPY:
                    tl.store(copy.w_hid + at, to_operand(w, C))
                before = vector - C.ensemble * C.width + ks
                w, slope, offset = folded(w, net, before, slope, offset, C)
                tl.store(into + ks[:, None], w)
            offset += tl.load(net.b_hid + vector + features)
            tl.store(prepared.offset + layer, offset)
            if C.norm:
                tl.store(prepared.slope + layer, slope)


def empty_prepared(config: KernelConfig, groups: int, like: Tensor) -> Prepared:
    """Return uninitialised prepared weights of `groups` networks."""
    new, operand, width = like.new_empty, operand_dtype(config), config.width
    return Prepared(
        new(groups, width, config.columns, dtype=operand),
        new(config.depth - 1, groups, width, width, dtype=operand),
        new(groups, config.block_out, width, dtype=operand),
        new(config.depth if config.norm else 0, groups, width),
        new(config.depth, groups, width),
        new(groups if config.norm else 0, config.block_out),
        new(groups, config.block_out),
    )


def prepare(
    stacks: Sequence[MLPWeights],
    operands: Sequence[Tensor],
    into: Prepared,
    config: KernelConfig,
    precision: str,
) -> None:
    """Launch the preparation of a stack of networks, or of two that lie one behind the other.

    The kernels of each are written into its `operands` too, if those are not empty.
    """
    tiles = triton.cdiv(max(config.width, config.block_out), config.block_n)
    copy, pointers = operands[0].numel() > 0, []
    for weights, kept in zip(stacks, operands, strict=True):
        given = weight_pointers(weights, config)
        pointers += [given, weight_pointers(weights, config, kept) if copy else given]
    # Three parts of a field's inputs beside LayerNorm's sums and the copy would spill in four.
    many = {"num_warps": 8, "maxnreg": 128} if copy and config.norm and config.dim else {}
    prepare_kernel[(tiles, config.depth + 1, len(into.first))](
        *pointers[:2], *pointers[-2:], into, into.offset.stride(0), len(stacks) == 2, copy, config,
        **tile_options(precision, config, **many),
    )  # fmt: skip


def operands_config(
    weights: MLPWeights, precision: str, first: int | None = None, *, dependent: bool = False
) -> KernelConfig:
    """Return the config that prepares weights for passes, with gradients or without.

    Their inputs are in one part, or in two of which the first has `first` columns.
    """
    inputs = weights.kernels[0].mT  # as wide, on their device
    one, x = (inputs, None) if first is None else (inputs[..., :first], inputs[..., first:])
    return config_for(weights, one, x, precision, train=True, dependent=dependent)


def empty_mlp_operands(config: KernelConfig, kernel: Tensor, stacks: int = 1) -> list[Tensor]:
    """Return memory for what `mlp_operands` returns, on the device of `kernel`, a network's."""
    prepared = empty_prepared(config, stacks * len(kernel) * config.ensemble, kernel)
    return [*prepared, *(empty_operands(config, kernel) for _ in range(stacks))]


def mlp_operands(
    stacks: Sequence[MLPWeights], precision: str, first: int | None = None, *, dependent: bool
) -> list[Tensor]:
    """Prepare one or two stacks for several passes, by one launch.

    Returns:
        `Prepared`, of the second stack behind the first, then each one's kernels as operands.
    """
    kernel = stacks[0].kernels[0]
    config = operands_config(stacks[0], precision, first, dependent=dependent)
    into = empty_mlp_operands(config, kernel, len(stacks))
    prepared, operands = Prepared(*into[: -len(stacks)]), into[-len(stacks) :]
    with torch.cuda.device_of(kernel):
        prepare(stacks, operands, prepared, config, precision)
    return into


def part_of(operands: Sequence[Tensor], stacks: int, index: int) -> list[Tensor]:
    """Return what `mlp_operands` prepared of one of so many stacks."""
    fields = Prepared(*operands[:-stacks])._asdict()
    groups = len(operands[0]) // stacks
    own = slice(index * groups, (index + 1) * groups)
    layered = ("hidden", "slope", "offset")  # behind an axis of layers
    parts = (part[:, own] if name in layered else part[own] for name, part in fields.items())
    return [*parts, operands[index - stacks]]
