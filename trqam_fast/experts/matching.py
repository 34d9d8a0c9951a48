"""The policy's part of an update of TRQAM or SQAM, for fields that are not ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.experts.critic_gradient import terminal_adjoint
from trqam_fast.kernels import (
    Context,
    NoiseSchedule,
    Velocity,
    adjoint_matching_steps,
    lean_adjoint,
    ode_rollout,
    sde_rollout,
)
from trqam_fast.kernels.checks import check_tensor
from trqam_fast.kernels.noise_schedule import curved_path


class Match(NamedTuple):
    """What a policy's update found.

    Attributes:
        loss: The adjoint-matching loss, `[S]`, a constant.
        path_kl: D, `[S]` in nats per action step: what `DualController.update` takes.
        end: The policy's actions before they are clipped, `[S, B, D]`.
    """

    loss: Tensor
    path_kl: Tensor
    end: Tensor


def match_trqam(
    field: Velocity,
    base: Velocity,
    context: Tensor | Context,
    critic: Callable[[Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    lam: Tensor,
    *,
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
    action_mask: Tensor | None = None,
    horizon: int = 1,
    schedule: NoiseSchedule | None = None,
    steps: Sequence[int] | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Match:
    """Roll out the SDE, carry the critic's gradient back, and add the loss's gradients.

    One evaluation's graph is in memory at a time. The parameters that `field` depends on get their
    gradients added; the optimiser's step and the dual update are the caller's.

    Source: TRQAM sections "Rollout" to "Path KL" (docs/algorithm.md).

    Args:
        field: v_ft.
        base: v_base.
        context: `[S, B, O]`, or a `Context`.
        critic: As `terminal_adjoint` takes it.
        x0: `[S, B, D]`, standard normal.
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`, standard normal.
        lam: lam_scale * lambda, `[S]`: `DualController.temperature`.
        low: Lower bound of an action's numbers, a number or `[D]`.
        high: Upper bound, likewise.
        action_mask: True for the D dimensions that count, a bool `[D]`.
        horizon: Executed action steps of a chunk.
        schedule: K steps of the SDE; None for those of the field's `path`, as a `FlowField` has
            one, or the flow's own.
        steps: Some of 0..K-1, drawn uniformly without replacement; None for all.
        backward: What goes back through a step's loss, for gradient scalers.

    Returns:
        The `Match`.

    Raises:
        TypeError: as the ops raise.
        ValueError: likewise, or `base` is `field`.
        RuntimeError: `field` returned a velocity without a gradient, `base` one without a gradient
            with respect to x, or `critic` values without one with respect to the actions.
    """
    op = "match_trqam"
    _check(op, field, base, context, x0, noise, lam)
    path = curved_path(field)
    if (path is None) != (curved_path(base) is None):
        raise ValueError(
            f"{op}: one of field and base has a path other than the linear one; give both the same"
        )
    if schedule is None and path is not None:
        schedule = path.noise_schedule(noise.shape[1] + 1)
    with torch.no_grad():
        rollout = sde_rollout(field, base, context, x0, noise, schedule=schedule)
    trajectory, end = rollout.trajectory, rollout.trajectory[:, -1]
    terminal = terminal_adjoint(critic, end, low=low, high=high, action_mask=action_mask)
    adjoint = lean_adjoint(base, context, trajectory, terminal, schedule=schedule)
    shares = adjoint_matching_steps(
        field,
        base,
        context,
        trajectory[:, :-1],
        adjoint,
        lam,
        horizon=horizon,
        schedule=schedule,
        action_mask=action_mask,
        steps=steps,
    )
    return _descend(op, shares, lam, end, backward)


def match_sqam(
    field: Velocity,
    base: Velocity,
    context: Tensor | Context,
    critic: Callable[[Tensor], Tensor],
    x0: Tensor,
    noise: Tensor,
    lam: Tensor,
    *,
    flow_steps: int,
    low: Tensor | float = -1.0,
    high: Tensor | float = 1.0,
    action_mask: Tensor | None = None,
    horizon: int = 1,
    steps: Sequence[int] | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Match:
    """Integrate the ODE, bridge to its end, and add the loss's gradients; no sweep.

    With a^ the ODE's end, tau_j = j/J, x_j = (1 - tau_j) eps_j + tau_j a^ for j = 1..J, and the
    adjoint b_j = -tau_j G. For fields of the linear path alone. Source: SQAM (docs/algorithms.md).

    Args:
        field: v_ft.
        base: v_base.
        context: `[S, B, O]`, or a `Context`.
        critic: As `terminal_adjoint` takes it.
        x0: `[S, B, D]`, standard normal.
        noise: eps_1..eps_{J-1}, `[S, J - 1, B, D]`, standard normal.
        lam: lam_scale * lambda, `[S]`.
        flow_steps: K.
        low: Lower bound of an action's numbers, a number or `[D]`.
        high: Upper bound, likewise.
        action_mask: True for the D dimensions that count, a bool `[D]`.
        horizon: Executed action steps of a chunk.
        steps: Some of 0..J-1, drawn uniformly without replacement; None for all.
        backward: What goes back through a step's loss, for gradient scalers.

    Returns:
        The `Match`.

    Raises:
        TypeError: as the ops raise.
        ValueError: likewise, `base` is `field`, or a field has a `path` other than the linear one.
        RuntimeError: `field` returned a velocity without a gradient, or `critic` values without one
            with respect to the actions.
    """
    op = "match_sqam"
    _check(op, field, base, context, x0, noise, lam)
    for name, given in (("field", field), ("base", base)):
        if curved_path(given) is not None:
            raise ValueError(
                f"{op}: {name} has a path other than the linear one, on which SQAM's bridge "
                "lies; use match_trqam"
            )
    end = ode_rollout(field, context, x0, flow_steps)
    terminal = terminal_adjoint(critic, end, low=low, high=high, action_mask=action_mask)
    schedule = NoiseSchedule.bridge(noise.shape[1] + 1)
    tau = torch.tensor(schedule.times, dtype=x0.dtype, device=x0.device).view(1, -1, 1, 1)
    points = tau * end.unsqueeze(1)
    points[:, :-1] += (1.0 - tau[:, :-1]) * noise
    shares = adjoint_matching_steps(
        field,
        base,
        context,
        points,
        tau * terminal.unsqueeze(1),
        lam,
        horizon=horizon,
        schedule=schedule,
        action_mask=action_mask,
        steps=steps,
    )
    return _descend(op, shares, lam, end, backward)


def _check(
    op: str,
    field: Velocity,
    base: Velocity,
    context: Tensor | Context,
    x0: Tensor,
    noise: Tensor,
    lam: Tensor,
) -> None:
    """Raise under the caller's names, before anything is computed, unless these can be matched."""
    if base is field:
        raise ValueError(
            f"{op}: base is field itself, so that the path KL would stay 0; pass "
            "LowRank(model).base(field), or the field of a frozen copy"
        )
    check_tensor(op, "lam", lam, ("S",))
    rows: tuple[int | str, ...] = (lam.shape[0], "B")
    if isinstance(context, Tensor):
        check_tensor(op, "context", context, ("S", "B", "O"))
        rows = tuple(context.shape[:2])
    check_tensor(op, "x0", x0, (*rows, "D"))
    check_tensor(op, "noise", noise, (rows[0], "steps", *x0.shape[1:]))
    check_tensor(op, "lam", lam, rows[:1])


def _descend(
    op: str, shares: Any, lam: Tensor, end: Tensor, backward: Callable[[Tensor], Any]
) -> Match:
    loss, path_kl = torch.zeros_like(lam), torch.zeros_like(lam)
    for share in shares:
        if not share.loss.requires_grad:
            raise RuntimeError(
                f"{op}: field returned a velocity without a gradient; let it and {op} run without "
                "torch.no_grad(), torch.inference_mode() and detach(), and require gradients of "
                "the parameters that learn"
            )
        backward(share.loss.sum())
        loss += share.loss.detach()
        path_kl += share.path_kl
    return Match(loss, path_kl, end)
