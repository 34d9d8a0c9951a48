"""The compiled step, registered with torch.library.

A first pass sums squares for the norms, a second does the rest: each of the parameters, gradient,
moments and targets is read once more and written once. The second may be done in parts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.adam_step.settings import AdamNorm, Settings
from trqam_fast.kernels.cpp import call
from trqam_fast.kernels.registration import register


class GradientNorm(NamedTuple):
    """csrc/adam_step.h: GradientNorm."""

    runs: int
    size: int
    gradient: int
    norms: int


class AdamStep(NamedTuple):
    """csrc/adam_step.h: AdamStep."""

    runs: int
    size: int
    stride: int
    target_size: int
    target_stride: int
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


def _adam_norm(gradient, step, backend, beta1, beta2):
    if backend == "triton":
        from trqam_fast.kernels.adam_step import triton

        return triton.adam_norm(gradient, step, beta1, beta2)
    step += 1
    return _norms(gradient), step.clone()


def _norms(gradient: Tensor) -> Tensor:
    """Return each run's norm, `[S]`, by the C++ code."""
    runs, size = gradient.shape
    norms = gradient.new_empty(runs)
    call("gradient_norm", GradientNorm(runs, size, gradient.data_ptr(), norms.data_ptr()), gradient)
    return norms


def _adam_norm_fake(gradient, step, backend, beta1, beta2):
    if backend == "triton":
        from trqam_fast.kernels.adam_step import triton

        return triton.empty_norm(gradient)
    return gradient.new_empty(gradient.shape[0]), torch.empty_like(step)


register(
    "adam_norm(Tensor gradient, Tensor(a!) step, str backend, float beta1, float beta2) "
    "-> (Tensor, Tensor)",
    _adam_norm,
    _adam_norm_fake,
)


def _adam_step(params, gradient, exp_avg, exp_avg_sq, step, targets, norm, backend, *settings):
    if backend == "triton":
        from trqam_fast.kernels.adam_step import triton

        numbers = Settings(*settings)
        norm = norm or triton.adam_norm(gradient, step, numbers.beta1, numbers.beta2)
        state = (params, gradient, exp_avg, exp_avg_sq, targets)
        return triton.adam_step(*state, norm, numbers)
    if norm:
        norms, count = norm[0].clone(), norm[1]  # An op returns none of its arguments.
    else:
        step += 1
        norms, count = _norms(gradient), step
    runs, size = params.shape
    fields = AdamStep(
        runs,
        size,
        params.stride(0),
        0 if targets is None else targets.shape[1],
        0 if targets is None else targets.stride(0),
        params.data_ptr(),
        gradient.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        None if targets is None else targets.data_ptr(),
        norms.data_ptr(),
        float(count),
        *settings,
    )
    call("adam_step", fields, params)
    return norms


def _adam_step_fake(params, gradient, exp_avg, exp_avg_sq, step, targets, norm, backend, *settings):
    return params.new_empty(params.shape[0])


register(
    "adam_step(Tensor(a!) params, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!)? step, Tensor(e!)? targets, Tensor[] norm, str backend, float lr, float beta1, "
    "float beta2, float eps, float max_norm, float tau) -> Tensor",
    _adam_step,
    _adam_step_fake,
)


def adam_norm(gradient: Tensor, step: Tensor, betas: tuple[float, float], backend: str) -> AdamNorm:
    """Return the norms, and count the step; see the package's `adam_norm`."""
    # Two tensors, not a list: an op that writes an argument cannot be functionalised with one.
    found = torch.ops.trqam_fast.adam_norm(gradient, step, backend, *betas)
    return AdamNorm(list(found), backend)


def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor | None,
    targets: Tensor | None,
    settings: Settings,
    backend: str,
    norm: AdamNorm | None,
) -> Tensor:
    """Do the step; see the package's `adam_step`."""
    shared = [] if norm is None else norm.tensors
    return torch.ops.trqam_fast.adam_step(
        params, gradient, exp_avg, exp_avg_sq, step, targets, shared, backend, *settings
    )
