"""What the Triton kernels of the MLPs are compiled for: architecture, blocks, arithmetic."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.mlp.weights import MLPWeights


@dataclass(frozen=True)
class KernelConfig:
    """What a kernel is compiled for: architecture of the network, tile, arithmetic.

    Attributes:
        obs: Width of the inputs' first part (all of it for a plain MLP).
        dim: Width of the second part, x; 0 for none.
        time: 1 if a third part, the time, follows; else 0.
        widths: True hidden widths.
        width: Padded hidden width, a multiple of `block_n` and `block_k`.
        out: Output width.
        norm: LayerNorm after every hidden activation.
        ensemble: Members that share their inputs, E.
        train: Keep what a later pass needs: forward, the tape; pullback, the gradients of all
            pre-activations and the column sums.
        block_m: Rows of a tile.
        block_n: Features of a program.
        block_k: Depth of a product's step.
        block_i: Rows (inputs) of a block of a weight gradient.
        block_o: Its columns (outputs).
        block_out: Power of two that holds the output, at least 16.
        x_column: Column of x in a prepared first kernel, behind the observations' and zeros; these
            three are fields because compiled kernels are stored under the config's values.
        time_column: Column of the time, behind those of x and zeros.
        columns: Columns of a prepared first kernel, whole steps of a product.
        operand: Element type of the products' operands.
        precision: ``ieee`` or ``tf32`` for float32 operands.
        clip: Clip x to [-1, 1] where the first layer reads it.
        dependent: The launch is dependent: it may begin before the one before it has ended, and
            the kernel waits for it (`trqam_fast.kernels.mlp.triton_tile.await_predecessor`).
    """

    obs: int
    dim: int
    time: int
    widths: tuple[int, ...]
    width: int
    out: int
    norm: bool
    ensemble: int
    train: bool
    block_m: int
    block_n: int
    block_k: int
    block_i: int
    block_o: int
    block_out: int
    x_column: int
    time_column: int
    columns: int
    operand: Any
    precision: str
    clip: bool = False
    dependent: bool = False

    @property
    def depth(self) -> int:
        """Hidden layers."""
        return len(self.widths)

    @property
    def stat_parts(self) -> int:
        """Power of two that holds a layer's tiles of features, which leave statistics each."""
        return triton.next_power_of_2(self.width // self.block_n)

    @property
    def scaled(self) -> bool:
        """Whether gradients are stored over powers of two, which float16's range needs."""
        return self.operand == tl.float16

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.obs + self.dim + self.time


@dataclass(frozen=True)
class BlockSizes:
    """Blocks of one precision.

    Attributes:
        block_m: Rows of a program.
        block_n: Features of a program.
        block_k: Depth of a product's step.
        block_i: Rows (inputs) of a block of a weight gradient.
        block_o: Its columns (outputs).
    """

    block_m: int
    block_n: int
    block_k: int
    block_i: int
    block_o: int


# Measured on an H100 (docs/kernels.md): with 64 x 64 tiles there are the most programs, with steps
# of 64 of 16-bit operands the fewest waits. Features are the side of 64 that wgmma needs.
BLOCK_SIZES = {
    "ieee": BlockSizes(32, 32, 32, 32, 32),
    "tf32": BlockSizes(64, 64, 32, 64, 64),
    "fp16": BlockSizes(64, 64, 64, 64, 128),
    "bf16": BlockSizes(64, 64, 64, 64, 128),
}
WARPS = {"ieee": 8, "tf32": 4, "fp16": 4, "bf16": 4}
"""Of a program of products."""
PASS_STAGES = {"ieee": (2, 2), "tf32": (4, 3), "fp16": (3, 3), "bf16": (3, 3)}
"""Stages of the pipelines that load a pass's operands, and those on GPUs with less than 160 KiB of
shared memory."""
GRADIENT_STAGES = {"ieee": (2, 2), "tf32": (3, 3), "fp16": (3, 2), "bf16": (3, 2)}
"""The same of a weight gradient's operands."""
OPERANDS = {"ieee": tl.float32, "tf32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}
STORED = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}


def dependent_options(config: KernelConfig) -> dict[str, bool]:
    """Return Triton's option for a dependent launch of a kernel compiled for `config`.

    Nothing else asks for one, and the same field of the config compiles the kernel's wait.
    """
    return {"launch_pdl": True} if config.dependent else {}


@functools.cache
def has_little_shared_memory(device: int) -> bool:
    """Whether a program on `device` may have less than 160 KiB of shared memory."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device)
    return properties["max_shared_mem"] < 160 * 1024


def stages_for(table: dict[str, tuple[int, int]], precision: str) -> int:
    """Return the stages of a table's pipelines that the current device has the memory for."""
    lean = not triton.knobs.runtime.interpret and has_little_shared_memory(
        triton.runtime.driver.active.get_current_device()
    )
    return table[precision][lean]


def has_wgmma() -> bool:
    """Whether the current device multiplies what lies in shared memory, as the interpreter may."""
    if triton.knobs.runtime.interpret:
        return True
    return 90 <= triton.runtime.driver.active.get_current_target().arch < 120


def round_up(size: int, step: int) -> int:
    """Return the smallest multiple of `step` that is not below `size`."""
    return triton.cdiv(size, step) * step


def padded_width(widths: Sequence[int]) -> int:
    """Return the common width that hidden layers of `widths` are padded to."""
    widest = max(widths)
    return triton.next_power_of_2(max(widest, 32)) if widest <= 64 else round_up(widest, 64)


def make_config(
    weights: MLPWeights,
    precision: str,
    *,
    obs: int,
    dim: int = 0,
    time: int = 0,
    train: bool,
) -> KernelConfig:
    """Return the config for `weights` on inputs of `obs`, `dim` and `time` columns."""
    widths = tuple(kernel.shape[-1] for kernel in weights.kernels[:-1])
    width = padded_width(widths)
    tile = BLOCK_SIZES[precision]
    block_out = triton.next_power_of_2(max(weights.out_features, 16))
    # More than 32 outputs take the registers of as many rows; products on the plain units, whose
    # loops the compiler unrolls, those of the columns too.
    rows = min(tile.block_m, max(16, tile.block_m * 32 // block_out))
    cols = 16 if precision == "ieee" and block_out > 64 else tile.block_n
    # Blocks of columns must divide the width; its lowest set bit is the largest power that does.
    divides = width & -width
    block_k = min(tile.block_k if has_wgmma() else 32, divides)  # 64 spill on sm_80
    x_column = round_up(obs, block_k) if obs > block_k else triton.next_power_of_2(max(obs, 16))
    time_column = x_column + (triton.next_power_of_2(max(dim, 16)) if dim else 0)
    return KernelConfig(
        obs=obs,
        dim=dim,
        time=time,
        widths=widths,
        width=width,
        out=weights.out_features,
        norm=weights.layer_norm,
        ensemble=weights.lead[1] if len(weights.lead) == 2 else 1,
        train=train,
        block_m=rows,
        block_n=min(cols, divides),
        block_k=block_k,
        block_i=min(tile.block_i, divides),
        block_o=min(tile.block_o, divides),
        block_out=block_out,
        x_column=x_column,
        time_column=time_column,
        columns=round_up(time_column + time, block_k),
        operand=OPERANDS[precision],
        precision="tf32" if precision == "tf32" else "ieee",
    )


def operand_dtype(config: KernelConfig) -> torch.dtype:
    """Return the type in which activations are stored between layers."""
    return STORED[config.operand]


MAX_REGISTERS = {"ieee": 255, "tf32": 168, "fp16": 168, "bf16": 168}
"""Registers of a thread: three programs of 168 share a multiprocessor, as many as their shared
memory allows."""

STEP_WARPS = 8
"""Warps of a step of the rollout or of the sweep, two products one after the other."""


def tile_options(precision: str, config: KernelConfig, **changes: int) -> dict[str, int]:
    """Return Triton's options for a launch on the current device, with `changes`."""
    options = {
        "num_warps": WARPS[precision],
        "num_stages": stages_for(PASS_STAGES, precision),
        "maxnreg": MAX_REGISTERS[precision],
    }
    return options | changes | dependent_options(config)


def step_options(precision: str, config: KernelConfig) -> dict[str, int]:
    """Return the options of a step of the rollout or of the sweep."""
    registers = 128 if has_wgmma() else 255
    return tile_options(precision, config, num_warps=STEP_WARPS, maxnreg=registers)


def config_for(
    weights: MLPWeights,
    inputs: Tensor,
    x: Tensor | None,
    precision: str,
    *,
    train: bool,
    dependent: bool = False,
) -> KernelConfig:
    """Return the config of passes of inputs in one part or two, and a time if there is room."""
    dim = 0 if x is None else x.shape[-1]
    obs = inputs.shape[-1]
    time = weights.in_features - obs - dim
    with torch.cuda.device_of(inputs):
        config = make_config(weights, precision, obs=obs, dim=dim, time=time, train=train)
    return dataclasses.replace(config, dependent=dependent)
