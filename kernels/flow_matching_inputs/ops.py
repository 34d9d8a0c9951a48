"""Inputs and target of flow matching by Triton's kernel, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.registration import register


def _inputs(observations, actions, x0, times):
    from trqam_fast.kernels.flow_matching_inputs import triton

    return triton.flow_matching_inputs(observations, actions, x0, times)


def _inputs_fake(observations, actions, x0, times):
    runs, batch, dim = actions.shape
    columns = observations.shape[-1] + dim + 1
    return actions.new_empty(runs, batch, columns), actions.new_empty(runs, batch, dim)


register(
    "flow_matching_inputs(Tensor observations, Tensor actions, Tensor x0, Tensor times) "
    "-> (Tensor, Tensor)",
    _inputs,
    _inputs_fake,
)


def flow_matching_inputs(
    observations: Tensor, actions: Tensor, x0: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Return inputs and velocity; see the package's `flow_matching_inputs`."""
    return torch.ops.trqam_fast.flow_matching_inputs(observations, actions, x0, times)
