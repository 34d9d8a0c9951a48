"""How large adjoints are: what is logged of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trqam_fast.kernels.adjoint_sizes import ops, reference
from trqam_fast.kernels.checks import check_not_empty, check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, choose_backend


class AdjointSizes(NamedTuple):
    """Sizes of the adjoints of a batch.

    Attributes:
        mean: Mean of |a|, `[S]`.
        std: Its standard deviation, `[S]`.
        max: Its largest element, `[S]`.
        gain: Largest norm along the trajectory over that of the terminal adjoint, `[S]`; None if
            there is no trajectory.
    """

    mean: Tensor
    std: Tensor
    max: Tensor
    gain: Tensor | None


@torch.no_grad()
def adjoint_sizes(
    terminal: Tensor, adjoint: Tensor | None = None, *, backend: Backend = "auto"
) -> AdjointSizes:
    """Measure terminal adjoints, and how far the sweep made them grow.

    With n(a) the root of the mean over a batch of |a_b|^2::

        gain = max_k n(a_k) / n(a_K)

    Args:
        terminal: a_K, `[S, B, D]`, float32 or float64.
        adjoint: a_0..a_{K-1}, `[S, K, B, D]`, K > 0; or None.
        backend: ``auto``, ``reference`` or ``triton`` (float32).

    Returns:
        The `AdjointSizes`, without gradients.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or a size is 0.
        BackendError: the backend asked for cannot run.
    """
    op = "adjoint_sizes"
    check_tensor(op, "terminal", terminal, ("S", "B", "D"))
    check_not_empty(op, "terminal", terminal)
    runs, *rows = terminal.shape
    if adjoint is not None:
        check_tensor(op, "adjoint", adjoint, (runs, "K", *rows))
        check_same(op, terminal=terminal, adjoint=adjoint)
        if adjoint.shape[1] == 0:
            raise ValueError(f"{op}: adjoint has no steps; pass None")
    chosen = choose_backend(op, backend, terminal.device, dtype=terminal.dtype)
    implementation = reference if chosen == "reference" else ops
    return AdjointSizes(*implementation.adjoint_sizes(terminal, adjoint))


__all__ = ["AdjointSizes", "adjoint_sizes"]
