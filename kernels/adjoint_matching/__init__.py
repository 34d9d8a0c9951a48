"""Adjoint-matching regression of the fine-tuned velocity onto the lean adjoint."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.adjoint_matching import ops, reference
from trqam_fast.kernels.checks import (
    check_action_mask,
    check_counts,
    check_not_empty,
    check_same,
    check_tensor,
    masked,
    refusing,
)
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.noise_schedule import NoiseSchedule, check_schedule


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    *,
    horizon: int = 1,
    schedule: NoiseSchedule | None = None,
    action_mask: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Adjoint-matching loss and the path KL of the same trajectories, in one pass.

    With Delta_k = v_ft(s, X_k, t_k) - v_base(s, X_k, t_k)::

        sigma_k = g_k / sqrt(max(lam, 1e-8))
        loss    = mean_b sum_k ||2 Delta_k / sigma_k + sigma_k a_k||^2
        path_kl = mean_b sum_k (2 h_k / g_k^2) ||Delta_k||^2 / horizon

    Source: TRQAM sections "Adjoint-matching loss" and "Path KL" (docs/algorithm.md).

    Args:
        velocity: v_ft along the trajectories, `[S, K, B, D]`, float32 or float64.
        base_velocity: v_base at the same points, same shape.
        adjoint: a_0..a_{K-1} from `lean_adjoint`, same shape.
        lam: Effective trust-region parameter of each run, lam_scale * lambda, `[S]`; ones give
            the loss of QAM.
        horizon: Executed action steps of a chunk; 1 without chunking.
        schedule: h_k and g_k^2 of the K steps; None for the flow's own.
        action_mask: True for the D dimensions that count, a bool `[D]`; None for all. Padded
            dimensions get no gradient and no path KL, whatever they hold.
        backend: ``auto``, ``reference``, ``cpp`` or ``triton`` (float32 on a GPU).

    Returns:
        (loss `[S]`, path_kl `[S]` in nats per action step). The loss is differentiable once in
        `velocity`; the path KL is a constant.

    Raises:
        TypeError: an argument is no tensor, of an unsupported dtype, or `horizon` no integer.
        ValueError: shapes, dtypes, devices or the number of steps do not fit, a size is 0, or
            `horizon` is below 1.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if another input than `velocity` needs a gradient.
    """
    op = "adjoint_matching"
    check_tensor(op, "velocity", velocity, ("S", "K", "B", "D"))
    check_not_empty(op, "velocity", velocity)
    check_tensor(op, "base_velocity", base_velocity, tuple(velocity.shape))
    check_tensor(op, "adjoint", adjoint, tuple(velocity.shape))
    check_tensor(op, "lam", lam, (velocity.shape[0],))
    check_same(op, velocity=velocity, base_velocity=base_velocity, adjoint=adjoint, lam=lam)
    check_counts(op, horizon=horizon)
    check_schedule(op, schedule, velocity.shape[1])
    check_action_mask(op, action_mask, velocity)
    velocity, base_velocity, adjoint = masked(action_mask, velocity, base_velocity, adjoint)
    chosen = choose_backend(op, backend, velocity.device, dtype=velocity.dtype)
    if chosen == "reference":
        detached = (base_velocity.detach(), adjoint.detach(), lam.detach())
        loss, kl = reference.adjoint_matching(velocity, *detached, schedule, horizon)
        return refusing(op, loss, base_velocity=base_velocity, adjoint=adjoint, lam=lam), kl
    return ops.adjoint_matching(velocity, base_velocity, adjoint, lam, schedule, horizon, chosen)


__all__ = ["adjoint_matching"]
