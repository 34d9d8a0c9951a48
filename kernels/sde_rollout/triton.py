"""The whole rollout as one Triton kernel: K steps of the SDE and of the ODE, one launch.

A program owns a tile of rows of one run for all K steps. Rows of both kinds share the grid; they
differ in three coefficients of the step

    x <- c_x x + c_v v + c_eps eps,    SDE: 1 - 1/(k+1), 2h, sqrt(h) g_k    ODE: 1, h, 0

(h / (t_k + h) = 1 / (k + 1) and h g_k^2 = 2 (K - k + 1) / (K (k + 1)) exactly), and in the last
step of the SDE, which follows the base field.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.triton import check_size, empty_tape
from trqam_fast.kernels.mlp.triton_config import Network, Plan, Source, Tape
from trqam_fast.kernels.mlp.triton_tile import forward, group_of, observation_share
from trqam_fast.kernels.mlp.triton_weights import launch_options, make_plan, operand_dtype, pack
from trqam_fast.kernels.philox import Philox


@triton.jit
def uniform(bits):
    """Map 32-bit numbers to (0, 1]; see `trqam_fast.kernels.philox.uniform`."""
    return ((bits >> 8).to(tl.float32) + 0.5) * 5.9604644775390625e-08


@triton.jit
def philox_noise(seed, offset, step, element):
    """Standard normal numbers; see `trqam_fast.kernels.philox.philox_normal`."""
    zero = element * 0
    first, second, _, _ = tl.philox(seed, element, zero + step, zero + offset.to(tl.int32), zero)
    radius = tl.sqrt(-2.0 * tl.log(uniform(first)))
    return radius * tl.cos(6.283185307179586 * uniform(second))


@triton.jit
def packed_network(kernels, vectors, P: tl.constexpr):
    """Return the network of one run from its packed kernels and vectors."""
    return Network(
        kernels,
        kernels + P.kernel_offsets[0],
        kernels + P.kernel_offsets[1],
        vectors,
        vectors + P.vector_offsets[0],
        vectors + P.vector_offsets[1],
        vectors + P.vector_offsets[2],
        P.kernel_offsets[2],
        P.vector_offsets[3],
    )


@triton.jit(do_not_specialize=["rows", "layer_rows", "batch", "ode_batch", "steps", "tiles"])
def sde_rollout_kernel(
    kernels, vectors, tape, rows, layer_rows, share, observations, x0, noise, seeds, offset,
    trajectory, velocity, ode_observations, ode_x0, ode_x, batch, ode_batch, steps, tiles,
    PHILOX: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Grid [SDE tiles + ODE tiles, S]; the first `tiles` are those of the SDE.

    The tape's rows are K * B of the SDE (B without `train`), with `train` another B for the base
    field's pass, and those of the ODE, which are written anew at every step.
    """
    run = tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    ode = tl.program_id(0) >= tiles
    tile = tl.where(ode, tl.program_id(0) - tiles, tl.program_id(0))
    row = tile * P.block_m + tl.arange(0, P.block_m)
    kept = (steps + 1) * batch if P.train else batch
    tape = group_of(tape, run, rows, layer_rows, P)
    kernels += wide * P.kernel_offsets[2]
    vectors += wide * P.vector_offsets[3]
    runs = tl.cast(tl.num_programs(1), tl.int64)
    kernel_step = runs * P.kernel_offsets[2]
    vector_step = runs * P.vector_offsets[3]
    if ode:
        count = ode_batch
        obs = ode_observations + wide * ode_batch * P.obs
        start = ode_x0 + wide * ode_batch * P.dim
        at_x = ode_x + wide * ode_batch * P.dim
    else:
        count = batch
        obs = observations + wide * batch * P.obs
        start = x0 + wide * batch * P.dim
        at_x = trajectory + wide * (steps + 1) * batch * P.dim
    share += (wide * (batch + ode_batch) + tl.where(ode, batch, 0)) * P.width
    velocity += wide * steps * batch * P.dim
    if not PHILOX:
        noise += wide * (steps - 1) * batch * P.dim
    x_step = tl.where(ode, 0, batch * P.dim)
    tape_row = row + tl.where(ode, kept, 0)
    tape_step = tl.where(ode, 0, batch) if P.train else 0
    mask = row < count
    dims = tl.arange(0, P.block_out)
    inside = mask[:, None] & (dims < P.dim)[None, :]
    element = row[:, None] * P.dim + dims[None, :]
    tl.store(at_x + element, tl.load(start + element, mask=inside, other=0.0), mask=inside)
    size = tl.cast(steps, tl.float32)
    share_rows = tl.cast(batch + ode_batch, tl.int64)
    share_step = tl.where(ode, 0, tl.num_programs(1) * share_rows * P.width)
    for i in range(tl.where(ode, 1, 2)):
        net = packed_network(kernels + i * kernel_step, vectors + i * vector_step, P)
        source = Source(obs, at_x, row, row, 0.0, mask)
        observation_share(source, net, P, share + i * share_step)
    # One more pass for rows of the SDE: iteration K redoes step K - 1 with the base field.
    for i in range(tl.where(ode, steps, steps + 1)):
        tl.debug_barrier()
        k = tl.minimum(i, steps - 1)
        at_base = i == steps
        field = tl.where(at_base, 1, 0)
        net = packed_network(kernels + field * kernel_step, vectors + field * vector_step, P)
        time = tl.div_rn(tl.cast(k, tl.float32), size)
        # Offsets that change with the step keep the compiler from holding whole tiles of
        # addresses in registers across the layers; x is reloaded for the same reason.
        here = element + k * x_step
        source = Source(
            share + tl.where(at_base, share_step, 0), at_x + k * x_step, row, row, time, mask
        )
        v = forward(source, net, tape, tape_row + i * tape_step, True, P)
        x = tl.load(at_x + here, mask=inside, other=0.0)
        euler = x + v / size
        if ode:
            tl.store(at_x + here, euler, mask=inside)
        elif at_base:
            tl.store(at_x + here + x_step, euler, mask=inside)
        else:
            tl.store(velocity + here, v, mask=inside)
            if k < steps - 1:
                if PHILOX:
                    eps = philox_noise(tl.load(seeds + run), tl.load(offset), k, element)
                else:
                    eps = tl.load(noise + here, mask=inside, other=0.0)
                after = tl.cast(k + 1, tl.float32)
                diffusion = tl.sqrt(2.0 * (size - after + 2.0) / (size * after))
                x = x * (1.0 - 1.0 / after) + (2.0 / size) * v + diffusion * eps
                tl.store(at_x + here + x_step, x, mask=inside)


