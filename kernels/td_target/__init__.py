"""What critics learn from: the reward and the pessimistic value of the next action."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_not_empty, check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.td_target import reference


@torch.no_grad()
def td_target(
    values: Tensor,
    rewards: Tensor,
    masks: Tensor,
    *,
    discount: float,
    rho: float,
    backend: Backend = "auto",
) -> Tensor:
    """Target of temporal differences over a sequence, from an ensemble's values after it.

    ::

        y_b = R_b + discount m_b (mean_e Q'_eb - rho std_e Q'_eb)

    with the standard deviation of the E values themselves, not of a sample (docs/algorithm.md,
    "Critic target").

    Args:
        values: Q', the target critics' values of the next action, `[S, E, B]`, float32 or float64.
        rewards: R, discounted sums over the sequence, `[S, B]`.
        masks: m, 0 where the task is solved, `[S, B]`.
        discount: That of the whole sequence, gamma^H.
        rho: Weight of the ensemble's disagreement, zero or more; 0 for the mean.
        backend: ``auto`` or ``reference``; `td_loss` has a kernel for it and the loss together.

    Returns:
        y, `[S, B]`, without gradients.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, a size is 0, or `rho` is negative.
        BackendError: the backend asked for cannot run.
    """
    op = "td_target"
    check_tensor(op, "values", values, ("S", "E", "B"))
    check_not_empty(op, "values", values)
    runs, _, batch = values.shape
    check_tensor(op, "rewards", rewards, (runs, batch))
    check_tensor(op, "masks", masks, (runs, batch))
    check_same(op, values=values, rewards=rewards, masks=masks)
    check_pessimism(op, rho)
    choose_backend(op, backend, values.device, dtype=values.dtype)
    return reference.td_target(values, rewards, masks, discount, rho)


def check_pessimism(op: str, rho: float) -> None:
    """Raise ValueError unless `rho` is zero or more."""
    if not rho >= 0:
        raise ValueError(f"{op}: rho is {rho}; use zero or more")


__all__ = ["td_target"]
