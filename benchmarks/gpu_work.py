"""What a program of a Triton kernel does one after another, from the arguments of its launch.

The loops are those of `kernels/mlp/triton_tile.py` and of the kernels that use it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from benchmarks.launches import Launch


class Work(NamedTuple):
    """What one program does one after another.

    Attributes:
        iterations: Steps of products.
        multiply_adds: In all of them, padding included.
        loaded: Bytes from L2.
        blocks: Blocks of columns, each with an empty pipeline before and an epilogue after it.
        norm_steps: Steps of LayerNorm's sweeps.
        products: Matrix products that wait for each other.
    """

    iterations: float = 0.0
    multiply_adds: float = 0.0
    loaded: float = 0.0
    blocks: float = 0.0
    norm_steps: float = 0.0
    products: int = 0

    def times(self, count: int) -> Work:
        """Return the work of doing this `count` times."""
        return Work(*(count * value for value in self))

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def product(rows: int, columns: int, depth: float, C: Any, left: int, right: int) -> Work:
    """One block of a product: `depth` in steps of the config's, operands of so many bytes."""
    steps = math.ceil(depth / C.block_k)
    loaded = steps * C.block_k * (rows * left + columns * right)
    return Work(steps, steps * C.block_k * rows * columns, loaded, 1)


def forward(C: Any, operand: int, weight: int, shared: bool) -> Work:
    """A tile's pass through all layers; with `shared` the observation's part lies ready."""
    across = C.width // C.block_n
    if shared:
        first = Work(1, C.block_m * C.block_out * C.block_n, 4 * C.block_m * C.block_n, 1)
        first += Work(loaded=C.block_m * C.dim * 4 + C.block_out * C.block_n * weight)
    else:
        first = product(C.block_m, C.block_n, C.inputs, C, 4, weight)
    hidden = product(C.block_m, C.block_n, C.width, C, operand, weight)
    last = product(C.block_m, C.block_out, C.width, C, operand, weight)
    work = first.times(across) + hidden.times((C.depth - 1) * across) + last
    if C.norm:
        sweeps = 2 * C.depth
        work += Work(loaded=4 * sweeps * C.block_m * C.width)
        work += Work(norm_steps=sweeps * C.width // C.block_k)
    return work._replace(products=C.depth + 1)


def pullback(C: Any, operand: int, weight: int) -> Work:
    """A tile's pass back to the first pre-activation."""
    across = C.width // C.block_n
    first = Work(1, C.block_m * C.block_out * C.block_n, C.block_out * C.block_n * weight, 1)
    hidden = product(C.block_m, C.block_n, C.width, C, operand, weight)
    work = first.times(across) + hidden.times((C.depth - 1) * across)
    work += Work(loaded=4 * C.depth * C.block_m * C.width)
    if C.norm:
        sweeps = 2 * C.depth
        work += Work(loaded=8 * sweeps * C.block_m * C.width)
        work += Work(norm_steps=sweeps * C.width // C.block_k)
    return work._replace(products=C.depth)


def to_inputs(C: Any, operand: int, weight: int, columns: int) -> Work:
    """The first layer's pullback to so many inputs."""
    block = min(64, 1 << (max(columns, 16) - 1).bit_length())
    one = product(C.block_m, block, C.width, C, operand, weight)
    return one.times(math.ceil(columns / block))._replace(products=1)


def flop_of(C: Any, rows: int, *, inputs: int, last: bool = True) -> float:
    """Operations of `rows` rows through a network, of the first layer `inputs` columns."""
    hidden = (C.depth - 1) * C.width**2
    return 2.0 * rows * (C.width * inputs + hidden + (C.width * C.out if last else 0))


def kernel_work(launch: Launch) -> tuple[Work, float, int]:
    """Return a Triton launch's work in its slowest program, its operations, and its programs."""
    a, C = launch.arguments, launch.arguments.get("C")
    programs = math.prod(launch.grid)
    if launch.name in ("adjoint_matching_kernel", "philox_kernel"):
        return Work(), 0.0, programs
    operand = 2 if "bf16" in str(C.operand) else 4
    tiles, groups = launch.grid[:2]
    match launch.name:
        case "sde_rollout_kernel":
            passes = a["steps"] + (1 if a["tiles"] else 0)
            share = product(C.block_m, C.block_n, C.obs, C, 4, operand).times(C.width // C.block_n)
            work = forward(C, operand, operand, True).times(passes) + share.times(2)
            rows = (a["steps"] + 1) * a["batch"] + a["steps"] * a["ode_batch"]
            flop = groups * flop_of(C, rows, inputs=C.dim + C.time)
            flop += 2.0 * groups * (2 * a["batch"] + a["ode_batch"]) * C.obs * C.width
        case "mlp_forward_kernel":
            work = forward(C, operand, a["net"].w_hid.element_size(), False)
            flop = groups * flop_of(C, a["rows"], inputs=C.inputs)
        case "lean_adjoint_kernel":
            weight = a["net"].w_hid.element_size()
            step = pullback(C, operand, weight) + to_inputs(C, operand, weight, C.dim)
            work = step.times(a["steps"])
            flop = groups * a["steps"] * flop_of(C, a["batch"], inputs=C.dim)
        case "mlp_pullback_kernel":
            weight = a["net"].w_hid.element_size()
            work = pullback(C, operand, weight)
            flop = groups * flop_of(C, a["rows"], inputs=C.inputs if a["INPUTS"] else 0)
            if a["INPUTS"]:
                work += to_inputs(C, operand, weight, C.inputs)
        case "weight_gradient_kernel":
            work = product(C.block_w, C.block_w, a["rows"], C, operand, operand)
            work = work._replace(products=1)
            flop = groups * flop_of(C, a["rows"], inputs=C.inputs)
        case name:
            raise ValueError(f"the model does not know what a program of {name} does")
    return work, flop, programs
