"""The random numbers in plain PyTorch: the specification of the op.

Bits are exact; logarithm, root, cosine and sine are computed in float64 and rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trqam_fast.kernels.philox.draws import GROUP, Counts, Draws, lanes

KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
MASK = 0xFFFFFFFF
ROUNDS = 10


def philox4x32(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of each counter, as int64 tensors.

    Args:
        seed: 64-bit keys, int64, broadcastable against the counters.
        counter: Four 32-bit counters, int64 tensors.
    """
    key_a, key_b = seed & MASK, (seed >> 32) & MASK
    c0, c1, c2, c3 = counter
    for _ in range(ROUNDS):
        high_a, low_a = multiply(c0, ROUND_A)
        high_b, low_b = multiply(c2, ROUND_B)
        c0, c1, c2, c3 = high_b ^ c1 ^ key_a, low_b, high_a ^ c3 ^ key_b, low_a
        key_a, key_b = (key_a + KEY_A) & MASK, (key_b + KEY_B) & MASK
    return c0, c1, c2, c3


def multiply(value: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of `value * factor`, in 64-bit signed arithmetic."""
    low = (value & 0xFFFF) * factor
    high = (value >> 16) * factor + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def words(seeds: Tensor, offset: Tensor, stream: int, kind: int, blocks: int) -> list[Tensor]:
    """Return the four words of blocks 0..blocks - 1 of every run, `[S, blocks]` each."""
    block = torch.arange(blocks, device=seeds.device).expand(seeds.shape[0], -1)
    purpose = torch.full_like(block, 4 * stream + kind)
    low, high = ((offset >> shift & MASK).expand_as(block) for shift in (0, 32))
    return list(philox4x32(seeds.unsqueeze(1), (block, purpose, low, high)))


def arrange(numbers: list[Tensor], count: int) -> Tensor:
    """Return `[S, count]` from the numbers of each lane, `[S, blocks]`."""
    grouped = torch.stack([lane.unflatten(1, (-1, GROUP)) for lane in numbers], dim=2)
    return grouped.flatten(1)[:, :count].contiguous()


def bits_of(block: list[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], int]:
    """Return the bits that make the numbers of a block, and how many of each: 32 or 53."""
    if dtype == torch.float32:
        return block, 32
    pairs = zip(block[::2], block[1::2], strict=True)
    return [(upper << 21) | (lower >> 11) for lower, upper in pairs], 53


def normals_of(block: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return standard normal numbers by the transform of Box and Muller."""
    bits, used = bits_of(block, dtype)
    numbers = []
    for x, y in zip(bits[::2], bits[1::2], strict=True):
        u = x.to(dtype) * 2.0**-used + 2.0 ** -(used + 1)
        radius = torch.sqrt(-2.0 * torch.log(u.double()))
        # The quarter of the turn nearest to the angle, and the rest, within an eighth of a turn.
        quarter = used - 2
        turned = y + 2 ** (quarter - 1)
        rest = (turned & (2**quarter - 1)) - 2 ** (quarter - 1)
        angle = rest.double() * (0.5 * math.pi / 2**quarter)
        quadrant, cosine, sine = (turned >> quarter) & 3, torch.cos(angle), torch.sin(angle)
        odd = (quadrant & 1) == 1
        first, second = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
        cosine = torch.where((quadrant + 1) & 2 == 2, -first, first)
        sine = torch.where(quadrant & 2 == 2, -second, second)
        numbers += [(radius * cosine).to(dtype), (radius * sine).to(dtype)]
    return numbers


def uniforms_of(block: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return numbers uniform on [0, 1) with all bits of the mantissa."""
    bits, used = bits_of(block, dtype)
    mantissa = 24 if dtype == torch.float32 else 53
    return [(x >> (used - mantissa)).to(dtype) * 2.0**-mantissa for x in bits]


def integers_of(block: list[Tensor], high: int) -> list[Tensor]:
    """Return floor(high x / 2^64) of 64 bits x; nothing overflows for `high` up to 2^31."""
    pairs = zip(block[::2], block[1::2], strict=True)
    return [(upper * high + (lower * high >> 32)) >> 32 for lower, upper in pairs]


def philox(
    seeds: Tensor,
    offset: Tensor,
    stream: int,
    counts: Counts,
    high: int,
    dtype: torch.dtype,
) -> Draws:
    """Draw the numbers; see the package's `philox`."""

    def block(kind: int, of: torch.dtype) -> list[Tensor]:
        size = GROUP * lanes(of)
        return words(seeds, offset, stream, kind, GROUP * -(-counts[kind] // size))

    return Draws(
        arrange(normals_of(block(0, dtype), dtype), counts.normals),
        arrange(uniforms_of(block(1, dtype), dtype), counts.uniforms),
        arrange(integers_of(block(2, torch.int64), high), counts.integers),
    )
