"""The critics' loss: temporal differences over sequences, and what is logged of the values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from trqam_fast.kernels.checks import check_not_empty, check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.td_loss import ops, reference
from trqam_fast.kernels.td_loss.inputs import TDInputs
from trqam_fast.kernels.td_target import check_pessimism


class TDLoss(NamedTuple):
    """Result of `td_loss`.

    Attributes:
        loss: `[S]`, differentiable once in the values.
        mean: Mean of the values, `[S]`; like all below it carries no gradient.
        min: The smallest one, `[S]`.
        max: The largest one, `[S]`.
        gap: Mean of the policy's values less that of the values, `[S]`; None without the former.
    """

    loss: Tensor
    mean: Tensor
    min: Tensor
    max: Tensor
    gap: Tensor | None


def td_loss(
    values: Tensor,
    next_values: Tensor,
    rewards: Tensor,
    masks: Tensor,
    valid: Tensor,
    *,
    discount: float,
    rho: float,
    policy_values: Tensor | None = None,
    backend: Backend = "auto",
) -> TDLoss:
    """Loss of an ensemble of critics against a pessimistic target over a sequence.

    With y of `td_target`, of `next_values`::

        loss = mean_{e,b} (Q_eb - y_b)^2 valid_b

    Source: docs/algorithm.md, "Critic target" and "Critic loss".

    Args:
        values: Q, the critics' values of the actions in the data, `[S, E, B]`, float32 or float64.
        next_values: Q', values after the sequence, `[S, E', B]`, constants, as all that follow.
        rewards: R, discounted sums over the sequence, `[S, B]`.
        masks: m, 0 where the task is solved, `[S, B]`.
        valid: Weights of the rows, `[S, B]`.
        discount: That of the whole sequence, gamma^H.
        rho: Weight of the ensemble's disagreement, zero or more; 0 for the mean.
        policy_values: Values of the policy's actions, `[S, E'', B]`, or None.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        The `TDLoss`.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, a size is 0, or `rho` is negative.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if one of the constants needs a gradient.
    """
    op, inputs = "td_loss", TDInputs(values, next_values, rewards, masks, valid, policy_values)
    check_tensor(op, "values", values, ("S", "E", "B"))
    check_not_empty(op, "values", values)
    runs, _, batch = values.shape
    for name, tensor in inputs.constants.items():
        ensemble = (None,) if name.endswith("values") else ()
        check_tensor(op, name, tensor, (runs, *ensemble, batch))
        check_not_empty(op, name, tensor)
    check_same(op, values=values, **inputs.constants)
    check_pessimism(op, rho)
    chosen = choose_backend(op, backend, values.device, dtype=values.dtype)
    implementation = reference if chosen == "reference" else ops
    return TDLoss(*implementation.td_loss(inputs, discount, rho))


__all__ = ["TDLoss", "td_loss"]
