r"""The backward sweep in Triton with one launch for each layer of a step, over the whole chip.

The activations of the base field at rows (k, b) are there before: of a batched pass, or of the
rollout, whose tape has other rows too. With J_k = dv_base/dX at (X_k, t_k + h) and h / (t_k + h) =
1 / (k + 1), step k is

    a_k = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

A launch computes a_{k+1} from the gradient of the first pre-activation at step k + 1 and pulls it
back to the last hidden layer at step k; `depth - 1` launches follow. Every program of a tile of
rows computes its a_{k+1} itself; that of the first features stores it. Steps take turns on two sets
of rows: what a launch reads, none beside it writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton import Pull, pull_hidden_layers, pull_norm, pulled_gradients
from trqam_fast.kernels.mlp.triton_config import config_for, step_options
from trqam_fast.kernels.mlp.triton_operands import row_scaled, to_operand
from trqam_fast.kernels.mlp.triton_pullback import finish_pull, load_pre, pull_outputs
from trqam_fast.kernels.mlp.triton_tile import (
    Tape,
    await_predecessor,
    gradients_of,
    group_of,
    member_of,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights


@triton.jit(
    do_not_specialize=[
        "tape_rows", "layer_rows", "tape_start", "start", "before", "rows", "batch", "steps", "k",
    ]
)  # fmt: skip
def sweep_step_kernel(
    weights,  # WeightPointers of S networks
    tape,  # Tape of S networks, rows (k, b) of the pass at t_k + h
    tape_rows,  # from one run of the tape to the next, K * B or more
    layer_rows,  # S * tape_rows
    tape_start,  # row of the tape at which step k begins
    grads,  # Gradients of S networks
    start,  # row of the gradients at which step k begins
    before,  # the same of step k + 1
    rows,  # rows of the gradients
    terminal,  # [S, B, D]
    adjoints,  # [S, K, B, D]
    batch,  # B
    steps,  # K
    k,  # step through which a_{k+1} is pulled, -1 after the last
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    C: tl.constexpr,
):
    """a_{k+1}, and its pullback to the last hidden layer; grid [rows, features, S]."""
    await_predecessor(C)
    tile = tl.program_id(1)
    run = tl.program_id(2)
    wide = tl.cast(run, tl.int64)
    local = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = local < batch
    net = member_of(weights, run, 0, C)
    tape = group_of(tape, run, tape_rows, layer_rows, C)
    grads = gradients_of(grads, run, tl.num_programs(2), rows, 0, C)
    dims = tl.arange(0, C.block_out)
    narrow = dims < C.dim
    inside = mask[:, None] & narrow[None, :]
    element = local[:, None] * C.dim + dims[None, :]
    begun = terminal + wide * batch * C.dim
    stored = adjoints + (wide * steps + k + 1) * batch * C.dim
    if FIRST:
        adjoint = tl.load(begun + element, mask=inside, other=0.0)
    else:
        if k + 2 == steps:
            adjoint = tl.load(begun + element, mask=inside, other=0.0)
        else:
            adjoint = tl.load(stored + batch * C.dim + element, mask=inside, other=0.0)
        pulled = zeros(C.block_m, C.block_out)
        for n in range(0, C.width, C.block_k):
            ks = n + tl.arange(0, C.block_k)
            dz_at = (before + local)[:, None] * C.width + ks[None, :]
            dz = tl.load(grads.pre + dz_at, mask=mask[:, None], other=0.0)
            w = net.w_in + (C.obs + dims)[None, :] * C.width + ks[:, None]
            w = to_operand(tl.load(w, mask=narrow[None, :], other=0.0), C)
            pulled = tl.dot(dz, w, pulled, input_precision=C.precision)
        _, scale = row_scaled(adjoint, C)  # as the launch that stored dz had it
        if C.scaled:
            pulled *= scale[:, None]
        after = tl.cast(k + 1, tl.float32)
        size = tl.cast(steps, tl.float32)
        adjoint = adjoint * (after / (after + 1.0)) + (2.0 / size) * pulled
        tl.store(stored + element, adjoint, mask=inside & (tile == 0))
    if not LAST:
        cotangent, scale = row_scaled(adjoint, C)
        z = load_pre(tape, tape_start + local, mask, tile, C.depth - 1, C)
        dy = pull_outputs(cotangent, net, tile, C)
        row = start + local
        finish_pull(dy, z, scale, grads, row, mask, grads.sums, tile, C.depth - 1, C)


def rows_apart(parts: Sequence[Tensor]) -> int | None:
    """Return the rows from one run of a tape to the next; None where its parts differ in them."""
    rows = parts[1].stride(1) // parts[1].shape[-1]  # of the layers' outputs, which it always has
    for part in parts:
        row = math.prod(part.shape[3:])
        strides = (part.shape[1] * rows * row, rows * row, row, 1)[: part.dim()]
        if part.numel() and part.stride() != strides:
            return None
    return rows


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    tape: Sequence[Tensor],
    precision: str,
    *,
    dependent: bool = False,
) -> Tensor:
    """Return a_0..a_{K-1}, `[S, K, B, D]`, of contiguous data and the tape."""
    runs, points, batch, dim = trajectory.shape
    steps = points - 1
    *parts, operands = tape
    tape_rows = rows_apart(parts)
    if tape_rows is None:
        parts, tape_rows = [part.contiguous() for part in parts], steps * batch
    tape = Tape(*parts)
    config = config_for(
        base_velocity, observations, trajectory, precision, train=False, dependent=dependent
    )
    rows = 2 * batch
    grads = pulled_gradients(config, runs, rows, 0, trajectory)
    adjoints = trajectory.new_empty(runs, steps, batch, dim)
    tiles = triton.cdiv(batch, config.block_m)
    with torch.cuda.device_of(trajectory):
        weights = weight_pointers(base_velocity, config, operands)
        for i in range(steps + 1):
            k, first, last = steps - 1 - i, i == 0, i == steps
            start = i % 2 * batch
            # Its last place, of y, is not written without `train`.
            pull = Pull(tape, tape_rows, k * batch, grads, start, batch, rows, grads.dy)
            sweep_step_kernel[(tiles, 1 if last else config.width // config.block_n, runs)](
                weights, tape, pull.tape_rows, runs * pull.tape_rows, pull.tape_start, grads, start,
                batch - start, rows, terminal_adjoint, adjoints, batch, steps, k, first, last,
                config, **step_options(precision, config),
            )  # fmt: skip
            if not last:
                pull_norm(weights, pull, runs, config.depth - 1, config, precision)
                pull_hidden_layers(weights, pull, runs, config, precision)
    return adjoints
