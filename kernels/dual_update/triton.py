"""The dual variable's step in one launch, a number of runs in a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.dual_update.settings import Settings

BLOCK, WARPS = 32, 1
NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit(
    do_not_specialize=[
        "budget_stride", "runs", "budget", "eta", "ema", "clip", "lowest", "highest",
    ]
)  # fmt: skip
def dual_update_kernel(
    lam,  # [S], written
    kl_ema,  # [S], written
    path_kl,  # [S]
    budgets,  # [S], with BUDGETS
    budget_stride,  # 0 where all runs have one budget
    active,  # [], with ACTIVE
    lam_after,  # [S], written
    kl_ema_after,  # [S], written
    runs,  # S
    budget,  # without BUDGETS
    eta,
    ema,
    clip,
    lowest,
    highest,
    LOG: tl.constexpr,
    BUDGETS: tl.constexpr,
    ACTIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The step of some runs; grid [blocks of runs]. NaN stays NaN."""
    run = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = run < runs
    if BUDGETS:
        allowed = tl.load(budgets + run * budget_stride, mask=mask, other=1.0).to(tl.float32)
    else:
        # A block, for the functions that take no scalar.
        allowed = tl.full((BLOCK,), 0.0, tl.float32) + budget
    before = tl.load(lam + run, mask=mask, other=1.0)
    smooth_before = tl.load(kl_ema + run, mask=mask, other=0.0)
    newest = tl.load(path_kl + run, mask=mask, other=0.0)
    newest = tl.minimum(newest, clip * allowed, propagate_nan=NAN)
    smooth = smooth_before + ema * (newest - smooth_before)
    if LOG:
        after = before * tl.exp(eta * (tl.div_rn(smooth, allowed) - 1.0))
    else:
        after = before + eta * (smooth - allowed)
    after = tl.minimum(tl.maximum(after, lowest, propagate_nan=NAN), highest, propagate_nan=NAN)
    if ACTIVE:
        change = tl.load(active).to(tl.int1)
        after = tl.where(change, after, before)
        smooth = tl.where(change, smooth, smooth_before)
    tl.store(lam + run, after, mask=mask)
    tl.store(kl_ema + run, smooth, mask=mask)
    tl.store(lam_after + run, after, mask=mask)
    tl.store(kl_ema_after + run, smooth, mask=mask)


def dual_update(
    lam: Tensor,
    kl_ema: Tensor,
    path_kl: Tensor,
    budget: float,
    budgets: Tensor | None,
    active: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Do the step; see the package's `dual_update`. `budgets` takes the place of `budget`."""
    runs, after = lam.shape[0], (torch.empty_like(lam), torch.empty_like(lam))
    *numbers, log = settings
    of_runs = lam if budgets is None else budgets.expand(runs)
    with torch.cuda.device_of(lam):
        dual_update_kernel[(triton.cdiv(runs, BLOCK),)](
            lam, kl_ema, path_kl, of_runs, of_runs.stride(0),
            lam if active is None else active, *after, runs, budget, *numbers, log,
            budgets is not None, active is not None, BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return after
