"""Adjoint-matching regression of the fine-tuned velocity onto the lean adjoint."""

from __future__ import annotations

from torch import Tensor

from trqam_fast.kernels.adjoint_matching import ops, reference
from trqam_fast.kernels.dispatch import (
    check_horizon,
    check_same,
    check_tensor,
    choose_backend,
    extension_problem,
    triton_problem,
)


def adjoint_matching(
    velocity: Tensor,
    base_velocity: Tensor,
    adjoint: Tensor,
    lam: Tensor,
    *,
    horizon: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Adjoint-matching loss and the path KL of the same trajectories, in one pass.

    With Delta_k = v_ft(s, X_k, t_k) - v_base(s, X_k, t_k)::

        sigma_k = g_k / sqrt(max(lam, 1e-8))
        loss    = mean_b sum_k ||2 Delta_k / sigma_k + sigma_k a_k||^2
        path_kl = mean_b sum_k (2 h / g_k^2) ||Delta_k||^2 / horizon

    Source: TRQAM sections "Adjoint-matching loss" and "Path KL" (docs/algorithm.md).

    Args:
        velocity: v_ft along the trajectories, `[S, K, B, D]`, float32 or float64.
        base_velocity: v_base at the same points, same shape.
        adjoint: a_0..a_{K-1} from `lean_adjoint`, same shape.
        lam: Effective trust-region parameter of each run, lam_scale * lambda, `[S]`; ones give
            the loss of QAM.
        horizon: Action steps in a chunk; 1 without chunking.
        backend: ``auto``, ``reference``, ``cpp`` or ``triton`` (float32 on a GPU).

    Returns:
        (loss `[S]`, path_kl `[S]` in nats per action step). The loss is differentiable once in
        `velocity`; the path KL is a constant.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or `horizon` is below 1.
        BackendError: the backend asked for cannot run.
        RuntimeError: in the backward pass, if another input than `velocity` needs a gradient.
    """
    op = "adjoint_matching"
    check_tensor(op, "velocity", velocity, (None, None, None, None))
    check_tensor(op, "base_velocity", base_velocity, tuple(velocity.shape))
    check_tensor(op, "adjoint", adjoint, tuple(velocity.shape))
    check_tensor(op, "lam", lam, (velocity.shape[0],))
    check_same(op, velocity=velocity, base_velocity=base_velocity, adjoint=adjoint, lam=lam)
    check_horizon(op, horizon)
    chosen = choose_backend(
        op, backend, velocity.device, cpp=extension_problem(velocity.device),
        triton=triton_problem(velocity.device, velocity.dtype),
    )  # fmt: skip
    match chosen:
        case "reference":
            return reference.adjoint_matching(velocity, base_velocity, adjoint, lam, horizon)
        case _:
            fused = chosen == "triton"
            return ops.adjoint_matching(velocity, base_velocity, adjoint, lam, horizon, fused)


__all__ = ["adjoint_matching"]
