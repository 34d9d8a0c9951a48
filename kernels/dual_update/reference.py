"""The dual variable's step in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.dual_update.settings import Settings


def dual_update(
    lam: Tensor,
    kl_ema: Tensor,
    path_kl: Tensor,
    budget: Tensor | float,
    active: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Do the step; see the package's `dual_update`."""
    if isinstance(budget, Tensor):
        budget = budget.to(lam.dtype)
    before = () if active is None else (lam.clone(), kl_ema.clone())
    kl_ema.lerp_(path_kl.clamp(max=settings.clip * budget), settings.ema)
    if settings.log:
        lam.mul_((settings.eta * (kl_ema / budget - 1.0)).exp())
    else:
        lam.add_(kl_ema - budget, alpha=settings.eta)
    lam.clamp_(settings.lowest, settings.highest)
    if active is not None:
        for tensor, old in zip((lam, kl_ema), before, strict=True):
            tensor.copy_(torch.where(active, tensor, old))
    return lam.clone(), kl_ema.clone()
