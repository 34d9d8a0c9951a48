"""All random numbers of all runs in one launch, and the step of their counter.

A program makes the words of 256 counters of one kind and run and the numbers from them; a number
and the next one lie side by side in memory, so that stores are whole. The logarithm and the sine
are series of float32 products like those of csrc/philox.inl, not the machine's approximations,
whose errors near 1 would be those of the square root's argument: its sign too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.philox.draws import GROUP, Counts, Draws, lanes

BLOCK = 256
LANES: tl.constexpr = tl.constexpr(lanes(torch.float32))
PAIRS: tl.constexpr = tl.constexpr(lanes(torch.int64))
SIDE_BY_SIDE: tl.constexpr = tl.constexpr(GROUP)
ROOT_HALF: tl.constexpr = tl.constexpr(0x3F3504F3)  # bits of sqrt(1/2)


@triton.jit
def logarithm(u):
    """Log u for u in (0, 1], never positive: u = m 2^e and log m = 2 artanh((m - 1) / (m + 1))."""
    above = u.to(tl.int32, bitcast=True) - ROOT_HALF
    e = (above >> 23).to(tl.float32)
    m = ((above & 0x7FFFFF) + ROOT_HALF).to(tl.float32, bitcast=True)
    s = tl.div_rn(m - 1.0, m + 1.0)
    z = s * s
    series = z * (1.0 / 3.0 + z * (1.0 / 5.0 + z * (1.0 / 7.0 + z * (1.0 / 9.0))))
    # log 2 in two parts, so that e times the first is exact.
    return e * 0.693145751953125 + (2.0 * s + (2.0 * s * series + e * 1.4286068203094172e-6))


@triton.jit
def cosine_and_sine(x):
    """Cosine and sine of a turn times x / 2^32: series on an eighth of a turn to both sides."""
    turned = x + 0x20000000
    quadrant = (turned >> 30).to(tl.int32)
    rest = (turned & 0x3FFFFFFF).to(tl.int32) - 0x20000000
    angle = rest.to(tl.float32) * 1.4629180792671596e-9  # pi / 2^31
    z = angle * angle
    s = 1.0 - z * (1.0 / 42.0) * (1.0 - z * (1.0 / 72.0))
    s = angle * (1.0 - z * (1.0 / 6.0) * (1.0 - z * (1.0 / 20.0) * s))
    c = 1.0 - z * (1.0 / 56.0) * (1.0 - z * (1.0 / 90.0))
    c = 1.0 - z * 0.5 * (1.0 - z * (1.0 / 12.0) * (1.0 - z * (1.0 / 30.0) * c))
    odd = (quadrant & 1) == 1
    first, second = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where(((quadrant + 1) & 2) == 2, -first, first)
    return cosine, tl.where((quadrant & 2) == 2, -second, second)


@triton.jit
def store_normals(x, y, into, at, count):
    """Store the two numbers of a pair of words, `at` and a group further on."""
    u = x.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    square = -2.0 * logarithm(u)
    radius = tl.sqrt_rn(tl.maximum(square, 0.0))
    cosine, sine = cosine_and_sine(y)
    tl.store(into + at, radius * cosine, mask=at < count)
    at += SIDE_BY_SIDE
    tl.store(into + at, radius * sine, mask=at < count)


@triton.jit
def store_uniform(x, into, at, count):
    """Store the upper 24 bits of a word over 2^24."""
    tl.store(into + at, (x >> 8).to(tl.float32) * 5.9604644775390625e-08, mask=at < count)


@triton.jit
def store_integer(lower, upper, high, into, at, count):
    """Store floor(high x / 2^64) of the 64 bits of two words."""
    carried = (lower.to(tl.int64) * high) >> 32
    tl.store(into + at, (upper.to(tl.int64) * high + carried) >> 32, mask=at < count)


@triton.jit(do_not_specialize=["stream", "high", "normals", "uniforms", "integers"])
def philox_kernel(
    seeds,  # [S], int64
    offset,  # [1], int64, by CALLS more afterwards
    ended,  # [1], int32 with CALLS: programs that have read it, 0 before and after
    normal,  # [S, normals]
    uniform,  # [S, uniforms]
    integer,  # [S, integers], int64
    stream,
    high,
    normals,
    uniforms,
    integers,
    CALLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid [programs of the normals + of the uniforms + of the integers, S].

    With two calls normals and uniforms are of the second one.
    """
    run = tl.program_id(1)
    wide = tl.cast(run, tl.int64)
    program = tl.program_id(0)
    for_normals = tl.cdiv(normals, LANES * BLOCK)
    for_uniforms = tl.cdiv(uniforms, LANES * BLOCK)
    kind = tl.where(program < for_normals, 0, tl.where(program < for_normals + for_uniforms, 1, 2))
    before = tl.where(kind == 0, 0, tl.where(kind == 1, for_normals, for_normals + for_uniforms))
    block = (program - before) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(offset)
    counter = start
    if CALLS == 2:
        counter += tl.where(kind < 2, 1, 0)
    same = block * 0
    w0, w1, w2, w3 = tl.philox(
        tl.load(seeds + run),
        block,
        same + (stream * 4 + kind),
        same + counter.to(tl.int32),
        same + (counter >> 32).to(tl.int32),
    )
    group, within = block // SIDE_BY_SIDE, block % SIDE_BY_SIDE
    first = group * (LANES * SIDE_BY_SIDE) + within
    if kind == 0:
        to_normals = normal + wide * normals
        store_normals(w0, w1, to_normals, first, normals)
        store_normals(w2, w3, to_normals, first + 2 * SIDE_BY_SIDE, normals)
    elif kind == 1:
        to_uniforms = uniform + wide * uniforms
        store_uniform(w0, to_uniforms, first, uniforms)
        store_uniform(w1, to_uniforms, first + SIDE_BY_SIDE, uniforms)
        store_uniform(w2, to_uniforms, first + 2 * SIDE_BY_SIDE, uniforms)
        store_uniform(w3, to_uniforms, first + 3 * SIDE_BY_SIDE, uniforms)
    else:
        to_integers, bound = integer + wide * integers, tl.cast(high, tl.int64)
        first = group * (PAIRS * SIDE_BY_SIDE) + within
        store_integer(w0, w1, bound, to_integers, first, integers)
        store_integer(w2, w3, bound, to_integers, first + SIDE_BY_SIDE, integers)
    if CALLS > 0:
        # All threads have read the counter, and when the last program ends all programs.
        tl.debug_barrier()
        before = tl.atomic_add(ended, 1)
        if before == tl.num_programs(0) * tl.num_programs(1) - 1:
            tl.store(ended, 0)
            tl.store(offset, start + CALLS)


def philox(
    seeds: Tensor,
    offset: Tensor,
    ended: Tensor | None,
    stream: int,
    counts: Counts,
    high: int,
    draws: Draws,
    calls: int,
) -> None:
    """Write all `draws`, whose normals and uniforms are float32, and count with `ended`."""
    programs = sum(
        triton.cdiv(count, lanes(draw.dtype) * BLOCK)
        for count, draw in zip(counts, draws, strict=True)
    )
    if programs == 0 and ended is None:
        return
    with torch.cuda.device_of(seeds):
        philox_kernel[(max(programs, 1), seeds.shape[0])](
            seeds, offset, offset if ended is None else ended, *draws, stream, high, *counts,
            0 if ended is None else calls, BLOCK, num_warps=4,
        )  # fmt: skip
