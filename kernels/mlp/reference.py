"""Stacked MLP in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.weights import MLPWeights


def mlp(weights: MLPWeights, inputs: Tensor) -> Tensor:
    """Apply the MLPs to `inputs` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    y = inputs if len(weights.lead) == 1 else inputs.unsqueeze(1)
    last = len(weights.kernels) - 1
    for layer, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
        y = y @ kernel + bias.unsqueeze(-2)
        if layer < last:
            y = F.gelu(y, approximate="tanh")
            if weights.layer_norm:
                y = F.layer_norm(y, y.shape[-1:], eps=NORM_EPS)
                y = y * weights.norm_scales[layer].unsqueeze(-2)
                y = y + weights.norm_biases[layer].unsqueeze(-2)
    return y
