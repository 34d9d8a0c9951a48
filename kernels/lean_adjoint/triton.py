r"""The whole backward sweep as one Triton kernel, after one batched pass of the base field.

A program owns a tile of rows of one run for all K steps. With J_k = dv_base/dX at (X_k, t_k + h)
and h / (t_k + h) = 1 / (k + 1), step k is

    a_k = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

where J_k^T is the pullback through the activations that the batched pass stored for rows (k, b).
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.triton import Inputs, forward_pass
from trqam_fast.kernels.mlp.triton_config import Gradients
from trqam_fast.kernels.mlp.triton_tile import group_of, input_gradient, member_of, pullback, zeros
from trqam_fast.kernels.mlp.triton_weights import (
    launch_options,
    make_network,
    make_plan,
    operand_dtype,
)


@triton.jit(do_not_specialize=["rows", "layer_rows", "batch", "steps"])
def lean_adjoint_kernel(
    net, tape, rows, layer_rows, grads, terminal, adjoints, batch, steps, P: tl.constexpr
):
    """Grid [tiles, S]."""
    run = tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    row = tl.program_id(0) * P.block_m + tl.arange(0, P.block_m)
    mask = row < batch
    net = member_of(net, run, 0, P)
    tape = group_of(tape, run, rows, layer_rows, P)
    grads = Gradients(
        grads.pre + wide * batch * P.width,
        grads.normed + wide * batch * P.width,
        grads.sums,
        tl.cast(grads.stride, tl.int64),
        grads.sum_stride,
    )
    dims = tl.arange(0, P.block_out)
    narrow = dims < P.dim
    inside = mask[:, None] & narrow[None, :]
    element = row[:, None] * P.dim + dims[None, :]
    adjoint = tl.load(terminal + wide * batch * P.dim + element, mask=inside, other=0.0)
    size = tl.cast(steps, tl.float32)
    for i in range(steps):
        k = steps - 1 - i
        pullback(adjoint, net, tape, grads, k * batch + row, row, mask, P)
        pulled = zeros(P.block_m, P.block_out)
        pulled = input_gradient(net, grads, row, mask, P.obs + dims, narrow, pulled, P)
        kept = tl.cast(k, tl.float32)
        adjoint = adjoint * (kept / (kept + 1.0)) + (2.0 / size) * pulled
        at = (wide * steps + k) * batch * P.dim
        tl.store(adjoints + at + element, adjoint, mask=inside)
        # The next step writes where this one's first gradient was just read.
        tl.debug_barrier()


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}, `[S, K, B, D]`, of contiguous data; two launches."""
    runs, points, batch, dim = trajectory.shape
    steps = points - 1
    plan = make_plan(
        base_velocity, precision, obs=observations.shape[-1], dim=dim, time=1, train=True
    )
    inputs = Inputs(observations, trajectory, steps, 1)
    _, tape = forward_pass(base_velocity, inputs, plan, precision)
    sweep = dataclasses.replace(plan, train=False)
    new = trajectory.new_empty
    grads = Gradients(
        new(2, runs, batch, plan.width, dtype=operand_dtype(plan)),
        new(runs if plan.norm else 0, batch, plan.width),
        new(0),
        runs * batch * plan.width,
        0,
    )
    adjoints = new(runs, steps, batch, dim)
    # Read K times by every program: worth a copy in the operand's type.
    network = make_network(base_velocity, plan, operand_dtype(plan))
    with torch.cuda.device_of(trajectory):
        lean_adjoint_kernel[(triton.cdiv(batch, plan.block_m), runs)](
            network, tape, steps * batch, runs * steps * batch, grads, terminal_adjoint, adjoints,
            batch, steps, sweep,
            **launch_options(precision),
        )  # fmt: skip
    return adjoints
