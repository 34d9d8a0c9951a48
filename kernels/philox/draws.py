"""What every backend of the random numbers agrees on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64
"""Blocks whose first numbers lie side by side, then their second ones, and so on."""

MAX_COUNT, MAX_STREAM = 2**31 - 1, 2**30 - 1
"""Most numbers of a kind, and the last stream."""


class Counts(NamedTuple):
    """Numbers of a run; their order is that of the kinds."""

    normals: int
    uniforms: int
    integers: int


class Draws(NamedTuple):
    """Random numbers, contiguous.

    Attributes:
        normals: Standard normal, `[S, normals]`.
        uniforms: On [0, 1), `[S, uniforms]`.
        integers: In [0, high), `[S, integers]`, int64.
    """

    normals: Tensor
    uniforms: Tensor
    integers: Tensor


def lanes(dtype: torch.dtype) -> int:
    """Return how many numbers of `dtype` a block of four words makes."""
    return 4 if dtype == torch.float32 else 2


def empty_draws(seeds: Tensor, counts: Counts, dtype: torch.dtype) -> Draws:
    """Return draws that are not initialised."""
    runs = seeds.shape[0]
    return Draws(
        seeds.new_empty(runs, counts.normals, dtype=dtype),
        seeds.new_empty(runs, counts.uniforms, dtype=dtype),
        seeds.new_empty(runs, counts.integers),
    )
