"""The step of a path-KL budget's dual variable."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trqam_fast.kernels.checks import check_bool, check_same, check_tensor, check_written
from trqam_fast.kernels.dispatch import Backend, choose_backend
from trqam_fast.kernels.dual_update import ops, reference
from trqam_fast.kernels.dual_update.settings import check_budget, make_settings


@torch.no_grad()
def dual_update(
    lam: Tensor,
    kl_ema: Tensor,
    path_kl: Tensor,
    budget: Tensor | float,
    *,
    eta: float,
    ema: float,
    clip: float,
    bracket: tuple[float, float],
    rule: Literal["additive", "log"] = "additive",
    active: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Projected dual descent on lambda, in place.

    ::

        kl_ema = (1 - ema) kl_ema + ema min(D, clip budget)
        lam    = clamp(lam + eta (kl_ema - budget), bracket)                    rule "additive"
        lam    = clamp(lam exp(eta (kl_ema / budget - 1)), bracket)             rule "log"

    Source: TRQAM's dual update (docs/algorithm.md); the rule "log" is this project's.

    Args:
        lam: lambda of every run, contiguous `[S]`, float32 or float64; written.
        kl_ema: Smoothed path KL, likewise; written.
        path_kl: D, `[S]`.
        budget: The budget in the unit of the path KL, a positive number, or a tensor, `[]` for all
            runs or `[S]`, float32 or float64, on the device of `lam`, whose values are not checked.
        eta: Step size, zero or more.
        ema: Weight of the newest path KL in its moving average, 0 to 1.
        clip: Path KLs are clipped at this multiple of the budget, positive.
        bracket: Lower and upper end of lambda, zero or more.
        rule: ``additive`` or ``log``.
        active: Whether anything changes at all, a bool `[]` on the device of `lam`; None is yes.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        (lambda `[S]`, smoothed path KL `[S]`) after the step, as copies.

    Raises:
        TypeError: a tensor is none, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or a number or `rule` is impossible.
        BackendError: the backend asked for cannot run.
    """
    op = "dual_update"
    check_tensor(op, "lam", lam, ("S",))
    check_tensor(op, "kl_ema", kl_ema, tuple(lam.shape))
    check_tensor(op, "path_kl", path_kl, tuple(lam.shape))
    check_same(op, lam=lam, kl_ema=kl_ema, path_kl=path_kl)
    check_written(op, lam=lam, kl_ema=kl_ema)
    check_budget(op, budget, lam)
    if active is not None:
        check_bool(op, "active", active, (), lam.device)
    settings = make_settings(op, eta=eta, ema=ema, clip=clip, bracket=bracket, rule=rule)
    chosen = choose_backend(op, backend, lam.device, dtype=lam.dtype)
    implementation = reference if chosen == "reference" else ops
    return implementation.dual_update(lam, kl_ema, path_kl, budget, active, settings)


__all__ = ["dual_update"]
