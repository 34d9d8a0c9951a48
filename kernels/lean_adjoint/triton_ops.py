"""The Triton sweep, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.weights import group

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "lean_adjoint_triton(Tensor[] base, bool norm, Tensor observations, Tensor trajectory, "
    "Tensor terminal_adjoint, str precision) -> Tensor"
)


def _sweep(base, norm, observations, trajectory, terminal_adjoint, precision):
    from trqam_fast.kernels.lean_adjoint.triton import lean_adjoint

    return lean_adjoint(
        group(base, norm), observations.contiguous(), trajectory.contiguous(),
        terminal_adjoint.contiguous(), precision,
    )  # fmt: skip


def _sweep_fake(base, norm, observations, trajectory, terminal_adjoint, precision):
    runs, points, batch, dim = trajectory.shape
    return trajectory.new_empty(runs, points - 1, batch, dim)


for _device in ("CPU", "CUDA"):
    _library.impl("lean_adjoint_triton", _sweep, _device)
torch.library.register_fake("trqam_fast::lean_adjoint_triton", _sweep_fake, lib=_library)


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    return torch.ops.trqam_fast.lean_adjoint_triton(
        list(base_velocity.tensors), base_velocity.layer_norm, observations, trajectory,
        terminal_adjoint, precision,
    )  # fmt: skip
