"""The step in PyTorch: its own fused Adam, the rest around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from trqam_fast.kernels.adam_step.settings import Settings


def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    targets: Tensor | None,
    settings: Settings,
) -> Tensor:
    """Do the step; see the package's `adam_step`."""
    # In float64, as in C++: squares of float32 numbers overflow where their norm does not.
    norm = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64).to(gradient.dtype)
    if settings.max_norm < float("inf"):
        scale = settings.max_norm / norm.clamp(min=settings.max_norm)
        gradient = gradient * scale.unsqueeze(1)
    if targets is not None:
        targets.lerp_(params[:, params.shape[1] - targets.shape[1] :], settings.tau)
    adam(
        [params],
        [gradient],
        [exp_avg],
        [exp_avg_sq],
        [],
        [step],
        fused=True,
        # The step count lives on the device, so that a graph can hold the optimiser.
        capturable=params.is_cuda,
        amsgrad=False,
        beta1=settings.beta1,
        beta2=settings.beta2,
        lr=settings.lr,
        weight_decay=0.0,
        eps=settings.eps,
        maximize=False,
    )
    return norm
