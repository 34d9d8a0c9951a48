"""Triton kernels of the stacked MLP: forward, pullback and weight gradients, one launch each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import (
    KernelConfig,
    launch_options,
    make_config,
    operand_dtype,
)
from trqam_fast.kernels.mlp.triton_tile import (
    Gradients,
    Tape,
    TileInputs,
    forward,
    group_of,
    input_gradient,
    load_inputs,
    member_of,
    pullback,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights


class Inputs(NamedTuple):
    """Inputs `[s, x, t]` of rows (k, b), k < K: three parts that are never concatenated.

    Attributes:
        observations: s, `[S, B, O]`, shared by the K steps and the members; all inputs where
            there is no x.
        x: x, `[S, >= K, B, D]`, or None.
        steps: K; t_k = (k + shift) / K.
        shift: 0 or 1.
    """

    observations: Tensor
    x: Tensor | None = None
    steps: int = 1
    shift: int = 0


class BatchInputs(NamedTuple):
    """`Inputs` inside a kernel: pointers and sizes.

    Attributes:
        observations: `[S, B, O]`.
        x: `[S, >= K, B, D]`.
        x_stride: Elements between two runs of x.
        batch: B.
        rows: K * B.
        steps: K.
        shift: 0 or 1.
    """

    observations: Any
    x: Any
    x_stride: Any
    batch: Any
    rows: Any
    steps: Any
    shift: Any


@triton.jit
def tile_inputs(inputs, run, row, C: tl.constexpr):
    """Return where the rows (k, b) of a run find their inputs."""
    step = row // inputs.batch
    wide = tl.cast(run, tl.int64)
    time = tl.div_rn((step + inputs.shift).to(tl.float32), tl.cast(inputs.steps, tl.float32))
    return TileInputs(
        inputs.observations + wide * inputs.batch * C.obs,
        inputs.x + wide * inputs.x_stride,
        row % inputs.batch,
        row,
        time,
        row < inputs.rows,
    )


@triton.jit(do_not_specialize=["x_stride", "layer_rows", "batch", "rows", "steps", "shift"])
def mlp_forward_kernel(
    net,  # WeightPointers of G networks
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks, rows = K * B
    layer_rows,  # G * K * B
    result,  # [G, K * B, out]
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Rows of a tile through one network; grid [tiles, G]."""
    group = tl.program_id(1)
    run = group // C.ensemble
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    net = member_of(net, run, group % C.ensemble, C)
    tape = group_of(tape, group, rows, layer_rows, C)
    inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
    source = tile_inputs(inputs, run, row, C)
    value = forward(source, net, tape, row, False, C)
    outs = tl.arange(0, C.block_out)
    at = tl.cast(group, tl.int64) * rows * C.out + row[:, None] * C.out + outs[None, :]
    tl.store(result + at, value, mask=source.mask[:, None] & (outs < C.out)[None, :])


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def mlp_pullback_kernel(
    net,  # WeightPointers of G networks
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    d_inputs,  # [G, rows, in], written with INPUTS
    rows,
    INPUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    C: tl.constexpr,
):
    """Cotangent of a tile to all pre-activations, and to the inputs; grid [tiles, G]."""
    group = tl.program_id(1)
    tile = tl.program_id(0)
    row = tile * C.block_m + tl.arange(0, C.block_m)
    mask = row < rows
    net = member_of(net, group // C.ensemble, group % C.ensemble, C)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    wide = tl.cast(group, tl.int64)
    groups = tl.num_programs(1)
    grads = Gradients(
        grads.pre + wide * rows * C.width,
        grads.normed + wide * rows * C.width,
        grads.sums + (tl.cast(tile, tl.int64) * groups + group) * C.width,
        tl.cast(grads.stride, tl.int64),
        tl.cast(grads.sum_stride, tl.int64),
    )
    outs = tl.arange(0, C.block_out)
    at = wide * rows * C.out + row[:, None] * C.out + outs[None, :]
    given = tl.load(cotangent + at, mask=mask[:, None] & (outs < C.out)[None, :], other=0.0)
    pullback(given, net, tape, grads, row, row, mask, C)
    if INPUTS:
        for n in range(0, C.inputs, BLOCK_IN):
            ks = n + tl.arange(0, BLOCK_IN)
            acc = zeros(C.block_m, BLOCK_IN)
            acc = input_gradient(net, grads, row, mask, ks, ks < C.inputs, acc, C)
            into = d_inputs + wide * rows * C.inputs + row[:, None] * C.inputs + ks[None, :]
            tl.store(into, acc, mask=mask[:, None] & (ks < C.inputs)[None, :])


@triton.jit
def input_kernel_block(inputs, run, right, into, ins, outs, C: tl.constexpr):
    """Block of the first kernel's gradient: inputs^T dz_0 over all rows."""
    acc = zeros(C.block_w, C.block_w)
    for r in range(0, inputs.rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        source = tile_inputs(inputs, run, row, C)
        left = load_inputs(source, ins, C).to(C.operand)
        at = row[:, None] * C.width + outs[None, :]
        dz = tl.load(right + at, mask=source.mask[:, None], other=0.0)
        acc = tl.dot(tl.trans(left), dz, acc, input_precision=C.precision)
    at = ins[:, None] * C.width + outs[None, :]
    tl.store(into + at, acc, mask=(ins < C.inputs)[:, None])


@triton.jit
def kernel_block(left, right, into, ins, outs, rows, OUT: tl.constexpr, C: tl.constexpr):
    """Block of another kernel's gradient, y^T dz over all rows, for `OUT` columns of dz."""
    acc = zeros(C.block_w, C.block_w)
    narrow = (outs < OUT)[None, :]
    for r in range(0, rows, C.block_k):
        row = r + tl.arange(0, C.block_k)
        mask = (row < rows)[:, None]
        y = tl.load(left + row[:, None] * C.width + ins[None, :], mask=mask, other=0.0)
        dz = tl.load(right + row[:, None] * OUT + outs[None, :], mask=mask & narrow, other=0.0)
        acc = tl.dot(tl.trans(y), dz.to(C.operand), acc, input_precision=C.precision)
    tl.store(into + ins[:, None] * OUT + outs[None, :], acc, mask=narrow)


@triton.jit(
    do_not_specialize=["x_stride", "tape_rows", "layer_rows", "batch", "rows", "steps", "shift"]
)
def weight_gradient_kernel(
    observations,  # [S, B, O]
    x,  # [S, >= K, B, D]
    x_stride,  # elements between two runs of x
    tape,  # Tape of G networks
    tape_rows,  # rows of the tape, of which the first are used
    layer_rows,  # G * tape_rows
    grads,  # Gradients of G networks
    cotangent,  # [G, rows, out]
    d_in,  # [G, in, width]
    d_hid,  # [depth - 1, G, width, width]
    d_out,  # [G, width, out]
    batch,  # B
    rows,  # K * B
    steps,  # K
    shift,  # 0 or 1: t_k = (k + shift) / K
    C: tl.constexpr,
):
    """Blocks of all kernels' gradients, numbered first, hidden, last; grid [blocks, G]."""
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    tape = group_of(tape, group, tape_rows, layer_rows, C)
    pre = grads.pre + wide * rows * C.width
    across: tl.constexpr = C.width // C.block_w
    across_out: tl.constexpr = (C.out + C.block_w - 1) // C.block_w
    in_blocks: tl.constexpr = (C.inputs + C.block_w - 1) // C.block_w * across
    hidden_blocks: tl.constexpr = (C.depth - 1) * across * across
    inner = tl.arange(0, C.block_w)
    block = tl.program_id(0)
    if block < in_blocks:
        inputs = BatchInputs(observations, x, x_stride, batch, rows, steps, shift)
        ins = block // across * C.block_w + inner
        outs = block % across * C.block_w + inner
        into = d_in + wide * C.inputs * C.width
        input_kernel_block(inputs, group // C.ensemble, pre, into, ins, outs, C)
    elif block < in_blocks + hidden_blocks:
        within = block - in_blocks
        index = tl.cast(within // (across * across), tl.int64)
        left = tape.out + index * tape.stride
        dz = pre + (index + 1) * grads.stride
        into = d_hid + (index * tl.num_programs(1) + group) * (C.width * C.width)
        ins = within // across % across * C.block_w + inner
        outs = within % across * C.block_w + inner
        kernel_block(left, dz, into, ins, outs, rows, C.width, C)
    else:
        within = block - in_blocks - hidden_blocks
        left = tape.out + (C.depth - 1) * tape.stride
        given = cotangent + wide * rows * C.out  # float32, whatever the type of dz
        into = d_out + wide * C.width * C.out
        ins = within // across_out * C.block_w + inner
        outs = within % across_out * C.block_w + inner
        kernel_block(left, given, into, ins, outs, rows, C.out, C)


def check_size(config: KernelConfig, rows: int) -> None:
    """Raise ValueError if offsets within one network's rows would not fit in 32 bits."""
    widest = max(config.width, config.inputs, config.block_out)
    if rows * widest >= 2**31:
        raise ValueError(
            f"{rows} rows of {widest} columns exceed the 2^31 elements that a Triton program "
            "addresses; split the batch"
        )


def empty_tape(config: KernelConfig, groups: int, rows: int, like: Tensor) -> Tape:
    """Return an uninitialised tape for `rows` rows of `groups` networks."""
    pre_layers = config.depth if config.train else int(config.norm)
    out_layers = config.depth if config.train else 2
    stats = config.depth if config.train and config.norm else 0
    return Tape(
        like.new_empty(pre_layers, groups, rows, config.width),
        like.new_empty(out_layers, groups, rows, config.width, dtype=operand_dtype(config)),
        like.new_empty(stats, groups, rows),
        like.new_empty(stats, groups, rows),
    )


def config_for(
    weights: MLPWeights,
    inputs: Tensor,
    x: Tensor | None,
    precision: str,
    *,
    train: bool,
    rows: int | None = None,
) -> KernelConfig:
    """Return the config of passes through `weights` of inputs, or of observations with points.

    It is the same for any number of rows.
    """
    dim = 0 if x is None else x.shape[-1]
    obs = inputs.shape[-1]
    return make_config(weights, precision, obs=obs, dim=dim, time=int(dim > 0), train=train)


def points_of(inputs: Inputs) -> tuple[Tensor, int]:
    """Return x with dense rows, or any tensor where there is none, and the stride of its runs."""
    x = inputs.observations if inputs.x is None else inputs.x
    x = x if x[0].is_contiguous() else x.contiguous()
    return x, x.stride(0)


def forward_pass(
    weights: MLPWeights, inputs: Inputs, precision: str, *, train: bool
) -> tuple[Tensor, Tape]:
    """Return the outputs `[G, K * B, out]` and the tape."""
    config = config_for(weights, inputs.observations, inputs.x, precision, train=train)
    x, x_stride = points_of(inputs)
    runs, batch, _ = inputs.observations.shape
    groups, rows = runs * config.ensemble, inputs.steps * batch
    check_size(config, rows)
    result = inputs.observations.new_empty(groups, rows, config.out)
    tape = empty_tape(config, groups, rows, result)
    with torch.cuda.device_of(result):
        mlp_forward_kernel[(triton.cdiv(rows, config.block_m), groups)](
            weight_pointers(weights, config),
            inputs.observations,
            x,
            x_stride,
            tape,
            groups * rows,
            result,
            batch,
            rows,
            inputs.steps,
            inputs.shift,
            config,
            **launch_options(precision),
        )
    return result, tape


class PackedGradients(NamedTuple):
    """Gradients of weights as the kernels write them.

    Attributes:
        first: Of the first kernels, `[G, in, width]`.
        hidden: Of the kernels between hidden layers, `[depth - 1, G, width, width]`.
        last: Of the last kernels, `[G, width, out]`.
        vectors: Of hidden biases and, with LayerNorm, scales and shifts, `[1 or 3, depth, G,
            width]`.
        last_bias: Of the output biases, `[G, out]`.
    """

    first: Tensor
    hidden: Tensor
    last: Tensor
    vectors: Tensor
    last_bias: Tensor


def empty_gradients(weights: MLPWeights, like: Tensor, precision: str) -> PackedGradients:
    """Return uninitialised gradients of `weights`, of the type of `like`."""
    config = make_config(weights, precision, obs=weights.in_features, train=True)
    groups, depth, width, new = weights.lead.numel(), config.depth, config.width, like.new_empty
    return PackedGradients(
        new(groups, config.inputs, width),
        new(depth - 1, groups, width, width),
        new(groups, width, config.out),
        new(3 if config.norm else 1, depth, groups, width),
        new(groups, config.out),
    )


def backward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    tape: Sequence[Tensor],
    cotangent: Tensor,
    precision: str,
    want_inputs: bool,
    gradients: Sequence[Tensor],
) -> Tensor:
    """Write the weights' gradients, `PackedGradients`, unless there is no place for them.

    Returns:
        Gradients of the inputs, `[G, K * B, in]`, or of none.
    """
    groups, rows = cotangent.shape[:2]
    config = config_for(weights, inputs.observations, inputs.x, precision, train=True)
    tape, want_weights = Tape(*tape), len(gradients) > 0
    tape_rows = tape.pre.shape[2]
    layer_rows = groups * tape_rows
    width, depth = config.width, config.depth
    tiles = triton.cdiv(rows, config.block_m)
    new = cotangent.new_empty
    kinds = (3 if config.norm else 1) if want_weights else 0
    grads = Gradients(
        new(depth if want_weights else 2, groups, rows, width, dtype=operand_dtype(config)),
        new(groups if config.norm else 0, rows, width),
        new(kinds, depth, tiles, groups, width),
        groups * rows * width,
        tiles * groups * width,
    )
    d_inputs = new(groups if want_inputs else 0, rows, config.inputs)
    block_in = min(64, triton.next_power_of_2(max(config.inputs, 16)))
    with torch.cuda.device_of(cotangent):
        mlp_pullback_kernel[(tiles, groups)](
            weight_pointers(weights, config),
            tape,
            tape_rows,
            layer_rows,
            grads,
            cotangent,
            d_inputs,
            rows,
            want_inputs,
            block_in,
            dataclasses.replace(config, train=want_weights),
            **launch_options(precision),
        )
    if want_weights:
        packed = PackedGradients(*gradients)
        weight_gradients(config, inputs, tape, tape_rows, grads, cotangent, packed, precision)
    return d_inputs


def weight_gradients(
    config: KernelConfig,
    inputs: Inputs,
    tape: Tape,
    tape_rows: int,
    grads: Gradients,
    cotangent: Tensor,
    packed: PackedGradients,
    precision: str,
) -> None:
    """Write the weights' gradients.

    Args:
        config: Of the pass.
        inputs: Of the pass.
        tape: Its tape, of which the layers' outputs are read.
        tape_rows: Rows of the tape, of which the first are used.
        grads: Gradients of the pre-activations, and their column sums by tiles of rows.
        cotangent: `[G, K * B, out]`.
        packed: Where the gradients go.
        precision: Operands of the products.
    """
    groups, rows = cotangent.shape[:2]
    x, x_stride = points_of(inputs)
    across = config.width // config.block_w
    blocks = triton.cdiv(config.inputs, config.block_w) * across + (config.depth - 1) * across**2
    blocks += across * triton.cdiv(config.out, config.block_w)
    with torch.cuda.device_of(cotangent):
        weight_gradient_kernel[(blocks, groups)](
            inputs.observations,
            x,
            x_stride,
            tape,
            tape_rows,
            groups * tape_rows,
            grads,
            cotangent,
            packed.first,
            packed.hidden,
            packed.last,
            inputs.observations.shape[1],
            rows,
            inputs.steps,
            inputs.shift,
            config,
            **launch_options(precision),
        )
    torch.sum(grads.sums, 2, out=packed.vectors)
    torch.sum(cotangent, 1, out=packed.last_bias)


def unpack(weights: MLPWeights, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Cut padding and packing from `PackedGradients`: one for each of `weights.tensors`."""
    packed = PackedGradients(*gradients)
    kernels = [packed.first, *packed.hidden.unbind(0), packed.last]
    hidden, norms = packed.vectors[0], packed.vectors[1:].flatten(0, 1)
    vectors = [*hidden.unbind(0), packed.last_bias, *norms.unbind(0)]
    found = []
    for tensor, gradient in zip(weights.tensors, [*kernels, *vectors], strict=True):
        for axis, size in enumerate(tensor.shape[len(weights.lead) :], start=1):
            gradient = gradient.narrow(axis, 0, size)
        found.append(gradient.unflatten(0, weights.lead))
    return found
