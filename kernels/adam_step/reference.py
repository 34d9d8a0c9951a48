"""The step in PyTorch: its own fused Adam, the rest around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam


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
    norm = torch.linalg.vector_norm(gradient, dim=1)
    if max_norm is not None:
        gradient = gradient * (max_norm / norm.clamp(min=max_norm)).unsqueeze(1)
    if targets is not None:
        targets.lerp_(params[:, params.shape[1] - targets.shape[1] :], tau)
    # Capturable: the step count lives on the device, so that a graph can hold the optimiser.
    adam(
        [params], [gradient], [exp_avg], [exp_avg_sq], [], [step], fused=True,
        capturable=params.is_cuda, amsgrad=False, beta1=betas[0], beta2=betas[1], lr=lr,
        weight_decay=0.0, eps=eps, maximize=False,
    )  # fmt: skip
    return norm
