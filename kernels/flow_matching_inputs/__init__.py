"""What a velocity field is trained on by flow matching."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.flow_matching_inputs import ops, reference


class FlowMatching(NamedTuple):
    """Result of `flow_matching_inputs`.

    Attributes:
        inputs: `[s, x_t, t]`, `[S, B, O + D + 1]`.
        velocity: What the field is to be there, `[S, B, D]`.
    """

    inputs: Tensor
    velocity: Tensor


@torch.no_grad()
def flow_matching_inputs(
    observations: Tensor,
    actions: Tensor,
    x0: Tensor,
    times: Tensor,
    *,
    backend: Backend = "auto",
) -> FlowMatching:
    """Points between noise and actions, and the velocity of the straight lines through them.

    ::

        x_t = (1 - t) x_0 + t a        velocity = a - x_0

    Source: docs/algorithm.md, "Behaviour cloning".

    Args:
        observations: s, `[S, B, O]`, float32 or float64.
        actions: a, `[S, B, D]`.
        x0: `[S, B, D]`, standard normal.
        times: t in [0, 1], `[S, B, 1]`.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        The `FlowMatching`, without gradients.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit.
        BackendError: the backend asked for cannot run.
    """
    op = "flow_matching_inputs"
    check_tensor(op, "observations", observations, ("S", "B", "O"))
    runs, batch, _ = observations.shape
    check_tensor(op, "actions", actions, (runs, batch, "D"))
    check_tensor(op, "x0", x0, tuple(actions.shape))
    check_tensor(op, "times", times, (runs, batch, 1))
    check_same(op, observations=observations, actions=actions, x0=x0, times=times)
    chosen = choose_backend(op, backend, actions.device, dtype=actions.dtype)
    implementation = reference if chosen == "reference" else ops
    return FlowMatching(*implementation.flow_matching_inputs(observations, actions, x0, times))


__all__ = ["FlowMatching", "flow_matching_inputs"]
