"""The gradient of an ensemble's mean value in the action: where adjoints begin."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.action_gradient import ops, reference
from trqam_fast.kernels.checks import check_not_empty, check_same, check_tensor
from trqam_fast.kernels.dispatch import Backend, Precision, choose_backend
from trqam_fast.kernels.mlp import check_weights
from trqam_fast.kernels.mlp.weights import MLPWeights


@torch.no_grad()
def action_gradient(
    critic: MLPWeights,
    observations: Tensor,
    x: Tensor,
    *,
    clip: bool = True,
    scale: float = 1.0,
    backend: Backend = "auto",
    precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Differentiate the mean of an ensemble's values in the actions that they are given.

    ::

        scale d/dX mean_e Q_e(s, clip(X, -1, 1))

    which is 0 where X lies outside [-1, 1]. Source: docs/algorithm.md, "Terminal adjoint".

    Args:
        critic: Packed weights `[S, E]` on `[s, a]`, with one output; operands of theirs are for
            inputs in two parts (`with_operands`).
        observations: s, `[S, B, O]`, float32 or float64.
        x: X, `[S, B, D]`.
        clip: Whether values are those of clipped actions; else no gradient is 0 for that.
        scale: Factor on the gradient.
        backend: ``auto``, ``reference``, ``cpp``, ``triton`` or ``triton_pdl``.
        precision: Operands: ``ieee``, ``tf32`` or ``fp16`` (Triton), ``bf16`` (Triton or ``cpp``).

    Returns:
        The gradient, `[S, B, D]`, and Q_e, `[S, E, B]`, both constants to autograd.

    Raises:
        TypeError: `critic` is no `MLPWeights`, or a tensor of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, or `critic` is no ensemble of one output.
        BackendError: the backend asked for cannot run.
    """
    op = "action_gradient"
    check_weights(op, critic, "critic")
    if len(critic.lead) != 2 or critic.out_features != 1:
        raise ValueError(
            f"{op}: critic has leading axes {list(critic.lead)} and {critic.out_features} outputs; "
            "pass an ensemble [S, E] of one output"
        )
    runs = critic.lead[0]
    check_tensor(op, "observations", observations, (runs, "B", "O"))
    check_tensor(
        op, "x", x, (runs, observations.shape[1], critic.in_features - observations.shape[-1])
    )
    check_not_empty(op, "x", x)
    check_same(op, observations=observations, x=x, critic=critic.kernels[0])
    chosen = choose_backend(
        op, backend, x.device, dtype=x.dtype, precision=precision, networks=[critic]
    )
    given = (critic.detach(), observations.detach(), x.detach(), clip, scale)
    if chosen == "reference":
        return reference.action_gradient(*given)
    return ops.action_gradient(*given, chosen, precision)


__all__ = ["action_gradient"]
