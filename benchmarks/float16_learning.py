"""Does float16's rounding change what is learned? python -m benchmarks.float16_learning --json OUT

Trains the default task twice for each seed on the CPU, in plain PyTorch: as it is, and with the
operands of every matrix product, and the pre-activations that a pullback finds in the tape, rounded
as the Triton kernels round them with `--precision fp16` (`kernels/mlp/triton_operands.py`); sums
stay float32 in both. Further flags are the trainer's. Runs are kept in --out and go on where they
were.

What differs from the kernels: they fold LayerNorm into the next product, and so round a critic's
activations before it and not after, and they round the gradient that LayerNorm's pullback starts
from; and a row of a gradient keeps its power of two through all layers of a chain, where here every
product finds its own, so that a gradient which shrinks 16,000 times within a chain would lose bits
there and not here.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.compare_learning import train_ours
from benchmarks.evidence.statistics import compare
from benchmarks.evidence.tables import aligned
from benchmarks.learning_curves import evaluated
from benchmarks.records import describe, save
from trqam_fast.cli import run_command
from trqam_fast.train import resolve

LARGEST = torch.finfo(torch.float16).max
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}
SLOPE = torch.ops.aten.gelu_backward.default
WITH_BIAS = {torch.ops.aten.addmm.default, torch.ops.aten.baddbmm.default}


def rounded(values: Tensor) -> Tensor:
    """Round to float16 and back; what is larger than its largest number becomes that."""
    return values.clamp(-LARGEST, LARGEST).half().float()


def rounded_over(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Round what is divided by the power of two up to the largest number along `dims`."""
    largest = values.abs().amax(dims, keepdim=True)
    power = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return rounded(values * power.reciprocal()) * power


class Float16Operands(TorchDispatchMode):
    """Rounds the operands of float32 products within it, and what GELU's derivative is taken at.

    A gradient, which only a backward pass has, is the first operand where the gradient of inputs is
    computed and the second one where that of weights is: the first takes a power of two for each
    row, the second one for all rows. Weights and activations beside it have sizes that no power
    changes the rounding of.

    Attributes:
        products: Number of products so far, forwards and backwards.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = {"forwards": 0, "backwards": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS or func in WITH_BIAS:
            first, second = args[-2:]
            if first.dtype == torch.float32:
                args = (*args[:-2], *self._operands(first, second))
        elif func is SLOPE and args[1].dtype == torch.float32:
            args = (args[0], rounded(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))

    def _operands(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if torch._C._current_graph_task_id() == -1:
            self.products["forwards"] += 1
            return rounded(first), rounded(second)
        self.products["backwards"] += 1
        return rounded_over(first, (-1,)), rounded_over(second, (-2, -1))


@dataclass(frozen=True)
class Float16Args:
    """Train with operands as they are and rounded to float16, and compare what is learned.

    Further flags are those of python -m trqam_fast.train.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; those of both sides are the same, and so are their random numbers."""
    updates: int = 12_500
    """Updates of fine-tuning."""
    out: Path = Path("runs/float16")
    """Folder of the runs."""
    json: Path | None = None
    """File for the result."""


def main(argv: list[str] | None = None) -> int:
    """Train, print, write."""
    args, flags = tyro.cli(
        Float16Args, args=argv, prog="python -m benchmarks.float16_learning",
        return_unknown_args=True,
    )  # fmt: skip
    sides = {"float32": contextlib.nullcontext(), "float16": Float16Operands()}
    curves: dict[str, dict[int, dict[int, float]]] = {side: {} for side in sides}
    steps: list[int] = []
    for seed in args.seeds:
        for side, mode in sides.items():
            folder = args.out / f"{side}-seed_{seed}"
            own = ["--backend", "reference", "--offline-steps", str(args.updates)]
            own += ["--seeds", str(seed), "--run-dir", str(folder), "--resume", "auto"]
            config = resolve([*flags, *own])
            steps = evaluated(config.eval_interval, args.updates)
            with mode:
                curves[side][seed] = train_ours(config).success
    scores = {
        side: np.array([np.mean([of.get(step, 0.0) for step in steps]) for of in by_seed.values()])
        for side, by_seed in curves.items()
    }
    found = compare([scores["float16"] - scores["float32"]])
    rows = [["success, %, by update", *map(str, steps), "mean"]]
    for side, by_seed in curves.items():
        for (seed, curve), score in zip(by_seed.items(), scores[side], strict=True):
            cells = (100 * curve.get(step, 0.0) for step in steps)
            rows.append([f"{side}, seed {seed}", *(f"{x:.0f}" for x in (*cells, 100 * score))])
    print("\n".join(aligned(rows)))
    print(f"float16 - float32: {100 * found.mean:+.1f} points of the mean over evaluations")
    if args.json is not None:
        record = describe("learning with operands rounded to float16, emulated on the CPU")
        record |= {"seeds": args.seeds, "success": curves, "difference": found._asdict()}
        save(args.json, record)
        print(f"wrote {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
