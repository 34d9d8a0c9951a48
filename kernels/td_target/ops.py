"""The target of temporal differences by Triton's kernel, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.registration import register


def _target(values, rewards, masks, discount, rho):
    from trqam_fast.kernels.td_target import triton

    tensors = (tensor.contiguous() for tensor in (values, rewards, masks))
    return triton.td_target(*tensors, discount, rho)


def _target_fake(values, rewards, masks, discount, rho):
    return rewards.new_empty(rewards.shape)


register(
    "td_target(Tensor values, Tensor rewards, Tensor masks, float discount, float rho) -> Tensor",
    _target,
    _target_fake,
)


def td_target(
    values: Tensor, rewards: Tensor, masks: Tensor, discount: float, rho: float
) -> Tensor:
    """Return y, `[S, B]`; see the package's `td_target`."""
    return torch.ops.trqam_fast.td_target(values, rewards, masks, discount, rho)
