"""Where the adjoints of a policy's chain start: the action gradient of any critic."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_action_mask, masked


def terminal_adjoint(
    critic: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
    action_mask: Tensor | None = None,
) -> Tensor:
    """Return a_K = -d/dX Q(s, clip(X, low, high)), zero where X lies outside of the bounds.

    Source: TRQAM section "Terminal adjoint" (docs/algorithm.md).

    Args:
        critic: Q of actions `[S, B, D]`, clipped, returned `[S, B]`; the mean of an ensemble. It
            knows its observations, and which of a chunk's steps are executed.
        x: X_K, `[S, B, D]`.
        low: Lower bound of an action's numbers, a number or `[D]`.
        high: Upper bound, likewise.
        action_mask: True for the D dimensions that count, a bool `[D]`; None for all. The critic
            sees zeros in the others, and they get no gradient.

    Returns:
        a_K, `[S, B, D]`, a constant.

    Raises:
        TypeError: `action_mask` is no bool tensor, or the critic returned no tensor.
        ValueError: `action_mask` or what the critic returned has another shape.
        RuntimeError: what the critic returned has no gradient with respect to the actions.
    """
    check_action_mask("terminal_adjoint", action_mask, x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not low < high:
            raise ValueError(f"terminal_adjoint: low is {low} and high {high}; use low < high")
        low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (low, high))
        (actions,) = masked(action_mask, x.clamp(low, high))
        values = critic(actions)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"terminal_adjoint: critic returned a {type(values).__name__}; expected a tensor "
                f"{list(x.shape[:-1])}"
            )
        if values.shape != x.shape[:-1]:
            raise ValueError(
                f"terminal_adjoint: critic returned {list(values.shape)}; expected "
                f"{list(x.shape[:-1])}"
            )
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), x, allow_unused=True)
    if gradient is None:
        raise RuntimeError(
            "terminal_adjoint: critic returned values without a gradient with respect to the "
            "actions; let it run without torch.no_grad(), torch.inference_mode() and detach()"
        )
    return -gradient
