"""Small fields, data and error budgets shared by the tests."""

from __future__ import annotations

import collections
import contextlib
import math
import os
from collections.abc import Hashable, Iterator, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trqam_fast.kernels import MLPWeights
from trqam_fast.networks import MLPShape, ParameterBlock

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
"""Where Triton's kernels run."""

NEEDS_TRITON = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        not INTERPRETED and not torch.cuda.is_available(),
        reason="needs a GPU or TRITON_INTERPRET=1",
    ),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def make_mlp(
    in_features: int,
    out_features: int,
    hidden: tuple[int, ...] = (16, 24),
    *,
    runs: int = 1,
    layer_norm: bool = False,
    ensemble: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> MLPWeights:
    """Random weights, biases and norm parameters included, as contiguous leaves."""
    shape = MLPShape(in_features, hidden, out_features, layer_norm, ensemble)
    block = ParameterBlock({"net": shape}, runs, dtype=torch.float64)
    block.initialise([generator(seed + run) for run in range(runs)])
    noise = draw(*block.flat.shape, seed=seed + 100)
    block.flat.add_(0.1 * noise)
    return block.networks["net"].map(lambda t: t.clone().to(dtype).requires_grad_())


def make_field(obs: int, dim: int, **options) -> MLPWeights:
    return make_mlp(obs + dim + 1, dim, **options)


def cast(weights: MLPWeights, dtype: torch.dtype) -> MLPWeights:
    return weights.map(lambda t: t.detach().to(dtype).requires_grad_())


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 9) -> list[Tensor]:
    """Gradients of <outputs, fixed random cotangents>."""
    total = sum(
        (output * draw(*output.shape, seed=seed + i).to(output)).sum()
        for i, output in enumerate(outputs)
        if output.requires_grad
    )
    return list(torch.autograd.grad(total, inputs))


def error(found: Tensor, exact: Tensor) -> float:
    """Largest error relative to the scale of the exact tensor."""
    difference = (found.detach().double() - exact.detach()).abs().max()
    return float(difference / exact.detach().abs().max().clamp(min=1e-30))


def mean_error(found: Tensor, exact: Tensor) -> float:
    """Mean error relative to the scale of the exact tensor."""
    difference = (found.detach().double() - exact.detach()).abs().mean()
    return float(difference / exact.detach().abs().max().clamp(min=1e-30))


class ErrorBudget:
    """float32 results may err at most twice as much as the same arithmetic in plain PyTorch.

    What is judged is the geometric mean, over independent draws, of the ratio of both errors
    against float64. A draw that is ill-conditioned makes both large, so it does not decide alone.
    A draw's error is the mean over a tensor, relative to its largest element, and at least half a
    unit in the last place: plain PyTorch may happen to hit the rounded result.
    """

    floor = 6e-8

    def __init__(self) -> None:
        self.ratios: dict[Hashable, list[float]] = collections.defaultdict(list)

    def add(self, name: Hashable, found: Tensor, plain: Tensor, exact: Tensor) -> None:
        """Add the draws of a tensor, one for each entry of its first axis."""
        for draw in zip(found, plain, exact, strict=True):
            ours, theirs = (max(mean_error(each, draw[2]), self.floor) for each in draw[:2])
            self.ratios[name].append(math.log(ours / theirs))

    def check(self, draws: int) -> None:
        """Raise AssertionError unless every tensor had that many draws and keeps its budget."""
        for name, ratios in self.ratios.items():
            assert len(ratios) >= draws, name
            ratio = math.exp(sum(ratios) / len(ratios))
            assert ratio <= 2.0, (name, ratio)


LOST_BITS = {"tf32": 13, "bf16": 16}
"""Of float32's 23 explicit bits; those of fp16, where it is not below its range, are tf32's."""


class CoarseProducts(TorchDispatchMode):
    """Operands of matrix products lose bits, as in the matrix units of a GPU.

    The units that read operands from shared memory cut the bits off; those that a conversion
    precedes round to nearest.
    """

    def __init__(self, precision, cut):
        super().__init__()
        self.lost, self.cut = LOST_BITS[precision], cut

    def coarse(self, operand):
        bits = operand.contiguous().view(torch.int32)
        if not self.cut:
            bits = bits + (1 << (self.lost - 1)) - 1 + (bits >> self.lost & 1)
        return (bits >> self.lost << self.lost).view(torch.float32)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}.get(func._schema.name[6:])
        if first is not None and args[first].dtype == torch.float32:
            operands = [self.coarse(operand) for operand in args[first : first + 2]]
            args = (*args[:first], *operands, *args[first + 2 :])
        return func(*args, **(kwargs or {}))


def assert_within_budget(
    found: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """float32 results may err at most twice as much as the same arithmetic in plain PyTorch.

    Errors are means over a tensor: single elements of ill-conditioned rows err by chance. Where
    plain PyTorch happens to hit the rounded result, one unit in the last place is left.

    On a GPU both are doubled: a kernel's exponential and quotient are the hardware's, which err by
    up to 2 units each, and its sums are one chain where a library's product adds up several.
    """
    slack = 2.0 if found[0].is_cuda else 1.0
    shares = []
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        budget = slack * max(2.0 * mean_error(theirs, truth), 1.2e-7)
        shares.append(mean_error(ours, truth) / budget)
    print("share of the error budget of each tensor:", *(f"{share:.2f}" for share in shares))
    for index, share in enumerate(shares):
        assert share <= 1.0, (index, share)


def assert_equal64(
    found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float = 1e-12
) -> None:
    for index, (ours, truth) in enumerate(zip(found, exact, strict=True)):
        assert ours.shape == truth.shape, index
        assert error(ours, truth) <= tolerance, (index, error(ours, truth))


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(4).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)
