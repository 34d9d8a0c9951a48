"""GELU (tanh approximation) into given memory, and its pullback.

On the CPU the compiled extension needs one exponential per element where ATen evaluates a tanh;
without it, and on other devices, ATen's kernels run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.dispatch import EXTENSION

_aten = torch.ops.aten


def _in_blocks(tensor: Tensor) -> bool:
    """Whether every `tensor[g]` of `[G, N, W]` is contiguous."""
    return tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]


def gelu_(pre: Tensor, out: Tensor) -> None:
    """Write gelu(pre) to `out`, both `[G, N, W]`, float32 or float64."""
    if EXTENSION is None or not pre.is_cpu or not (_in_blocks(pre) and _in_blocks(out)):
        _aten.gelu.out(pre, approximate="tanh", out=out)
        return
    double = pre.dtype == torch.float64
    call = EXTENSION.gelu_forward_float64 if double else EXTENSION.gelu_forward_float32
    groups, rows, width = pre.shape
    call(
        pre.data_ptr(), out.data_ptr(), groups, rows * width, pre.stride(0), out.stride(0),
        torch.get_num_threads(),
    )  # fmt: skip


def gelu_pullback(pre: Tensor, grad: Tensor) -> Tensor:
    """Return `grad * gelu'(pre)`, `[G, N, W]`; `grad` may be overwritten."""
    if EXTENSION is None or not pre.is_cpu or not (_in_blocks(pre) and _in_blocks(grad)):
        return _aten.gelu_backward(grad, pre, approximate="tanh")
    double = pre.dtype == torch.float64
    call = EXTENSION.gelu_backward_float64 if double else EXTENSION.gelu_backward_float32
    groups, rows, width = pre.shape
    call(
        pre.data_ptr(), grad.data_ptr(), groups, rows * width, pre.stride(0), grad.stride(0),
        torch.get_num_threads(),
    )  # fmt: skip
    return grad
