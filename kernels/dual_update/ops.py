"""The dual variable's step by Triton's kernel, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.dual_update.settings import Settings
from trqam_fast.kernels.registration import register


def _dual_update(lam, kl_ema, path_kl, budget, budgets, active, *settings):
    from trqam_fast.kernels.dual_update import triton

    tensors = (lam, kl_ema, path_kl.contiguous())
    return triton.dual_update(*tensors, budget, budgets, active, Settings(*settings))


def _dual_update_fake(lam, kl_ema, path_kl, budget, budgets, active, *settings):
    return lam.new_empty(lam.shape), lam.new_empty(lam.shape)


register(
    "dual_update(Tensor(a!) lam, Tensor(b!) kl_ema, Tensor path_kl, float budget, "
    "Tensor? budgets, Tensor? active, float eta, float ema, float clip, float lowest, "
    "float highest, bool log) -> (Tensor, Tensor)",
    _dual_update,
    _dual_update_fake,
)


def dual_update(
    lam: Tensor,
    kl_ema: Tensor,
    path_kl: Tensor,
    budget: Tensor | float,
    active: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Do the step; see the package's `dual_update`."""
    number, tensor = (0.0, budget) if isinstance(budget, Tensor) else (budget, None)
    return torch.ops.trqam_fast.dual_update(lam, kl_ema, path_kl, number, tensor, active, *settings)
