"""Inputs and target of flow matching in plain PyTorch: the specification of the op."""

from __future__ import annotations

import torch
from torch import Tensor


def flow_matching_inputs(
    observations: Tensor, actions: Tensor, x0: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Return inputs and velocity; see the package's `flow_matching_inputs`."""
    inputs = torch.cat([observations, torch.lerp(x0, actions, times), times], dim=-1)
    return inputs, actions - x0
