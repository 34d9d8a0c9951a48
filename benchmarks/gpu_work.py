"""What a program of a Triton kernel does one after another, from the arguments of its launch.

The loops are those of `kernels/mlp/tile.py` and of the kernels that use it.
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


def product(rows: int, columns: int, depth: float, P: Any, left: int, right: int) -> Work:
    """One block of a product: `depth` in steps of the plan's, operands of so many bytes."""
    steps = math.ceil(depth / P.block_k)
    loaded = steps * P.block_k * (rows * left + columns * right)
    return Work(steps, steps * P.block_k * rows * columns, loaded, 1)


def forward(P: Any, operand: int, weight: int, shared: bool) -> Work:
    """A tile's pass through all layers; with `shared` the observation's part lies ready."""
    across = P.width // P.block_n
    if shared:
        first = Work(1, P.block_m * P.block_out * P.block_n, 4 * P.block_m * P.block_n, 1)
        first += Work(loaded=P.block_m * P.dim * 4 + P.block_out * P.block_n * weight)
    else:
        first = product(P.block_m, P.block_n, P.inputs, P, 4, weight)
    hidden = product(P.block_m, P.block_n, P.width, P, operand, weight)
    last = product(P.block_m, P.block_out, P.width, P, operand, weight)
    work = first.times(across) + hidden.times((P.depth - 1) * across) + last
    if P.norm:
        sweeps = 2 * P.depth
        work += Work(loaded=4 * sweeps * P.block_m * P.width)
        work += Work(norm_steps=sweeps * P.width // P.block_k)
    return work._replace(products=P.depth + 1)


def pullback(P: Any, operand: int, weight: int) -> Work:
    """A tile's pass back to the first pre-activation."""
    across = P.width // P.block_n
    first = Work(1, P.block_m * P.block_out * P.block_n, P.block_out * P.block_n * weight, 1)
    hidden = product(P.block_m, P.block_n, P.width, P, operand, weight)
    work = first.times(across) + hidden.times((P.depth - 1) * across)
    work += Work(loaded=4 * P.depth * P.block_m * P.width)
    if P.norm:
        sweeps = 2 * P.depth
        work += Work(loaded=8 * sweeps * P.block_m * P.width)
        work += Work(norm_steps=sweeps * P.width // P.block_k)
    return work._replace(products=P.depth)


def to_inputs(P: Any, operand: int, weight: int, columns: int) -> Work:
    """The first layer's pullback to so many inputs."""
    block = min(64, 1 << (max(columns, 16) - 1).bit_length())
    one = product(P.block_m, block, P.width, P, operand, weight)
    return one.times(math.ceil(columns / block))._replace(products=1)


def flop_of(P: Any, rows: int, *, inputs: int, last: bool = True) -> float:
    """Operations of `rows` rows through a network, of the first layer `inputs` columns."""
    hidden = (P.depth - 1) * P.width**2
    return 2.0 * rows * (P.width * inputs + hidden + (P.width * P.out if last else 0))


def kernel_work(launch: Launch) -> tuple[Work, float, int]:
    """Return a Triton launch's work in its slowest program, its operations, and its programs."""
    a, P = launch.arguments, launch.arguments.get("P")
    programs = math.prod(launch.grid)
    if launch.name == "adjoint_matching_kernel":
        return Work(), 0.0, programs
    operand = 2 if "bf16" in str(P.operand) else 4
    tiles, groups = launch.grid[:2]
    match launch.name:
        case "sde_rollout_kernel":
            passes = a["steps"] + (1 if a["tiles"] else 0)
            share = product(P.block_m, P.block_n, P.obs, P, 4, operand).times(P.width // P.block_n)
            work = forward(P, operand, operand, True).times(passes) + share.times(2)
            rows = (a["steps"] + 1) * a["batch"] + a["steps"] * a["ode_batch"]
            flop = groups * flop_of(P, rows, inputs=P.dim + P.time)
            flop += 2.0 * groups * (2 * a["batch"] + a["ode_batch"]) * P.obs * P.width
        case "mlp_forward_kernel":
            work = forward(P, operand, a["net"].w_hid.element_size(), False)
            flop = groups * flop_of(P, a["rows"], inputs=P.inputs)
        case "lean_adjoint_kernel":
            weight = a["net"].w_hid.element_size()
            step = pullback(P, operand, weight) + to_inputs(P, operand, weight, P.dim)
            work = step.times(a["steps"])
            flop = groups * a["steps"] * flop_of(P, a["batch"], inputs=P.dim)
        case "mlp_pullback_kernel":
            weight = a["net"].w_hid.element_size()
            work = pullback(P, operand, weight)
            flop = groups * flop_of(P, a["rows"], inputs=P.inputs if a["INPUTS"] else 0)
            if a["INPUTS"]:
                work += to_inputs(P, operand, weight, P.inputs)
        case "weight_gradient_kernel":
            work = product(P.block_w, P.block_w, a["rows"], P, operand, operand)
            work = work._replace(products=1)
            flop = groups * flop_of(P, a["rows"], inputs=P.inputs)
        case name:
            raise ValueError(f"the model does not know what a program of {name} does")
    return work, flop, programs
