r"""The whole backward sweep as one Triton kernel, after one batched pass of the base field.

A program owns a tile of rows of one run for all K steps. With J_k = dv_base/dX at (X_k, t_k + h)
and h / (t_k + h) = 1 / (k + 1), step k is

    a_k = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

where J_k^T is the pullback through the activations that the batched pass stored for rows (k, b).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton import config_for, pulled_gradients
from trqam_fast.kernels.mlp.triton_config import launch_options, operand_dtype
from trqam_fast.kernels.mlp.triton_tile import (
    Tape,
    gradients_of,
    group_of,
    input_gradient,
    member_of,
    pullback,
    zeros,
)
from trqam_fast.kernels.mlp.triton_weights import weight_pointers
from trqam_fast.kernels.mlp.weights import MLPWeights


@triton.jit(do_not_specialize=["rows", "layer_rows", "batch", "steps"])
def lean_adjoint_kernel(
    net,  # WeightPointers of S networks
    tape,  # Tape of S networks, rows (k, b) of the pass at t_k + h
    rows,  # K * B
    layer_rows,  # S * K * B
    grads,  # Gradients of S networks, B rows
    terminal,  # [S, B, D]
    adjoints,  # [S, K, B, D]
    batch,  # B
    steps,  # K
    C: tl.constexpr,
):
    """Grid [tiles, S]."""
    run = tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    row = tl.program_id(0) * C.block_m + tl.arange(0, C.block_m)
    mask = row < batch
    net = member_of(net, run, 0, C)
    tape = group_of(tape, run, rows, layer_rows, C)
    grads = gradients_of(grads, run, tl.num_programs(1), batch, 0, C)
    dims = tl.arange(0, C.block_out)
    narrow = dims < C.dim
    inside = mask[:, None] & narrow[None, :]
    element = row[:, None] * C.dim + dims[None, :]
    adjoint = tl.load(terminal + wide * batch * C.dim + element, mask=inside, other=0.0)
    size = tl.cast(steps, tl.float32)
    for i in range(steps):
        k = steps - 1 - i
        pullback(adjoint, net, tape, grads, k * batch + row, row, mask, C)
        pulled = zeros(C.block_m, C.block_out)
        pulled = input_gradient(net, grads, row, mask, C.obs + dims, narrow, pulled, C)
        kept = tl.cast(k, tl.float32)
        adjoint = adjoint * (kept / (kept + 1.0)) + (2.0 / size) * pulled
        at = (wide * steps + k) * batch * C.dim
        tl.store(adjoints + at + element, adjoint, mask=inside)
        # The next step writes where this one's first gradient was just read.
        tl.debug_barrier()


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    tape: Sequence[Tensor],
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}, `[S, K, B, D]`, of contiguous data; one launch."""
    runs, points, batch, dim = trajectory.shape
    steps = points - 1
    tape = Tape(*tape)
    config = config_for(base_velocity, observations, trajectory, precision, train=False)
    grads = pulled_gradients(config, runs, batch, 0, trajectory)
    adjoints = trajectory.new_empty(runs, steps, batch, dim)
    # Read K times by every program: worth a copy in the operand's type.
    network = weight_pointers(base_velocity, config, operand_dtype(config))
    with torch.cuda.device_of(trajectory):
        lean_adjoint_kernel[(triton.cdiv(batch, config.block_m), runs)](
            network,
            tape,
            steps * batch,
            runs * steps * batch,
            grads,
            terminal_adjoint,
            adjoints,
            batch,
            steps,
            config,
            **launch_options(precision),
        )
    return adjoints
