"""The whole rollout as one Triton kernel: K steps of the SDE and of the ODE, one launch.

A program owns a tile of rows of one run for all K steps. Rows of both kinds share the grid; they
differ in three coefficients of the step

    x <- c_x x + c_v v + c_eps eps,    SDE: 1 - 1/(k+1), 2h, sqrt(h) g_k    ODE: 1, h, 0

(h / (t_k + h) = 1 / (k + 1) and h g_k^2 = 2 (K - k + 1) / (K (k + 1)) exactly), and in the last
step of the SDE, which follows the base field.
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.triton import check_size, config_for, empty_tape
from trqam_fast.kernels.mlp.triton_config import KernelConfig, launch_options, operand_dtype
from trqam_fast.kernels.mlp.triton_tile import (
    Tape,
    TileInputs,
    forward,
    group_of,
    observation_share,
)
from trqam_fast.kernels.mlp.triton_weights import WeightPointers, pack
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.sde_rollout.inputs import RolloutInputs


@triton.jit
def packed_network(kernels, vectors, C: tl.constexpr):
    """Return the network of one run from its packed kernels and vectors."""
    return WeightPointers(
        kernels,
        kernels + C.kernel_offsets[0],
        kernels + C.kernel_offsets[1],
        vectors,
        vectors + C.vector_offsets[0],
        vectors + C.vector_offsets[1],
        vectors + C.vector_offsets[2],
        C.kernel_offsets[2],
        C.vector_offsets[3],
    )


@triton.jit(do_not_specialize=["rows", "layer_rows", "batch", "ode_batch", "steps", "tiles"])
def sde_rollout_kernel(
    kernels,  # [2, S, kernels of a run]: the field's and the base field's, packed
    vectors,  # [2, S, vectors of a run]
    tape,  # Tape of S networks
    rows,  # rows of the tape
    layer_rows,  # S * rows
    share,  # [2, S, B + N, width]: scratch for the observations' share of the first layer
    observations,  # [S, B, O]
    x0,  # [S, B, D]
    noise,  # [S, K - 1, B, D]
    trajectory,  # [S, K + 1, B, D]
    velocity,  # [S, K, B, D]
    ode_observations,  # [S, N, O]
    ode_x0,  # [S, N, D]
    ode_x,  # [S, N, D]
    batch,  # B
    ode_batch,  # N
    steps,  # K
    tiles,  # tiles of the B rows
    C: tl.constexpr,
):
    """Grid [SDE tiles + ODE tiles, S]; the first `tiles` are those of the SDE.

    The tape's rows are K * B of the SDE (B without `train`), with `train` another B for the base
    field's pass, and those of the ODE, which are written anew at every step.
    """
    run = tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    ode = tl.program_id(0) >= tiles
    tile = tl.where(ode, tl.program_id(0) - tiles, tl.program_id(0))
    row = tile * C.block_m + tl.arange(0, C.block_m)
    kept = (steps + 1) * batch if C.train else batch
    tape = group_of(tape, run, rows, layer_rows, C)
    kernels += wide * C.kernel_offsets[2]
    vectors += wide * C.vector_offsets[3]
    runs = tl.cast(tl.num_programs(1), tl.int64)
    kernel_step = runs * C.kernel_offsets[2]
    vector_step = runs * C.vector_offsets[3]
    if ode:
        count = ode_batch
        obs = ode_observations + wide * ode_batch * C.obs
        start = ode_x0 + wide * ode_batch * C.dim
        at_x = ode_x + wide * ode_batch * C.dim
    else:
        count = batch
        obs = observations + wide * batch * C.obs
        start = x0 + wide * batch * C.dim
        at_x = trajectory + wide * (steps + 1) * batch * C.dim
    share += (wide * (batch + ode_batch) + tl.where(ode, batch, 0)) * C.width
    velocity += wide * steps * batch * C.dim
    noise += wide * (steps - 1) * batch * C.dim
    x_step = tl.where(ode, 0, batch * C.dim)
    tape_row = row + tl.where(ode, kept, 0)
    tape_step = tl.where(ode, 0, batch) if C.train else 0
    mask = row < count
    dims = tl.arange(0, C.block_out)
    inside = mask[:, None] & (dims < C.dim)[None, :]
    element = row[:, None] * C.dim + dims[None, :]
    tl.store(at_x + element, tl.load(start + element, mask=inside, other=0.0), mask=inside)
    size = tl.cast(steps, tl.float32)
    share_rows = tl.cast(batch + ode_batch, tl.int64)
    share_step = tl.where(ode, 0, tl.num_programs(1) * share_rows * C.width)
    for i in range(tl.where(ode, 1, 2)):
        net = packed_network(kernels + i * kernel_step, vectors + i * vector_step, C)
        source = TileInputs(obs, at_x, row, row, 0.0, mask)
        observation_share(source, net, C, share + i * share_step)
    # One more pass for rows of the SDE: iteration K redoes step K - 1 with the base field.
    for i in range(tl.where(ode, steps, steps + 1)):
        tl.debug_barrier()
        k = tl.minimum(i, steps - 1)
        at_base = i == steps
        field = tl.where(at_base, 1, 0)
        net = packed_network(kernels + field * kernel_step, vectors + field * vector_step, C)
        time = tl.div_rn(tl.cast(k, tl.float32), size)
        # Offsets that change with the step keep the compiler from holding whole tiles of
        # addresses in registers across the layers; x is reloaded for the same reason.
        here = element + k * x_step
        source = TileInputs(
            share + tl.where(at_base, share_step, 0), at_x + k * x_step, row, row, time, mask
        )
        v = forward(source, net, tape, tape_row + i * tape_step, True, C)
        x = tl.load(at_x + here, mask=inside, other=0.0)
        euler = x + v / size
        if ode:
            tl.store(at_x + here, euler, mask=inside)
        elif at_base:
            tl.store(at_x + here + x_step, euler, mask=inside)
        else:
            tl.store(velocity + here, v, mask=inside)
            if k < steps - 1:
                eps = tl.load(noise + here, mask=inside, other=0.0)
                after = tl.cast(k + 1, tl.float32)
                diffusion = tl.sqrt(2.0 * (size - after + 2.0) / (size * after))
                x = x * (1.0 - 1.0 / after) + (2.0 / size) * v + diffusion * eps
                tl.store(at_x + here + x_step, x, mask=inside)


def rollout_config(
    velocity: MLPWeights, observations: Tensor, x0: Tensor, precision: str, train: bool
) -> KernelConfig:
    """Return the config of a rollout."""
    config = config_for(velocity, observations, x0, precision, train=train)
    return dataclasses.replace(config, k_major=True)


def rollout_tape(velocity: MLPWeights, inputs: RolloutInputs, precision: str, train: bool) -> Tape:
    """Return the uninitialised tape of a rollout, rows in the order of `sde_rollout_kernel`."""
    config = rollout_config(velocity, inputs.observations, inputs.x0, precision, train)
    runs, batch, _ = inputs.x0.shape
    rows = ((inputs.flow_steps + 1) * batch if train else batch) + inputs.ode_x0.shape[1]
    return empty_tape(config, runs, rows, inputs.x0)


def sde_rollout(
    velocity: MLPWeights, base: MLPWeights, inputs: RolloutInputs, precision: str, *, train: bool
) -> tuple[Tensor, Tensor, Tensor, Tape]:
    """Launch the kernel on contiguous data; either kind may have no rows.

    Returns:
        Trajectory `[S, K + 1, B, D]`, velocities `[S, K, B, D]`, X_K of the ODE's rows
        `[S, N, D]`, and the tape, whose first K * B rows are those of the velocities.
    """
    x0, flow_steps = inputs.x0, inputs.flow_steps
    runs, batch, dim = x0.shape
    ode_batch = inputs.ode_x0.shape[1]
    config = rollout_config(velocity, inputs.observations, x0, precision, train)
    tape = rollout_tape(velocity, inputs, precision, train)
    rows = tape.out.shape[2]
    check_size(config, rows)
    check_size(config, (flow_steps + 1) * batch)
    share = x0.new_empty(2, runs, batch + ode_batch, config.width)
    trajectory = x0.new_empty(runs, flow_steps + 1, batch, dim)
    velocities = x0.new_empty(runs, flow_steps, batch, dim)
    ode_x = torch.empty_like(inputs.ode_x0)
    tiles = triton.cdiv(batch, config.block_m)
    kernels, vectors = pack([velocity, base], config, operand_dtype(config))
    with torch.cuda.device_of(x0):
        sde_rollout_kernel[(tiles + triton.cdiv(ode_batch, config.block_m), runs)](
            kernels,
            vectors,
            tape,
            rows,
            runs * rows,
            share,
            inputs.observations,
            x0,
            inputs.noise,
            trajectory,
            velocities,
            inputs.ode_observations,
            inputs.ode_x0,
            ode_x,
            batch,
            ode_batch,
            flow_steps,
            tiles,
            config,
            **launch_options(precision),
        )
    return trajectory, velocities, ode_x, tape
