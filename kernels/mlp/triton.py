"""Triton kernels of the stacked MLP: forward, pullback and weight gradients, one launch each."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton_config import Gradients, Plan, Source, Tape
from trqam_fast.kernels.mlp.triton_tile import (
    forward,
    group_of,
    input_gradient,
    load_inputs,
    member_of,
    pullback,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import launch_options, make_network, operand_dtype
from trqam_fast.kernels.mlp.weights import MLPWeights


class Inputs(NamedTuple):
    """Inputs `[s, x, t]` of rows (k, b), k < K: three parts that are never concatenated.

    Attributes:
        observations: s, `[S, B, O]`, shared by the K steps and the members.
        x: x, `[S, >= K, B, D]`; a tensor of any kind where the plan's `dim` is 0.
        steps: K; t_k = (k + shift) / K.
        shift: 0 or 1.
    """

    observations: Tensor
    x: Tensor
    steps: int = 1
    shift: int = 0


@triton.jit
def source_of(observations, x, x_stride, run, row, batch, rows, steps, shift, P: tl.constexpr):
    """Return where the rows (k, b) of a run find their inputs."""
    step = row // batch
    wide = tl.cast(run, tl.int64)
    time = tl.div_rn((step + shift).to(tl.float32), tl.cast(steps, tl.float32))
    return Source(
        observations + wide * batch * P.obs, x + wide * x_stride, row % batch, row, time, row < rows
    )


@triton.jit(do_not_specialize=["x_stride", "layer_rows", "batch", "rows", "steps", "shift"])
def mlp_forward_kernel(
    net, observations, x, x_stride, tape, layer_rows, result, batch, rows, steps, shift,
    P: tl.constexpr,
):  # fmt: skip
    """Rows of a tile through one network; grid [tiles, G]."""
    group = tl.program_id(1)
    run = group // P.ensemble
    row = tl.program_id(0) * P.block_m + tl.arange(0, P.block_m)
    net = member_of(net, run, group % P.ensemble, P)
    tape = group_of(tape, group, rows, layer_rows, P)
    source = source_of(observations, x, x_stride, run, row, batch, rows, steps, shift, P)
    value = forward(source, net, tape, row, False, P)
    outs = tl.arange(0, P.block_out)
    at = tl.cast(group, tl.int64) * rows * P.out + row[:, None] * P.out + outs[None, :]
    tl.store(result + at, value, mask=source.mask[:, None] & (outs < P.out)[None, :])


@triton.jit(do_not_specialize=["tape_rows", "layer_rows", "rows"])
def mlp_pullback_kernel(
    net, tape, tape_rows, layer_rows, grads, cotangent, d_inputs, rows,
    INPUTS: tl.constexpr, BLOCK_IN: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Cotangent of a tile to all pre-activations, and to the inputs; grid [tiles, G]."""
    group = tl.program_id(1)
    tile = tl.program_id(0)
    row = tile * P.block_m + tl.arange(0, P.block_m)
    mask = row < rows
    net = member_of(net, group // P.ensemble, group % P.ensemble, P)
    tape = group_of(tape, group, tape_rows, layer_rows, P)
    wide = tl.cast(group, tl.int64)
    groups = tl.num_programs(1)
    grads = Gradients(
        grads.pre + wide * rows * P.width,
        grads.normed + wide * rows * P.width,
        grads.sums + (tl.cast(tile, tl.int64) * groups + group) * P.width,
        tl.cast(grads.stride, tl.int64),
        tl.cast(grads.sum_stride, tl.int64),
    )
    outs = tl.arange(0, P.block_out)
    at = wide * rows * P.out + row[:, None] * P.out + outs[None, :]
    given = tl.load(cotangent + at, mask=mask[:, None] & (outs < P.out)[None, :], other=0.0)
    pullback(given, net, tape, grads, row, row, mask, P)
    if INPUTS:
        for n in range(0, P.inputs, BLOCK_IN):
            ks = n + tl.arange(0, BLOCK_IN)
            acc = zeros(P.block_m, BLOCK_IN)
            acc = input_gradient(net, grads, row, mask, ks, ks < P.inputs, acc, P)
            into = d_inputs + wide * rows * P.inputs + row[:, None] * P.inputs + ks[None, :]
            tl.store(into, acc, mask=mask[:, None] & (ks < P.inputs)[None, :])


@triton.jit
def input_kernel_block(
    observations, x, x_stride, right, into, ins, outs, run, batch, rows, steps, shift,
    P: tl.constexpr,
):  # fmt: skip
    """Block of the first kernel's gradient: inputs^T dz_0 over all rows."""
    acc = zeros(P.block_w, P.block_w)
    for r in range(0, rows, P.block_k):
        row = r + tl.arange(0, P.block_k)
        source = source_of(observations, x, x_stride, run, row, batch, rows, steps, shift, P)
        left = load_inputs(source, ins, P).to(P.operand)
        at = row[:, None] * P.width + outs[None, :]
        dz = tl.load(right + at, mask=source.mask[:, None], other=0.0)
        acc = tl.dot(tl.trans(left), dz, acc, input_precision=P.precision)
    at = ins[:, None] * P.width + outs[None, :]
    tl.store(into + at, acc, mask=(ins < P.inputs)[:, None])


@triton.jit
def kernel_block(
    left, right, into, ins, outs, rows,
    OUT: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Block of another kernel's gradient, y^T dz over all rows, for `OUT` columns of dz."""
    acc = zeros(P.block_w, P.block_w)
    narrow = (outs < OUT)[None, :]
    for r in range(0, rows, P.block_k):
        row = r + tl.arange(0, P.block_k)
        mask = (row < rows)[:, None]
        y = tl.load(left + row[:, None] * P.width + ins[None, :], mask=mask, other=0.0)
        dz = tl.load(right + row[:, None] * OUT + outs[None, :], mask=mask & narrow, other=0.0)
        acc = tl.dot(tl.trans(y), dz.to(P.operand), acc, input_precision=P.precision)
    tl.store(into + ins[:, None] * OUT + outs[None, :], acc, mask=narrow)


@triton.jit(
    do_not_specialize=["x_stride", "tape_rows", "layer_rows", "batch", "rows", "steps", "shift"]
)
def weight_gradient_kernel(
    observations, x, x_stride, tape, tape_rows, layer_rows, grads, cotangent,
    d_in, d_hid, d_out,
    batch, rows, steps, shift,
    P: tl.constexpr,
):  # fmt: skip
    """Blocks of all kernels' gradients, numbered first, hidden, last; grid [blocks, G]."""
    group = tl.program_id(1)
    wide = tl.cast(group, tl.int64)
    tape = group_of(tape, group, tape_rows, layer_rows, P)
    pre = grads.pre + wide * rows * P.width
    across: tl.constexpr = P.width // P.block_w
    across_out: tl.constexpr = (P.out + P.block_w - 1) // P.block_w
    in_blocks: tl.constexpr = (P.inputs + P.block_w - 1) // P.block_w * across
    hidden_blocks: tl.constexpr = (P.depth - 1) * across * across
    inner = tl.arange(0, P.block_w)
    block = tl.program_id(0)
    if block < in_blocks:
        input_kernel_block(
            observations, x, x_stride, pre, d_in + wide * P.inputs * P.width,
            block // across * P.block_w + inner, block % across * P.block_w + inner,
            group // P.ensemble, batch, rows, steps, shift, P,
        )  # fmt: skip
    elif block < in_blocks + hidden_blocks:
        within = block - in_blocks
        index = tl.cast(within // (across * across), tl.int64)
        kernel_block(
            tape.out + index * tape.stride, pre + (index + 1) * grads.stride,
            d_hid + (index * tl.num_programs(1) + group) * (P.width * P.width),
            within // across % across * P.block_w + inner, within % across * P.block_w + inner,
            rows, P.width, P,
        )  # fmt: skip
    else:
        within = block - in_blocks - hidden_blocks
        last = tape.out + (P.depth - 1) * tape.stride
        kernel_block(
            last, cotangent + wide * rows * P.out, d_out + wide * P.width * P.out,
            within // across_out * P.block_w + inner, within % across_out * P.block_w + inner,
            rows, P.out, P,
        )  # fmt: skip


def check_size(plan: Plan, rows: int) -> None:
    """Raise ValueError if offsets within one network's rows would not fit in 32 bits."""
    widest = max(plan.width, plan.inputs, plan.block_out)
    if rows * widest >= 2**31:
        raise ValueError(
            f"{rows} rows of {widest} columns exceed the 2^31 elements that a Triton program "
            "addresses; split the batch"
        )


def empty_tape(plan: Plan, groups: int, rows: int, like: Tensor) -> Tape:
    """Return an uninitialised tape for `rows` rows of `groups` networks."""
    pre_layers = plan.depth if plan.train else int(plan.norm)
    out_layers = plan.depth if plan.train else 2
    stats = plan.depth if plan.train and plan.norm else 0
    return Tape(
        like.new_empty(pre_layers, groups, rows, plan.width),
        like.new_empty(out_layers, groups, rows, plan.width, dtype=operand_dtype(plan)),
        like.new_empty(stats, groups, rows),
        like.new_empty(stats, groups, rows),
    )


def forward_pass(
    weights: MLPWeights, inputs: Inputs, plan: Plan, precision: str
) -> tuple[Tensor, Tape]:
    """Return the outputs `[G, K * B, out]` and the tape."""
    runs, batch, _ = inputs.observations.shape
    groups, rows = runs * plan.ensemble, inputs.steps * batch
    check_size(plan, rows)
    result = inputs.observations.new_empty(groups, rows, plan.out)
    tape = empty_tape(plan, groups, rows, result)
    with torch.cuda.device_of(result):
        mlp_forward_kernel[(triton.cdiv(rows, plan.block_m), groups)](
            make_network(weights, plan), inputs.observations, inputs.x, inputs.x.stride(0), tape,
            groups * rows, result, batch, rows, inputs.steps, inputs.shift, plan,
            **launch_options(precision),
        )  # fmt: skip
    return result, tape


def backward_pass(
    weights: MLPWeights,
    inputs: Inputs,
    tape: Tape,
    cotangent: Tensor,
    plan: Plan,
    precision: str,
    *,
    want_inputs: bool,
    want_weights: bool,
) -> tuple[Tensor, ...]:
    """Return the gradients of the inputs, of the kernels and of the vectors.

    Returns:
        Inputs `[G, K * B, in]`; first kernels `[G, in, width]`, hidden ones
        `[depth - 1, G, width, width]` and last ones `[G, width, out]`; sums over the rows
        `[1 or 3, depth, G, width]`: of hidden biases, scales and shifts; output biases `[G, out]`.
        What is not wanted is empty.
    """
    groups, rows = cotangent.shape[:2]
    tape_rows = tape.pre.shape[2]
    layer_rows = groups * tape_rows
    width, depth = plan.width, plan.depth
    tiles = triton.cdiv(rows, plan.block_m)
    new = cotangent.new_empty
    grads = Gradients(
        new(depth if want_weights else 2, groups, rows, width, dtype=operand_dtype(plan)),
        new(groups if plan.norm else 0, rows, width),
        new(vector_kinds(plan, want_weights), depth, tiles, groups, width),
        groups * rows * width,
        tiles * groups * width,
    )
    d_inputs, d_in, d_hid, d_out = empty_gradients(
        plan, groups, rows, cotangent, want_inputs, want_weights
    )
    block_in = min(64, triton.next_power_of_2(max(plan.inputs, 16)))
    with torch.cuda.device_of(cotangent):
        mlp_pullback_kernel[(tiles, groups)](
            make_network(weights, plan), tape, tape_rows, layer_rows, grads, cotangent, d_inputs,
            rows, want_inputs, block_in, dataclasses.replace(plan, train=want_weights),
            **launch_options(precision),
        )  # fmt: skip
    if want_weights:
        across = width // plan.block_w
        blocks = triton.cdiv(plan.inputs, plan.block_w) * across + (depth - 1) * across**2
        blocks += across * triton.cdiv(plan.out, plan.block_w)
        with torch.cuda.device_of(cotangent):
            weight_gradient_kernel[(blocks, groups)](
                inputs.observations, inputs.x, inputs.x.stride(0), tape, tape_rows, layer_rows,
                grads, cotangent, d_in, d_hid, d_out, inputs.observations.shape[1], rows,
                inputs.steps, inputs.shift, plan, **launch_options(precision),
            )  # fmt: skip
        return d_inputs, d_in, d_hid, d_out, grads.sums.sum(2), cotangent.sum(1)
    return d_inputs, d_in, d_hid, d_out, new(0, depth, groups, width), new(0, plan.out)


def vector_kinds(plan: Plan, want_weights: bool) -> int:
    """Return the kinds of vectors with gradients: hidden biases, and scales and shifts if any."""
    if not want_weights:
        return 0
    return 3 if plan.norm else 1


def empty_gradients(
    plan: Plan, groups: int, rows: int, like: Tensor, want_inputs: bool, want_weights: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return uninitialised gradients of the inputs and of the three kinds of kernels."""
    wanted = groups if want_weights else 0
    return (
        like.new_empty(groups if want_inputs else 0, rows, plan.inputs),
        like.new_empty(wanted, plan.inputs, plan.width),
        like.new_empty(plan.depth - 1, wanted, plan.width, plan.width),
        like.new_empty(wanted, plan.width, plan.out),
    )
