"""What a program of a Triton kernel does one after another, from the arguments of its launch.

The loops are those of `kernels/mlp/triton_forward.py`, `triton_pullback.py`, `triton_gradients.py`
and the steps of rollout and sweep.
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
        products: Matrix products that wait for each other.
    """

    iterations: float = 0.0
    multiply_adds: float = 0.0
    loaded: float = 0.0
    blocks: float = 0.0
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


def flop_of(C: Any, rows: int) -> float:
    """Operations of `rows` rows through a network."""
    return 2.0 * rows * C.width * (C.inputs + (C.depth - 1) * C.width + C.out)


Tiled = tuple[Work, float, float]
"""A program's work, the operations of a launch, and the bytes that it reads and writes."""


def prepare_work(launch: Launch, operand: int) -> Tiled:
    """Weights transposed as operands: read once, written once, or twice for a pullback."""
    C, groups = launch.arguments["C"], launch.grid[2]
    weights = (C.depth - 1) * C.width**2 + C.width * (C.columns + C.block_out)
    loaded = 4.0 * C.width * C.block_n
    moved = groups * weights * (4.0 + operand * (2 if launch.arguments["COPY"] else 1))
    return Work(C.width // C.block_k, 0.0, loaded, 1), 0.0, moved


def gradient_operands_work(launch: Launch, operand: int) -> Tiled:
    """Inputs and cotangent as operands, sums for the vectors."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[1]
    row = C.out * 4 + C.block_out * operand + (C.inputs * 4 + C.columns * operand) / C.ensemble
    sums = a["tiles"] * C.depth * C.width * 4 * (3 if C.norm else 1)
    loaded = 4.0 * max(C.block_m * C.columns, a["tiles"] * C.block_o)
    return Work(loaded=loaded, blocks=1), 0.0, groups * (a["rows"] * row + sums)


def first_layer_work(launch: Launch, operand: int) -> Tiled:
    """The first layer of a batched pass."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[2]
    work = product(C.block_n, C.block_m, C.columns, C, operand, 4)._replace(products=1)
    stored = a["rows"] * C.width * operand * (2 if C.train else 1)
    moved = groups * (C.columns * C.width * operand + 4 * a["rows"] * C.inputs + stored)
    return work, 2.0 * groups * a["rows"] * C.inputs * C.width, moved


def hidden_layer_work(launch: Launch, operand: int) -> Tiled:
    """A hidden layer of any rows."""
    C, groups = launch.arguments["C"], launch.grid[2]
    rows, networks = rows_of(launch)
    work = product(C.block_n, C.block_m, C.width, C, operand, operand)._replace(products=1)
    stored = rows * C.width * operand * (3 if C.train else 2)
    moved = groups * (networks * C.width**2 * operand + stored)
    return work, 2.0 * groups * rows * C.width**2, moved


def output_work(launch: Launch, operand: int) -> Tiled:
    """The output layer of a batched pass."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[1]
    work = product(C.block_m, C.block_out, C.width, C, operand, operand)
    moved = groups * (a["rows"] * (C.width * operand + 4 * C.out) + operand * C.width * C.block_out)
    return work._replace(products=1), 2.0 * groups * a["rows"] * C.width * C.out, moved


def rollout_step_work(launch: Launch, operand: int) -> Tiled:
    """The output layer of a step, and the first one of the next."""
    a, C, runs = launch.arguments, launch.arguments["C"], launch.grid[2]
    rows, networks = rows_of(launch)
    work, flop, moved = Work(), 0.0, 4.0 * rows * (2 * C.dim + C.obs)
    if not a["FIRST"]:
        work += product(C.block_m, C.block_out, C.width, C, operand, operand)
        flop += 2.0 * rows * C.width * C.out
        moved += rows * C.width * operand + networks * C.width * C.block_out * operand
        if a["BASE"] and not a["LAST"]:
            flop += 2.0 * a["batch"] * C.width * C.out
    if not a["LAST"]:
        work += product(C.block_n, C.block_m, C.x_column, C, operand, 4)
        work += Work(1, C.block_n * C.block_m * C.block_out, operand * C.block_n * C.block_out)
        flop += 2.0 * rows * C.inputs * C.width
        moved += rows * C.width * operand * (2 if C.train else 1)
    products = int(not a["FIRST"]) + int(not a["LAST"])
    return work._replace(products=products), runs * flop, runs * moved


def pull_output_work(launch: Launch, operand: int) -> Tiled:
    """A cotangent to the last hidden layer."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[2]
    work = to_last_hidden(C, weight_of(a), operand)
    moved = groups * a["rows"] * C.width * operand * (1 if C.norm else 2)
    return work._replace(products=1), 2.0 * groups * a["rows"] * C.width * C.out, moved


def to_last_hidden(C: Any, weight: int, operand: int) -> Work:
    """A tile of outputs' gradients to the last hidden layer's."""
    depth = C.block_out
    loaded = depth * C.block_n * weight + (0 if C.norm else operand * C.block_m * C.block_n)
    return Work(1, C.block_m * C.block_n * depth, loaded, 1)


def pull_hidden_work(launch: Launch, operand: int) -> Tiled:
    """A hidden layer's gradient to the one before."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[2]
    work = product(C.block_n, C.block_m, C.width, C, weight_of(a), operand)
    if not C.norm:
        work += Work(loaded=operand * C.block_m * C.block_n)
    stored = a["count"] * C.width * operand * (2 if C.norm else 3)
    moved = groups * (C.width**2 * weight_of(a) + stored)
    return work._replace(products=1), 2.0 * groups * a["count"] * C.width**2, moved


def pull_norm_work(launch: Launch, operand: int) -> Tiled:
    """LayerNorm's pullback of whole rows."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[1]
    moved = groups * a["count"] * C.width * operand * ((4 if C.train else 3) - a["OUTPUT"])
    return Work(0, 0, 2 * operand * a["NORM_ROWS"] * C.width, 1), 0.0, moved


def pull_inputs_work(launch: Launch, operand: int) -> Tiled:
    """The first pre-activation's gradient to the inputs."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[2]
    work = product(a["BLOCK_IN"], C.block_m, C.width, C, weight_of(a), operand)
    moved = groups * a["rows"] * (C.width * operand + 4 * C.inputs)
    return work._replace(products=1), 2.0 * groups * a["rows"] * C.width * C.inputs, moved


def sweep_step_work(launch: Launch, operand: int) -> Tiled:
    """A step's gradient to its X, and on to the last hidden layer of the one before."""
    a, C, runs = launch.arguments, launch.arguments["C"], launch.grid[2]
    work, flop, moved = Work(), 0.0, 8.0 * a["batch"] * C.dim
    if not a["FIRST"]:
        work += product(C.block_m, C.block_out, C.width, C, operand, weight_of(a))
        flop += 2.0 * a["batch"] * C.width * C.dim
        moved += a["batch"] * C.width * operand
    if not a["LAST"]:
        work += to_last_hidden(C, weight_of(a), operand)
        flop += 2.0 * a["batch"] * C.width * C.out
        moved += 2 * a["batch"] * C.width * operand
    products = int(not a["FIRST"]) + int(not a["LAST"])
    return work._replace(products=products), runs * flop, runs * moved


def weight_gradient_work(launch: Launch, operand: int) -> Tiled:
    """A block of a kernel's gradient."""
    a, C, groups = launch.arguments, launch.arguments["C"], launch.grid[1]
    work = product(C.block_i, C.block_o, a["rows"], C, operand, operand)._replace(products=1)
    row = C.columns / C.ensemble + 2 * C.depth * C.width + C.block_out
    kernels = C.width * (C.inputs + (C.depth - 1) * C.width + C.out)
    moved = groups * (a["rows"] * row * operand + 4.0 * kernels)
    return work, groups * flop_of(C, a["rows"]), moved


def weight_of(arguments: dict[str, Any]) -> int:
    """Return the bytes of a weight as a launch of a pullback reads it."""
    return arguments["weights"].w_hid.element_size()


def rows_of(launch: Launch) -> tuple[int, int]:
    """Return the rows of a launch over `RowBlocks`, and the networks that they go through."""
    a = launch.arguments
    of_base = (launch.grid[0] - a["ode_tiles"]) // max(a["tiles"], 1) - 1
    return a["batch"] * (1 + of_base) + a["ode_batch"], 2 if of_base > 0 else 1


TILED = {
    "prepare_kernel": prepare_work,
    "gradient_operands_kernel": gradient_operands_work,
    "first_layer_kernel": first_layer_work,
    "hidden_layer_kernel": hidden_layer_work,
    "output_kernel": output_work,
    "rollout_step_kernel": rollout_step_work,
    "pull_output_kernel": pull_output_work,
    "pull_hidden_kernel": pull_hidden_work,
    "pull_norm_kernel": pull_norm_work,
    "pull_inputs_kernel": pull_inputs_work,
    "sweep_step_kernel": sweep_step_work,
    "weight_gradient_kernel": weight_gradient_work,
}
"""Kernels with one layer to a launch, which touch a part of their tensors alone."""


def kernel_bytes(launch: Launch) -> int:
    """Return the bytes that a Triton launch reads and writes, each once."""
    if launch.name not in TILED:
        return launch.bytes
    operand = launch.arguments["C"].operand.primitive_bitwidth // 8
    return int(TILED[launch.name](launch, operand)[2])


def kernel_work(launch: Launch) -> tuple[Work, float, int]:
    """Return a Triton launch's work in its slowest program, its operations, and its programs."""
    a, C = launch.arguments, launch.arguments.get("C")
    programs = math.prod(launch.grid)
    if launch.name == "adjoint_sizes_kernel":  # A run's adjoints, by one program.
        loaded = 4.0 * a["size"] * (a["steps"] + 2)
        return Work(loaded=loaded, blocks=2), 0.0, programs
    if C is None:  # No products: what the launch takes is its bytes.
        return Work(), 0.0, programs
    operand = C.operand.primitive_bitwidth // 8
    if launch.name not in TILED:
        raise ValueError(f"the model does not know what a program of {launch.name} does")
    work, flop, _ = TILED[launch.name](launch, operand)
    if launch.name == "rollout_step_kernel":  # Behind the features some have nothing to do.
        tiles, columns, runs = launch.grid
        if columns > C.width // C.block_n:
            programs -= (tiles - a["tiles"]) * runs
    return work, flop, programs
