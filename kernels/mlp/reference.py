"""Stacked MLP in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.kernels.mlp.constants import NORM_EPS
from trqam_fast.kernels.mlp.weights import MLPWeights


def mlp(weights: MLPWeights, inputs: Tensor) -> Tensor:
    """Apply the MLPs to `inputs` `[S, N, in]`; see `trqam_fast.kernels.mlp.mlp`."""
    lead, last = weights.lead, len(weights.kernels) - 1
    y = inputs if len(lead) == 1 else inputs.unsqueeze(1).expand(*lead, -1, -1).flatten(0, 1)
    for layer, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
        y = torch.baddbmm(_row(bias), y, kernel.flatten(0, -3))
        if layer < last:
            y = F.gelu(y, approximate="tanh")
            if weights.layer_norm:
                y = F.layer_norm(y, y.shape[-1:], eps=NORM_EPS)
                y = torch.addcmul(
                    _row(weights.norm_biases[layer]), y, _row(weights.norm_scales[layer])
                )
    return y.unflatten(0, lead)


def _row(parameter: Tensor) -> Tensor:
    """Return `[*lead, n]` as one row for each network, `[G, 1, n]`."""
    return parameter.flatten(0, -2).unsqueeze(1)
