"""The compiled step, registered with torch.library.

A first pass sums squares for the norms, a second does the rest: each of the parameters, gradient,
moments and targets is read once more and written once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.adam_step.settings import Settings
from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.registration import register


class AdamStep(NamedTuple):
    """csrc/adam_step.h: AdamStep."""

    runs: int
    size: int
    target_size: int
    params: int
    gradient: int
    exp_avg: int
    exp_avg_sq: int
    targets: int | None
    norms: int
    step: float
    lr: float
    beta1: float
    beta2: float
    eps: float
    max_norm: float
    tau: float


def _adam_step(params, gradient, exp_avg, exp_avg_sq, step, targets, backend, *settings):
    if backend == "triton":
        from trqam_fast.kernels.adam_step import triton

        state = (params, gradient, exp_avg, exp_avg_sq, step, targets)
        return triton.adam_step(*state, Settings(*settings))
    runs, size = params.shape
    norms = params.new_empty(runs)
    step += 1
    fields = AdamStep(
        runs,
        size,
        0 if targets is None else targets.shape[1],
        params.data_ptr(),
        gradient.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        None if targets is None else targets.data_ptr(),
        norms.data_ptr(),
        float(step),
        *settings,
    )
    call("adam_step", fields, params)
    return norms


def _adam_step_fake(params, gradient, exp_avg, exp_avg_sq, step, targets, backend, *settings):
    return params.new_empty(params.shape[0])


register(
    "adam_step(Tensor(a!) params, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!) step, Tensor(e!)? targets, str backend, float lr, float beta1, float beta2, "
    "float eps, float max_norm, float tau) -> Tensor",
    _adam_step,
    _adam_step_fake,
)


def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    targets: Tensor | None,
    settings: Settings,
    backend: str,
) -> Tensor:
    """Do the step; see the package's `adam_step`."""
    return torch.ops.trqam_fast.adam_step(
        params, gradient, exp_avg, exp_avg_sq, step, targets, backend, *settings
    )
