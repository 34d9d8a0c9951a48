"""Random numbers as a function of seed and counter: the same on every backend, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.checks import (
    FLOATING,
    check_counter,
    check_integer_tensor,
    check_integers,
)
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.philox import ops, reference
from trqam_fast.kernels.philox.draws import MAX_COUNT, MAX_STREAM, Counts, Draws


def philox(
    seeds: Tensor,
    offset: Tensor,
    *,
    stream: int,
    normals: int = 0,
    uniforms: int = 0,
    integers: int = 0,
    high: int = 1,
    dtype: torch.dtype = torch.float32,
    ended: Tensor | None = None,
    calls: int = 1,
    backend: Backend = "auto",
) -> Draws:
    """Draw random numbers for every run, all kinds and runs in one call.

    Number j of a run is a function of its seed, of `offset`, of `stream`, of the kind of number and
    of j: neither the number of runs nor how many numbers are drawn changes it. Calls that are to
    be independent need another offset or another stream; the kinds do not share bits.

    Philox4x32-10 turns the counter (block, 4 stream + kind, offset), kind = 0, 1, 2 for normals,
    uniforms and integers, and the 64-bit key `seed` into four 32-bit words w_0..w_3. A float32 is
    made of one word each, so a block makes L = 4 numbers; a float64 or an integer is made of the
    64 bits w_0 + 2^32 w_1 or w_2 + 2^32 w_3, and L = 2. Number j is number (j // 64) % L of block
    64 (j // (64 L)) + j % 64. With bits x of 32, or the upper 53 of 64::

        uniform   the upper 24 bits of x / 2^24, or x / 2^53: in [0, 1)
        normal    from two neighbours, u = (x + 1/2) / 2^32 (or 2^53) in (0, 1] and the turn
                  y / 2^32 (or 2^53): sqrt(-2 log u) cos and sin of the turn (Box and Muller)
        integer   floor(high x / 2^64) of all 64 bits: in [0, high); a value's probability is off
                  by less than 2^-64

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).

    Args:
        seeds: One key for each run, `[S]`, int64.
        offset: Counter of the caller's, `[1]`, int64, on the device of `seeds`. It is read where it
            lies: a captured graph that adds to it draws anew at every replay.
        stream: What the numbers are for, in [0, 2^30).
        normals: Standard normal numbers of a run, below 2^31, as the other counts.
        uniforms: Numbers uniform on [0, 1) of a run.
        integers: Integers uniform on [0, `high`) of a run.
        high: Bound of the integers, 1 to 2^31.
        dtype: float32 or float64, of normals and uniforms.
        ended: If given, `offset` is advanced by `calls`. A counter for the Triton kernel's own use,
            `[1]`, int32, on the device of `seeds`; 0 before and after, and not shared between
            callers that run at the same time.
        calls: 1; or 2 with `ended`: the integers are then those of one call, normals and uniforms
            those of the next.
        backend: ``auto``, ``reference``, ``cpp`` or ``triton`` (float32 on a GPU).

    Returns:
        The `Draws`. Uniforms and integers are equal on every backend; normals agree to a few
        units in the last place.

    Raises:
        TypeError: `seeds` or `offset` is no int64 tensor, `ended` no int32 one, `dtype` is another,
            or a number is no integer.
        ValueError: shapes, devices, counts, `stream` or `high` do not fit.
        BackendError: the backend asked for cannot run.
    """
    op, counts = "philox", Counts(normals, uniforms, integers)
    for name, tensor in (("seeds", seeds), ("offset", offset)):
        check_integer_tensor(op, name, tensor)
    if ended is not None:
        check_counter(op, "ended", ended, torch.int32, seeds.device)
    if seeds.dim() != 1 or seeds.numel() == 0 or offset.shape != (1,):
        raise ValueError(
            f"{op}: seeds has shape {list(seeds.shape)} and offset {list(offset.shape)}; expected "
            "[S] and [1]"
        )
    if offset.device != seeds.device:
        raise ValueError(f"{op}: offset is on {offset.device}, seeds on {seeds.device}; move one")
    if dtype not in FLOATING:
        raise TypeError(f"{op}: dtype is {dtype}; use torch.float32 or torch.float64")
    check_integers(op, stream=stream, high=high, **counts._asdict())
    if calls not in ((1,) if ended is None else (1, 2)):
        raise ValueError(f"{op}: calls is {calls}; use 1, or 2 if ended is given")
    if not 0 <= stream <= MAX_STREAM:
        raise ValueError(f"{op}: stream is {stream}; it must be in [0, {MAX_STREAM}]")
    if not 1 <= high <= 2**31:
        raise ValueError(f"{op}: high is {high}; it must be in [1, {2**31}]")
    if not 0 <= min(counts) <= max(counts) <= MAX_COUNT:
        raise ValueError(f"{op}: numbers are {counts}; each count must be in [0, {MAX_COUNT}]")
    chosen = choose_backend(op, backend, seeds.device, dtype=dtype)
    if chosen == "triton" and ended is not None:
        return ops.philox(seeds, offset, stream, counts, high, dtype, chosen, ended, calls)
    implementation, options = (reference, ()) if chosen == "reference" else (ops, (chosen,))

    def draw(counts: Counts) -> Draws:
        draws = implementation.philox(seeds, offset, stream, counts, high, dtype, *options)
        if ended is not None:
            offset.add_(1)
        return draws

    if calls == 1:
        return draw(counts)
    drawn = draw(Counts(0, 0, integers)).integers
    return draw(Counts(normals, uniforms, 0))._replace(integers=drawn)


__all__ = ["Draws", "philox"]
