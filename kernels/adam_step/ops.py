"""The step by the compiled extension, registered with torch.library.

A first pass sums squares for the norms, a second does the rest: each of the parameters, gradient,
moments and targets is read once more and written once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import extension

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "adam_step(Tensor(a!) params, Tensor gradient, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!) step, float lr, float beta1, float beta2, float eps, float max_norm, "
    "Tensor(e!)? targets, float tau) -> Tensor"
)


def _adam_step(
    params, gradient, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, max_norm, targets, tau
):
    runs, size = params.shape
    norm = params.new_empty(runs)
    double = params.dtype == torch.float64
    module = extension()
    sums = torch.empty(runs * module.adam_blocks(size), dtype=torch.float64)
    step += 1
    (module.adam_step_float64 if double else module.adam_step_float32)(
        params.data_ptr(), gradient.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(),
        0 if targets is None else targets.data_ptr(), norm.data_ptr(), sums.data_ptr(), runs, size,
        0 if targets is None else targets.shape[1], float(step), lr, beta1, beta2, eps, max_norm,
        tau, torch.get_num_threads(),
    )  # fmt: skip
    return norm


_library.impl("adam_step", _adam_step, "CPU")


@torch.library.register_fake("trqam_fast::adam_step", lib=_library)
def _(params, gradient, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, max_norm, targets, tau):
    return params.new_empty(params.shape[0])


def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    max_norm: float | None,
    targets: Tensor | None,
    tau: float,
) -> Tensor:
    """Do the step; see the package's `adam_step`."""
    return torch.ops.trqam_fast.adam_step(
        params, gradient, exp_avg, exp_avg_sq, step, lr, *betas, eps,
        float("inf") if max_norm is None else max_norm, targets, tau,
    )  # fmt: skip
