"""The squared error and its gradient: a run's predictions in one program, as they are few."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 16


@triton.jit(do_not_specialize=["size", "rows", "dim"])
def squared_error_kernel(
    prediction,  # [S, E, B, D]
    target,  # [S, B, D]
    valid,  # [S, B]
    loss,  # [S], written
    gradient,  # [S, E, B, D], written with GRADIENT
    size,  # E B D
    rows,  # B
    dim,  # D
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With d = prediction - target: the mean of d^2 valid and 2 d valid / (E B D); grid [S]."""
    run = tl.cast(tl.program_id(0), tl.int64)
    prediction += run * size
    gradient += run * size
    target += run * rows * dim
    valid += run * rows
    count = tl.cast(size, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < size
        within = at % (rows * dim)
        weight = tl.load(valid + within // dim, mask=mask, other=0.0)
        apart = tl.load(prediction + at, mask=mask, other=0.0)
        apart -= tl.load(target + within, mask=mask, other=0.0)
        total += apart * apart * weight
        if GRADIENT:
            tl.store(gradient + at, 2.0 * apart * weight / count, mask=mask)
    tl.store(loss + run, tl.sum(total) / count)


def squared_error(
    prediction: Tensor, target: Tensor, valid: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss `[S]` and its gradient in `prediction`, or an empty one.

    Raises:
        ValueError: a run has 2^31 predictions or more.
    """
    runs, ensemble, rows, dim = prediction.shape
    size = ensemble * rows * dim
    if size >= 2**31:
        raise ValueError(
            f"squared_error: prediction has {size} elements in a run; the Triton kernel addresses "
            "fewer than 2^31, so split the batch"
        )
    loss = prediction.new_empty(runs)
    gradient = torch.empty_like(prediction) if with_gradient else prediction.new_empty(0)
    with torch.cuda.device_of(prediction):
        squared_error_kernel[(runs,)](
            prediction, target, valid, loss, gradient, size, rows, dim, with_gradient, BLOCK,
            num_warps=WARPS,
        )  # fmt: skip
    return loss, gradient
