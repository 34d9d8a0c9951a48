"""The lookup of sequences by Triton's kernel, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.registration import register


def _gather(starts, pool, actions, outcomes, next_rows, horizon):
    from trqam_fast.kernels.gather_sequences import triton

    into = _gather_fake(starts, pool, actions, outcomes, next_rows, horizon)
    starts, pool, actions, outcomes, next_rows = (
        tensor.contiguous() for tensor in (starts, pool, actions, outcomes, next_rows)
    )
    triton.gather_sequences(starts, pool, actions, outcomes, next_rows, into)
    return into


def _gather_fake(starts, pool, actions, outcomes, next_rows, horizon):
    new, lead = pool.new_empty, starts.shape
    return (
        new(*lead, pool.shape[1]),
        new(*lead, horizon, actions.shape[1]),
        *(new(lead) for _ in range(3)),
        new(*lead, pool.shape[1]),
    )


register(
    "gather_sequences(Tensor starts, Tensor pool, Tensor actions, Tensor outcomes, "
    "Tensor next_rows, int horizon) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gather,
    _gather_fake,
)


def gather_sequences(
    starts: Tensor,
    pool: Tensor,
    actions: Tensor,
    outcomes: Tensor,
    next_rows: Tensor,
    horizon: int,
) -> tuple[Tensor, ...]:
    """Return the fields of the package's `Sequences`; see its `gather_sequences`."""
    return torch.ops.trqam_fast.gather_sequences(
        starts, pool, actions, outcomes, next_rows, horizon
    )
