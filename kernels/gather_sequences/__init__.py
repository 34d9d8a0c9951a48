"""Batches of sequences, looked up among transitions that lie on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.checks import (
    check_counts,
    check_integer_tensor,
    check_same,
    check_tensor,
)
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.gather_sequences import ops, reference


class Sequences(NamedTuple):
    """Sequences of H steps, and what they come to at the last one.

    Attributes:
        observations: s, `[S, B, O]`.
        actions: Of all steps, `[S, B, H, A]`.
        rewards: R, `[S, B]`.
        masks: m, `[S, B]`.
        valid: Whether the last step lies in the trajectory of the first, 0 or 1, `[S, B]`.
        next_observations: s', `[S, B, O]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    valid: Tensor
    next_observations: Tensor


@torch.no_grad()
def gather_sequences(
    starts: Tensor,
    pool: Tensor,
    actions: Tensor,
    outcomes: Tensor,
    next_rows: Tensor,
    horizon: int,
    *,
    backend: Backend = "auto",
) -> Sequences:
    """Look up the sequences that begin at some transitions, of every run in one call.

    Source: the sequence sampler of docs/algorithm.md, whose sums over a sequence depend on its
    start alone and so lie ready.

    Args:
        starts: Transitions in [0, M), which is not checked, `[S, B]` or any other shape, int64.
        pool: Observations, that of transition i in row i, `[>= N, O]`, float32 or float64.
        actions: Of consecutive transitions, `[N, A]`.
        outcomes: R, m and valid of the sequences from every start, `[M, 3]`, M = N - H + 1.
        next_rows: Rows of the pool that hold their s', `[M]`, int64.
        horizon: H.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        The `Sequences`, the same bits on every backend.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, or `horizon` no integer.
        ValueError: shapes, dtypes, devices or the horizon do not fit.
        BackendError: the backend asked for cannot run.
    """
    op = "gather_sequences"
    check_tensor(op, "pool", pool, (None, None))
    check_tensor(op, "actions", actions, (None, None))
    check_counts(op, horizon=horizon)
    count = actions.shape[0] - horizon + 1
    if count < 1:
        raise ValueError(f"{op}: horizon is {horizon}; expected 1 to {actions.shape[0]} steps")
    if pool.shape[0] < actions.shape[0]:
        raise ValueError(
            f"{op}: pool has {pool.shape[0]} rows for {actions.shape[0]} actions; pass the "
            "observation of every transition"
        )
    check_tensor(op, "outcomes", outcomes, (count, 3))
    check_same(op, pool=pool, actions=actions, outcomes=outcomes)
    for name, tensor in (("starts", starts), ("next_rows", next_rows)):
        check_integer_tensor(op, name, tensor)
        if tensor.device != pool.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, pool on {pool.device}; move one")
    if next_rows.shape != (count,):
        raise ValueError(f"{op}: next_rows has shape {list(next_rows.shape)}; expected {[count]}")
    chosen = choose_backend(op, backend, pool.device, dtype=pool.dtype)
    implementation = reference if chosen == "reference" else ops
    found = implementation.gather_sequences(starts, pool, actions, outcomes, next_rows, horizon)
    return Sequences(*found)


__all__ = ["Sequences", "gather_sequences"]