def rollout_plan(
    velocity: MLPWeights, observations: Tensor, x0: Tensor, precision: str, train: bool
) -> Plan:
    """Return the plan of a rollout."""
    obs, dim = observations.shape[-1], x0.shape[-1]
    return make_plan(velocity, precision, obs=obs, dim=dim, time=1, train=train, k_major=True)


def tape_rows(batch: int, ode_batch: int, flow_steps: int, train: bool) -> int:
    """Return the rows of a rollout's tape, in the order of `sde_rollout_kernel`."""
    return ((flow_steps + 1) * batch if train else batch) + ode_batch


def rollout(
    velocity: MLPWeights,
    base: MLPWeights,
    observations: Tensor,
    x0: Tensor,
    noise: Tensor | Philox,
    ode_observations: Tensor,
    ode_x0: Tensor,
    flow_steps: int,
    precision: str,
    *,
    train: bool,
) -> tuple[Tensor, Tensor, Tensor, Tape]:
    """Launch the kernel on contiguous data; either kind may have no rows.

    Returns:
        Trajectory `[S, K + 1, B, D]`, velocities `[S, K, B, D]`, X_K of the ODE's rows
        `[S, N, D]`, and the tape, whose first K * B rows are those of the velocities.
    """
    runs, batch, dim = x0.shape
    ode_batch = ode_x0.shape[1]
    plan = rollout_plan(velocity, observations, x0, precision, train)
    rows = tape_rows(batch, ode_batch, flow_steps, train)
    check_size(plan, rows)
    check_size(plan, (flow_steps + 1) * batch)
    tape = empty_tape(plan, runs, rows, x0)
    share = x0.new_empty(2, runs, batch + ode_batch, plan.width)
    trajectory = x0.new_empty(runs, flow_steps + 1, batch, dim)
    velocities = x0.new_empty(runs, flow_steps, batch, dim)
    ode_x = torch.empty_like(ode_x0)
    tiles = triton.cdiv(batch, plan.block_m)
    kernels, vectors = pack([velocity, base], plan, operand_dtype(plan))
    eps, seed, offset = (x0, *noise) if isinstance(noise, Philox) else (noise, x0, x0)
    with torch.cuda.device_of(x0):
        sde_rollout_kernel[(tiles + triton.cdiv(ode_batch, plan.block_m), runs)](
            kernels, vectors, tape, rows, runs * rows, share, observations, x0, eps, seed, offset,
            trajectory, velocities, ode_observations, ode_x0, ode_x, batch, ode_batch, flow_steps,
            tiles, isinstance(noise, Philox), plan, **launch_options(precision),
        )  # fmt: skip
    return trajectory, velocities, ode_x, tape
