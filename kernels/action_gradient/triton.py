"""The gradient of values in the action: passes of the critics, and a launch that adds them up.

Actions are clipped where the first layer reads them, and the cotangent is a number, so nothing is
written for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trqam_fast.kernels.layout import dense_runs
from trqam_fast.kernels.mlp.triton import backward_pass, forward_pass
from trqam_fast.kernels.mlp.triton_inputs import Inputs
from trqam_fast.kernels.mlp.weights import MLPWeights

BLOCK = 512


@triton.jit(do_not_specialize=["x_stride", "members", "batch", "dim", "inputs", "scale"])
def action_gradient_kernel(
    d_inputs,  # [S, E, B, in]: of [s, a] of every member
    x,  # [S, B, D]
    x_stride,  # elements between two runs of x
    gradient,  # [S, B, D], written
    members,  # E
    batch,  # B
    dim,  # D
    inputs,  # in
    scale,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums over the members, times the clamp's derivative and `scale`; grid [blocks, S]."""
    run = tl.cast(tl.program_id(1), tl.int64)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < batch * dim
    at = element // dim * inputs + inputs - dim + element % dim
    d_inputs += run * members * batch * inputs
    total = tl.zeros((BLOCK,), tl.float32)
    for member in range(0, members):
        of_member = d_inputs + tl.cast(member, tl.int64) * batch * inputs
        total += tl.load(of_member + at, mask=inside, other=0.0)
    if CLIP:
        action = tl.load(x + run * x_stride + element, mask=inside, other=0.0)
        total = tl.where((action < -1.0) | (action > 1.0), 0.0, total)
    tl.store(gradient + run * batch * dim + element, scale * total, mask=inside)


def action_gradient(
    critic: MLPWeights,
    observations: Tensor,
    x: Tensor,
    clip: bool,
    scale: float,
    precision: str,
    operands: Sequence[Tensor],
    *,
    dependent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the gradient and the values; see the package's `action_gradient`."""
    x, (runs, members), (_, batch, dim) = dense_runs(x), critic.lead, x.shape
    inputs = Inputs(observations.contiguous(), x.unsqueeze(1), clip=clip)
    out, kept = forward_pass(
        critic, inputs, precision, train=True, dependent=dependent, operands=operands
    )
    kept = [*kept[:-1], operands[-1]] if operands else kept
    d_inputs = backward_pass(
        critic, inputs, kept, 1.0 / members, precision, True, [], dependent=dependent
    )
    gradient = x.new_empty(runs, batch, dim)
    with torch.cuda.device_of(x):
        action_gradient_kernel[(triton.cdiv(batch * dim, BLOCK), runs)](
            d_inputs, x, x.stride(0), gradient, members, batch, dim, d_inputs.shape[-1], scale,
            clip, BLOCK, num_warps=4,
        )  # fmt: skip
    return gradient, out.view(runs, members, batch)
