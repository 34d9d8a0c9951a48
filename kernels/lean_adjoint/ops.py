r"""The compiled sweep, registered with torch.library.

With h / (t_k + h) = 1 / (k + 1) and J_k = dv_base/dX at (X_k, t_k + h):

    a_k = a_{k+1} + h (2 J_k - I / (t_k + h))^T a_{k+1} = (k / (k + 1)) a_{k+1} + 2 h J_k^T a_{k+1}

A step's forward pass and its vector-Jacobian product run one after the other on the same rows, so
that its activations stay in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.mlp import MLPWeights
from trqam_fast.kernels.mlp.cpp import call, describe
from trqam_fast.kernels.mlp.weights import group

_library = torch.library.Library("trqam_fast", "FRAGMENT")
_library.define(
    "lean_adjoint_cpp(Tensor[] base, bool norm, Tensor observations, Tensor trajectory, "
    "Tensor terminal_adjoint, str precision) -> Tensor"
)


def _empty(trajectory: Tensor) -> Tensor:
    runs, points, batch, dim = trajectory.shape
    return trajectory.new_empty(runs, points - 1, batch, dim)


def _sweep(base, norm, observations, trajectory, terminal_adjoint, precision):
    observations, trajectory = observations.contiguous(), trajectory.contiguous()
    terminal_adjoint = terminal_adjoint.contiguous()
    adjoints = _empty(trajectory)
    numbers, _alive = describe(group(base, norm))
    call(
        "lean_adjoint", trajectory, precision, numbers, trajectory.shape[2],
        observations.shape[-1], trajectory.shape[-1], adjoints.shape[1], observations.data_ptr(),
        trajectory.data_ptr(), terminal_adjoint.data_ptr(), adjoints.data_ptr(),
    )  # fmt: skip
    return adjoints


_library.impl("lean_adjoint_cpp", _sweep, "CPU")


@torch.library.register_fake("trqam_fast::lean_adjoint_cpp", lib=_library)
def _(base, norm, observations, trajectory, terminal_adjoint, precision):
    return _empty(trajectory)


def lean_adjoint(
    base_velocity: MLPWeights,
    observations: Tensor,
    trajectory: Tensor,
    terminal_adjoint: Tensor,
    precision: str,
) -> Tensor:
    """Return a_0..a_{K-1}; see the package's `lean_adjoint`."""
    return torch.ops.trqam_fast.lean_adjoint_cpp(
        list(base_velocity.tensors), base_velocity.layer_norm, observations, trajectory,
        terminal_adjoint, precision,
    )  # fmt: skip
