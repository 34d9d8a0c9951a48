"""The rollout in Triton with one launch for each layer of a step, over the whole chip.

Launch k computes X_k from the last hidden layer at X_{k-1} and goes on to the first layer at X_k;
`depth - 1` launches follow. Every program of a tile of rows computes its X_k itself, so that none
waits for another; that of the first features stores it. The step is

    x <- c_x x + c_v v + c_eps eps,    SDE: 1 - 1/(k+1), 2h, sqrt(h) g_k    ODE: 1, h, 0

and the last one of the SDE follows the base field, whose pass at X_{K-1} runs beside the others,
on rows of its own. With the base field at all states its rows are in every step: at t_k for its
velocity, and at t_k + h for the tape that the sweep walks back along. A step alone would leave most
of the chip free. Steps take turns on the rows of the ODE and of the base field at t_k, and without
a tape on those of the SDE: what a launch reads, none beside it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.layout import dense_runs
from trqam_fast.kernels.mlp.triton import check_size, empty_kept, hidden_layers
from trqam_fast.kernels.mlp.triton_config import (
    MAX_REGISTERS,
    KernelConfig,
    config_for,
    step_options,
)
from trqam_fast.kernels.mlp.triton_forward import (
    Prepared,
    RowBlocks,
    activate,
    output_product,
    rows_of,
)
from trqam_fast.kernels.mlp.triton_operands import to_operand
from trqam_fast.kernels.mlp.triton_prepare import empty_prepared, prepare
from trqam_fast.kernels.mlp.triton_tile import Tape, await_predecessor, group_of, zeros
from trqam_fast.kernels.mlp.triton_weights import empty_operands
from trqam_fast.kernels.mlp.weights import MLPWeights
from trqam_fast.kernels.sde_rollout.inputs import RolloutInputs


@triton.jit(
    do_not_specialize=[
        "rows", "layer_rows", "before", "ode_before", "base_before", "x0_stride", "noise_stride",
        "ode_x0_stride", "k", "steps", "tiles", "ode_tiles", "start", "ode_start", "base_start",
        "sweep_start", "batch", "ode_batch",
    ]
)  # fmt: skip
def rollout_step_kernel(
    weights,  # Prepared, of S networks, and then of their base fields if there are rows of the SDE
    tape,  # Tape of S networks
    rows,  # rows of the tape
    layer_rows,  # S * rows
    before,  # row of the tape at which the last step's rows of the SDE begin
    ode_before,  # the same of the ODE's
    base_before,  # the same of the base field's
    observations,  # [S, B, O]
    x0,  # [S, B, D]
    x0_stride,  # elements between two runs of x0
    noise,  # [S, K - 1, B, D]
    noise_stride,
    trajectory,  # [S, K + 1, B, D]
    velocity,  # [S, K, B, D]
    base_velocity,  # [S, K, B, D] with BASE
    ode_observations,  # [S, N, O]
    ode_x0,  # [S, N, D]
    ode_x0_stride,
    ode_x,  # [2, S, N, D]: X_k of even and of odd k
    k,  # of the X_k that is computed
    steps,  # K
    tiles,  # RowBlocks, from here
    ode_tiles,
    start,
    ode_start,
    base_start,
    sweep_start,
    batch,
    ode_batch,
    BASE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    C: tl.constexpr,
):
    """X_k, and the first layer at it unless it is the last; grid [rows, features, S].

    With BASE the base field is at every X_k; without, at X_{K-1} alone. Its velocity at X_{k-1} is
    left to programs of their own, behind those of the features.
    """
    await_predecessor(C)
    tile = tl.program_id(1)
    run = tl.program_id(2)
    wide = tl.cast(run, tl.int64)
    blocks = RowBlocks(
        tiles, ode_tiles, start, ode_start, base_start, sweep_start, batch, ode_batch
    )
    row, local, mask, kind = rows_of(tl.program_id(0), blocks, C.block_m)
    ode = kind == 1
    base = kind // 2
    behind = tile == C.width // C.block_n
    if BASE:
        if behind & (kind != 2):
            return
    tape = group_of(tape, run, rows, layer_rows, C)
    dims = tl.arange(0, C.block_out)
    inside = mask[:, None] & (dims < C.dim)[None, :]
    element = local[:, None] * C.dim + dims[None, :]
    size = tl.cast(steps, tl.float32)
    if ode:
        observed = ode_observations + wide * ode_batch * C.obs
        begun = ode_x0 + wide * ode_x0_stride
        turn = (k % 2) * tl.num_programs(2)
        into = ode_x + (turn + wide) * ode_batch * C.dim
        last_x = ode_x + (tl.num_programs(2) - turn + wide) * ode_batch * C.dim
        read = ode_before + local
    else:
        observed = observations + wide * batch * C.obs
        begun = x0 + wide * x0_stride
        into = trajectory + (wide * (steps + 1) + k) * batch * C.dim
        last_x = into - batch * C.dim
        read = before + local
    storing = inside & (tile == 0)
    if FIRST:
        x = tl.load(begun + element, mask=inside, other=0.0)
        tl.store(into + element, x, mask=storing & (kind < 2))
    else:
        x = tl.load(last_x + element, mask=inside, other=0.0)
        # Before the last step, rows of the base field repeat what those of the SDE do.
        by_base = base == 1 if LAST else behind
        if LAST or BASE:
            read = tl.where(by_base, base_before + local, read)
        field = tl.cast(run + by_base.to(tl.int32) * tl.num_programs(2), tl.int64)
        v = output_product(weights, field, tape, read, mask, C)
        kept = (wide * steps + k - 1) * batch * C.dim
        tl.store(velocity + kept + element, v, mask=storing & (kind == 0))
        if BASE:
            tl.store(base_velocity + kept + element, v, mask=inside & by_base)
            if behind:
                return
        if LAST:
            tl.store(into + element, x + v / size, mask=storing & (kind != 0))
        else:
            after = tl.cast(k, tl.float32)
            drawn = noise + wide * noise_stride + (k - 1) * batch * C.dim
            eps = tl.load(drawn + element, mask=inside & (kind != 1), other=0.0)
            diffusion = tl.sqrt(2.0 * (size - after + 2.0) / (size * after))
            sampled = x * (1.0 - 1.0 / after) + (2.0 / size) * v + diffusion * eps
            x = tl.where(ode, x + v / size, sampled)
            tl.store(into + element, x, mask=storing & (kind < 2))
    if not LAST:
        field = tl.cast(run + base * tl.num_programs(2), tl.int64)
        features = tile * C.block_n + tl.arange(0, C.block_n)
        w_at = weights.first + (field * C.width + features[:, None]) * C.columns
        z = zeros(C.block_n, C.block_m)
        depth: tl.constexpr = min(C.block_k, C.x_column)
        for n in range(0, C.x_column, depth):
            ks = n + tl.arange(0, depth)
            at = local[:, None] * C.obs + ks[None, :]
            given = mask[:, None] & (ks < C.obs)[None, :]
            s = to_operand(tl.load(observed + at, mask=given, other=0.0), C)
            w = tl.load(w_at + ks[None, :])
            z = tl.dot(w, tl.trans(s), z, input_precision=C.precision)
        moved = tl.load(w_at + C.x_column + dims[None, :])
        z = tl.dot(moved, tl.trans(to_operand(x, C)), z, input_precision=C.precision)
        time = tl.div_rn(tl.cast(k + kind // 3, tl.float32), size)
        z += time * tl.load(w_at + C.time_column).to(tl.float32)
        z += tl.load(weights.offset + field * C.width + features)[:, None]
        activate(z, tape, row, mask, tile, 0, C)


def rollout_config(
    velocity: MLPWeights, inputs: RolloutInputs, precision: str, train: bool, dependent: bool
) -> KernelConfig:
    """Return the config of a rollout."""
    return config_for(
        velocity, inputs.observations, inputs.x0, precision, train=train, dependent=dependent
    )


def rollout_kept(
    velocity: MLPWeights,
    inputs: RolloutInputs,
    precision: str,
    train: bool,
    with_base: bool,
    *,
    operands: bool = True,
) -> list[Tensor]:
    """Return memory for what is kept, of rows as `RolloutRows` has them.

    Without `operands` that of the kernels is empty.
    """
    config = rollout_config(velocity, inputs, precision, train, dependent=False)
    runs, rows = len(inputs.x0), rollout_rows(inputs, train, with_base).total
    return empty_kept(config, runs, rows, velocity.kernels[0], operands=operands)


class RolloutRows(NamedTuple):
    """Where the tape of a rollout has its rows; those of the SDE come first.

    Attributes:
        sweep: Where those of the base field at t_k + h begin, of all steps.
        base: The same of those at t_k, of two steps, or of step K - 1 alone.
        ode: The same of the ODE's, of two steps.
        total: All rows.
    """

    sweep: int
    base: int
    ode: int
    total: int


def rollout_rows(inputs: RolloutInputs, train: bool, with_base: bool) -> RolloutRows:
    """Return where the rows lie: with `train` all of the SDE, else those of two steps."""
    batch, steps = inputs.x0.shape[1], inputs.flow_steps
    sweep = (steps if train else 2) * batch
    base = sweep + (steps * batch if with_base else 0)
    ode = base + (2 if with_base else 1) * batch
    return RolloutRows(sweep, base, ode, ode + 2 * inputs.ode_x0.shape[1])


def operands_config(
    velocity: MLPWeights, precision: str, *, dependent: bool = False
) -> KernelConfig:
    """Return the config that prepares fields for rollouts, with gradients or without."""
    kernel, dim = velocity.kernels[0], velocity.out_features
    observed = kernel.mT[..., : velocity.in_features - dim - 1]  # as wide, on their device
    return config_for(
        velocity, observed, kernel.mT[..., :dim], precision, train=True, dependent=dependent
    )


def empty_rollout_operands(config: KernelConfig, kernel: Tensor) -> list[Tensor]:
    """Return memory for what a rollout reads of two fields, on the device of `kernel`, a field's.

    The last two tensors are those of their kernels, which pullbacks read.
    """
    kernels = (empty_operands(config, kernel) for _ in range(2))
    return [*empty_prepared(config, 2 * len(kernel), kernel), *kernels]


def rollout_operands(
    velocity: MLPWeights, base: MLPWeights, precision: str, *, dependent: bool = False
) -> list[Tensor]:
    """Prepare both fields of a rollout, as `empty_rollout_operands` orders them; one launch."""
    config, kernel = operands_config(velocity, precision, dependent=dependent), velocity.kernels[0]
    into = empty_rollout_operands(config, kernel)
    with torch.cuda.device_of(kernel):
        prepare((velocity, base), into[-2:], Prepared(*into[:-2]), config, precision)
    return into


def sweep_part(kept: Sequence[Tensor], steps: int, batch: int) -> list[Tensor]:
    """Return the tape of the base field at t_k + h from what a rollout with it has kept."""
    return [part[:, :, steps * batch : 2 * steps * batch] for part in kept[:4]]


def sde_rollout(
    velocity: MLPWeights,
    base: MLPWeights,
    inputs: RolloutInputs,
    precision: str,
    *,
    train: bool,
    with_base: bool = False,
    dependent: bool = False,
    operands: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Launch the steps; either kind may have no rows.

    With `operands`, what `rollout_operands` returned, the fields are not prepared here, nor their
    kernels kept. `with_base` needs `train`.

    Returns:
        Trajectory `[S, K + 1, B, D]`, velocities `[S, K, B, D]`, those of the base field, or none,
        X_K of the ODE's rows `[S, N, D]`, and what is kept: of K * B rows those of the velocities,
        of K * B more `sweep_part`.
    """
    observations, ode_observations = (
        tensor.contiguous() for tensor in (inputs.observations, inputs.ode_observations)
    )
    x0, noise, ode_x0 = map(dense_runs, (inputs.x0, inputs.noise, inputs.ode_x0))
    steps, (runs, batch, dim) = inputs.flow_steps, x0.shape
    ode_batch = ode_x0.shape[1]
    config = rollout_config(velocity, inputs, precision, train, dependent)
    kept = rollout_kept(velocity, inputs, precision, train, with_base, operands=len(operands) == 0)
    tape, starts = Tape(*kept[:4]), rollout_rows(inputs, train, with_base)
    rows = starts.total
    check_size(config, rows)
    check_size(config, (steps + 1) * batch)
    trajectory = x0.new_empty(runs, steps + 1, batch, dim)
    velocities = x0.new_empty(runs, steps, batch, dim)
    base_velocities = x0.new_empty(runs, steps if with_base else 0, batch, dim)
    ode_x = x0.new_empty(2, runs, ode_batch, dim)
    tiles = triton.cdiv(batch, config.block_m)
    ode_tiles = triton.cdiv(ode_batch, config.block_m)

    def place(k: int) -> tuple[int, int, int]:
        """Return where the tape has the rows of a step: the SDE's, the ODE's, the base field's."""
        turn = k % 2
        start = (k if train else turn) * batch
        base_start = starts.base + (turn * batch if with_base else 0)
        return start, starts.ode + turn * ode_batch, base_start

    with torch.cuda.device_of(x0):
        options = step_options(precision, config)
        if precision == "ieee":  # 128 registers spill on sm_100
            options["maxnreg"] = MAX_REGISTERS[precision]
        if operands:
            weights = Prepared(*operands[:-2])
        else:
            fields = (velocity, base) if batch else (velocity,)
            # One launch keeps both fields' kernels or none; the base field's are not read here.
            kernels = (kept[4], torch.empty_like(kept[4]))[: len(fields)]
            weights = empty_prepared(config, len(fields) * runs, x0)
            prepare(fields, kernels, weights, config, precision)
        for k in range(steps + 1):
            first, last = k == 0, k == steps
            sweep_start = starts.sweep + k * batch
            blocks = RowBlocks(tiles, ode_tiles, *place(k), sweep_start, batch, ode_batch)
            of_base = (with_base or k >= steps - 1) + (with_base and not last)
            count = tiles + ode_tiles + of_base * tiles
            features = 1 if last else config.width // config.block_n + (with_base and not first)
            rollout_step_kernel[(count, features, runs)](
                weights, tape, rows, runs * rows, *place(k - 1), observations,
                x0, x0.stride(0), noise, noise.stride(0), trajectory, velocities,
                base_velocities, ode_observations, ode_x0, ode_x0.stride(0),
                ode_x, k, steps, *blocks, with_base, first, last, config, **options,
            )  # fmt: skip
            if not last:
                hidden_layers(weights, tape, rows, runs, blocks, count, config, precision)
    return trajectory, velocities, base_velocities, ode_x[steps % 2], kept
