"""The compiled random numbers, registered with torch.library."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.philox.draws import Counts, Draws, empty_draws
from trqam_fast.kernels.registration import register


class Philox(NamedTuple):
    """csrc/philox.h: Philox."""

    runs: int
    stream: int
    high: int
    normals: int
    uniforms: int
    integers: int
    seeds: int
    offset: int
    normal: int
    uniform: int
    integer: int


def _philox(seeds, offset, stream, normals, uniforms, integers, high, dtype, backend):
    if backend == "triton":
        return _by_triton(seeds, offset, None, stream, normals, uniforms, integers, high, dtype, 1)
    seeds, counts = seeds.contiguous(), Counts(normals, uniforms, integers)
    draws = empty_draws(seeds, counts, dtype)
    fields = Philox(
        runs=seeds.shape[0],
        stream=stream,
        high=high,
        normals=normals,
        uniforms=uniforms,
        integers=integers,
        seeds=seeds.data_ptr(),
        offset=offset.data_ptr(),
        normal=draws.normals.data_ptr(),
        uniform=draws.uniforms.data_ptr(),
        integer=draws.integers.data_ptr(),
    )
    call("philox", fields, draws.normals)
    return tuple(draws)


def _by_triton(seeds, offset, ended, stream, normals, uniforms, integers, high, dtype, calls):
    from trqam_fast.kernels.philox.triton import philox

    seeds, counts = seeds.contiguous(), Counts(normals, uniforms, integers)
    draws = empty_draws(seeds, counts, dtype)
    philox(seeds, offset, ended, stream, counts, high, draws, calls)
    return tuple(draws)


def _philox_fake(seeds, offset, stream, normals, uniforms, integers, high, dtype, backend):
    return tuple(empty_draws(seeds, Counts(normals, uniforms, integers), dtype))


def _next_fake(seeds, offset, ended, stream, normals, uniforms, integers, high, dtype, calls):
    return tuple(empty_draws(seeds, Counts(normals, uniforms, integers), dtype))


register(
    "philox(Tensor seeds, Tensor offset, int stream, int normals, int uniforms, int integers, "
    "int high, ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
    _philox,
    _philox_fake,
)


register(
    "philox_next(Tensor seeds, Tensor(a!) offset, Tensor(b!) ended, int stream, int normals, "
    "int uniforms, int integers, int high, ScalarType dtype, int calls) "
    "-> (Tensor, Tensor, Tensor)",
    _by_triton,
    _next_fake,
)


def philox(
    seeds: Tensor,
    offset: Tensor,
    stream: int,
    counts: Counts,
    high: int,
    dtype: torch.dtype,
    backend: str,
    ended: Tensor | None = None,
    calls: int = 1,
) -> Draws:
    """Draw the numbers; see the package's `philox`. With `ended`, by Triton, count further."""
    if ended is not None:
        return Draws(
            *torch.ops.trqam_fast.philox_next(
                seeds, offset, ended, stream, *counts, high, dtype, calls
            )
        )
    return Draws(*torch.ops.trqam_fast.philox(seeds, offset, stream, *counts, high, dtype, backend))
