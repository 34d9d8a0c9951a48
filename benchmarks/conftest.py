"""Sizes and inputs shared by the benchmarks; see README.md, "Benchmarks"."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trqam_fast.kernels import MLPWeights
from trqam_fast.networks import MLPShape, ParameterBlock

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ON_CPU = [("reference", "ieee"), ("cpp", "ieee")]
ON_GPU = [*ON_CPU, ("triton", "ieee"), ("triton", "tf32"), ("triton", "bf16")]
VARIANTS = [
    (device, backend, precision)
    for device in DEVICES
    for backend, precision in (ON_CPU if device == "cpu" else ON_GPU)
]
"""Device, backend and precision of every benchmark."""


@dataclass(frozen=True)
class Size:
    """Sizes of one benchmark case."""

    name: str
    width: int
    depth: int
    batch: int
    ensemble: int
    obs_dim: int
    act_dim: int
    horizon: int
    flow_steps: int = 10

    @property
    def dim(self) -> int:
        return self.act_dim * self.horizon


SIZES = [
    Size("small", 128, 3, 128, 2, 2, 2, 1),
    Size("paper", 512, 4, 256, 10, 28, 5, 5),
]


QUICK = {"small"}


@pytest.fixture(
    params=[
        pytest.param(size, id=size.name, marks=[pytest.mark.quick] if size.name in QUICK else [])
        for size in SIZES
    ]
)
def size(request) -> Size:
    return request.param


@dataclass(frozen=True)
class Variant:
    """Where and how a benchmark runs."""

    device: str
    backend: str
    precision: str

    @property
    def options(self) -> dict[str, str]:
        return {"backend": self.backend, "precision": self.precision}


@pytest.fixture(params=VARIANTS, ids="-".join)
def variant(request) -> Variant:
    return Variant(*request.param)


def without_products(*backends: str):
    """Run a benchmark of an op without matrix products: once for each backend that has it."""
    chosen = [v for v in VARIANTS if v[1] in backends and v[2] == "ieee"]
    return pytest.mark.parametrize("variant", chosen, ids="-".join, indirect=True)


def draw(*shape: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def make_field(size: Size, device: str, seed: int = 0) -> MLPWeights:
    shape = MLPShape(size.obs_dim + size.dim + 1, (size.width,) * size.depth, size.dim)
    block = ParameterBlock({"field": shape}, 1, device=device, trainable=True)
    block.initialise([torch.Generator().manual_seed(seed)])
    return block.networks["field"]


def synchronised(function, device: str):
    """`function` with the device idle again when it returns."""

    def call():
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    return call
