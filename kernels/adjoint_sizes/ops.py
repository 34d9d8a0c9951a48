"""The sizes of adjoints by Triton's kernel, registered with torch.library."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.registration import register


def _sizes(terminal, adjoint):
    from trqam_fast.kernels.adjoint_sizes import triton

    adjoint = terminal.unsqueeze(1)[:, :0] if adjoint is None else adjoint
    return triton.adjoint_sizes(terminal.contiguous(), adjoint.contiguous())


def _sizes_fake(terminal, adjoint):
    return terminal.new_empty(4, terminal.shape[0])


register("adjoint_sizes(Tensor terminal, Tensor? adjoint) -> Tensor", _sizes, _sizes_fake)


def adjoint_sizes(
    terminal: Tensor, adjoint: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return mean, deviation, maximum and gain, `[S]` each; see the package's `adjoint_sizes`."""
    mean, std, largest, gain = torch.ops.trqam_fast.adjoint_sizes(terminal, adjoint).unbind(0)
    return mean, std, largest, None if adjoint is None else gain
