"""The dual variable of a path-KL budget: projected dual descent on lambda."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trqam_fast.kernels import Backend, dual_update
from trqam_fast.kernels.checks import check_counts
from trqam_fast.kernels.dual_update.settings import check_budget, make_settings


class DualController:
    """Adapts lambda of S runs so that their path KL keeps to a budget.

    In every update, from the path KL D of each run (docs/algorithm.md, "Dual update"):

        D_c    = min(D, clip * budget)
        kl_ema = (1 - ema) * kl_ema + ema * D_c
        lam    = clamp(lam + eta * (kl_ema - budget), bracket)                  rule "additive"
        lam    = clamp(lam * exp(eta * (kl_ema / budget - 1)), bracket)         rule "log"

    The additive rule is the paper's. The other one does not depend on lambda's scale, where an
    additive step is all of a lambda of 0.01 and a thousandth of one of 10.

    Nothing is read back to the host. It needs nothing of this package's agents: with the bare ops,
    pass `temperature` to `adjoint_matching`, and its path KL to `update`.

    Attributes:
        lam: lambda, `[S]`.
        kl_ema: Smoothed path KL in nats per action step, `[S]`.
        budget: The budget eps_KL, in the same unit; may be set between updates. One that is
            captured as a graph keeps the number that it found: give `update` a tensor there.

    Args:
        runs: S.
        budget: Path KL per action step that is allowed, in nats.
        scale: Factor on lambda wherever it is used (`lam_scale`).
        eta: Step size.
        ema: Weight of the newest path KL in its moving average.
        clip: Path KLs are clipped at this multiple of the budget.
        bracket: Lower and upper end of lambda.
        lam: Its start.
        rule: ``additive`` or ``log``.
        dtype: Of the tensors.
        device: Of the tensors.
        backend: Implementation of the step, as for `dual_update`.

    Raises:
        TypeError: `runs` is no integer.
        ValueError: a number or `rule` is impossible.
    """

    def __init__(
        self,
        runs: int,
        budget: float,
        *,
        scale: float = 3.0,
        eta: float = 0.01,
        ema: float = 0.1,
        clip: float = 2.0,
        bracket: tuple[float, float] = (0.01, 100.0),
        lam: float = 1.0,
        rule: Literal["additive", "log"] = "additive",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
    ) -> None:
        op = "DualController"
        check_counts(op, runs=runs)
        self.budget, self.scale, self.eta, self.ema = budget, scale, eta, ema
        self.clip, self.bracket, self.rule, self.backend = clip, bracket, rule, backend
        self.lam = torch.full((runs,), lam, dtype=dtype, device=device)
        self.kl_ema = torch.zeros_like(self.lam)
        for name, value in (("scale", scale), ("lam", lam)):
            if not value > 0:
                raise ValueError(f"{op}: {name} is {value}; use a positive number")
        check_budget(op, budget, self.lam)
        make_settings(op, eta=eta, ema=ema, clip=clip, bracket=bracket, rule=rule)

    @property
    def temperature(self) -> Tensor:
        """lam_scale * lambda, by which sigma_k^2 is divided, `[S]`."""
        return self.scale * self.lam

    def update(
        self, path_kl: Tensor, *, budget: Tensor | None = None, active: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Nothing is looked at, as that would wait for a GPU: from a path KL that is no number on, a
        run's lambda and smoothed path KL are none. An infinite one is clipped.

        Args:
            path_kl: Path KL of every run, `[S]`.
            budget: Budget of this step, `[]` or `[S]`; `self.budget` without one.
            active: Whether anything changes at all, a bool `[]`; None is yes.

        Returns:
            Copies of (lambda, smoothed path KL), `[S]` each.
        """
        return dual_update(
            self.lam, self.kl_ema, path_kl, self.budget if budget is None else budget,
            eta=self.eta, ema=self.ema, clip=self.clip, bracket=self.bracket, rule=self.rule,
            active=active, backend=self.backend,
        )  # fmt: skip

    @torch.no_grad()
    def start_from(self, cost: Tensor, *, budget: Tensor | float, active: Tensor) -> None:
        """Set lambda to where the minimiser of the loss at given adjoints meets the budget.

        There D (lam_scale lambda)^2 = A := 1/2 sum_k h_k g_k^2 E|a_k|^2 / H, so lambda =
        sqrt(A / budget) / lam_scale.

        Args:
            cost: A, `[S]`.
            budget: The budget.
            active: Whether to set it, a bool `[]`.
        """
        start = ((cost / budget).sqrt() / self.scale).clamp(*self.bracket)
        self.lam.copy_(torch.where(active, start, self.lam))
