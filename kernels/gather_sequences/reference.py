"""The lookup of sequences in plain PyTorch: the specification of the op."""

from __future__ import annotations

from torch import Tensor


def gather_sequences(
    starts: Tensor,
    pool: Tensor,
    actions: Tensor,
    outcomes: Tensor,
    next_rows: Tensor,
    horizon: int,
) -> tuple[Tensor, ...]:
    """Return the fields of the package's `Sequences`; see its `gather_sequences`."""
    rewards, masks, valid = outcomes[starts].unbind(-1)
    steps = actions.unfold(0, horizon, 1).transpose(1, 2)
    following = pool[next_rows[starts]]
    return pool[starts], steps[starts], rewards, masks, valid, following
