"""What an update is given: one batch of sequences for every run."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Sampled sequences, reduced to what an update needs (index H-1 of the sampler).

    Attributes:
        observations: s, `[S, B, O]`.
        actions: `[S, B, H, A]`, in [-1, 1].
        rewards: Discounted sum R, `[S, B]`.
        masks: m, 0 where the task was solved, `[S, B]`.
        valid: 1 where step H-1 lies in the trajectory of s, `[S, B]`.
        next_observations: s', `[S, B, O]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    valid: Tensor
    next_observations: Tensor
