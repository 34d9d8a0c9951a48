"""The dual variable of a path-KL budget: projected dual descent on lambda."""

from __future__ import annotations

import torch
from torch import Tensor


class DualController:
    """Adapts lambda of S runs so that their path KL keeps to a budget.

    In every update, from the path KL D of each run (SPEC: docs/algorithm.md, "Dual update"):

        D_c    = min(D, clip * budget)
        kl_ema = (1 - ema) * kl_ema + ema * D_c
        lam    = clamp(lam + eta * (kl_ema - budget), bracket)

    Nothing is read back to the host. It needs nothing of this package's agents: with the bare ops,
    pass `temperature` to `adjoint_matching`, and its path KL to `update`.

    Attributes:
        lam: lambda, `[S]`.
        kl_ema: Smoothed path KL in nats per action step, `[S]`.
        budget: The budget eps_KL, in the same unit; may be set at any time.

    Args:
        runs: S.
        budget: Path KL per action step that is allowed, in nats.
        scale: Factor on lambda wherever it is used (`lam_scale`).
        eta: Step size.
        ema: Weight of the newest path KL in its moving average.
        clip: Path KLs are clipped at this multiple of the budget.
        bracket: Lower and upper end of lambda.
        lam: Its start.
        dtype: Of the tensors.
        device: Of the tensors.
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.budget, self.scale, self.eta, self.ema = budget, scale, eta, ema
        self.clip, self.bracket = clip, bracket
        self.lam = torch.full((runs,), lam, dtype=dtype, device=device)
        self.kl_ema = torch.zeros_like(self.lam)

    @property
    def temperature(self) -> Tensor:
        """lam_scale * lambda, by which sigma_k^2 is divided, `[S]`."""
        return self.scale * self.lam

    @torch.no_grad()
    def update(self, path_kl: Tensor) -> None:
        """Take one step from the path KL of every run, `[S]`."""
        self.kl_ema.lerp_(path_kl.clamp(max=self.clip * self.budget), self.ema)
        self.lam.add_(self.kl_ema - self.budget, alpha=self.eta).clamp_(*self.bracket)
