"""Counter-based normal noise: Philox 4x32-10 and the Box-Muller transform.

The number at a position is a function of (seed, offset, position) alone, so it can be drawn inside
a kernel, in any order, on any device, and under a captured graph whose offset lies in a tensor.
Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
MASK = 0xFFFFFFFF
ROUNDS = 10


class Philox(NamedTuple):
    """Noise given by its counters.

    Attributes:
        seed: One seed for each run, `[S]`, int64, on the data's device.
        offset: Distinguishes the calls of a run, below 2^32; `[]`, int64, on the same device.
    """

    seed: Tensor
    offset: Tensor


def philox(seed: Tensor, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return four uniform 32-bit numbers for each counter, as int64 tensors.

    Args:
        seed: 64-bit keys, int64, broadcastable against the counters.
        counters: Four 32-bit counters, int64 tensors.
    """
    key_a, key_b = seed & MASK, (seed >> 32) & MASK
    c0, c1, c2, c3 = counters
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


def philox_normal(
    noise: Philox, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the standard normal noise of a rollout.

    Element (k, b, d) of run s takes the first of the four numbers at the counters
    (b D + d, k, offset, 0) for its radius and the second for its angle.

    Args:
        noise: Seeds and offset.
        shape: (K - 1, B, D).
        dtype: Type of the result, whose numbers come from float32 uniforms.

    Returns:
        `[S, K - 1, B, D]`.
    """
    steps, batch, dim = shape
    device = noise.seed.device
    element = torch.arange(batch * dim, device=device).view(1, 1, -1)
    step = torch.arange(steps, device=device).view(1, -1, 1)
    seed = noise.seed.view(-1, 1, 1)
    zero = torch.zeros_like(element)
    runs = seed.shape[0]
    counters = [
        counter.expand(runs, steps, batch * dim)
        for counter in (element, step, noise.offset & MASK, zero)
    ]
    first, second, _, _ = philox(seed, tuple(counters))
    radius = torch.sqrt(-2.0 * torch.log(uniform(first).double()))
    angle = 2.0 * math.pi * uniform(second).double()
    return (radius * torch.cos(angle)).to(dtype).view(runs, steps, batch, dim)


def uniform(bits: Tensor) -> Tensor:
    """Map 32-bit numbers to (0, 1]: the upper 24 bits, half a unit up, in float32."""
    return ((bits >> 8).float() + 0.5) * 2.0**-24
