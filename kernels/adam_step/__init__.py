"""One Adam step of S independent runs, with clipping and Polyak targets, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.kernels.adam_step import ops, reference
from trqam_fast.kernels.adam_step.settings import AdamNorm, check_betas, make_settings
from trqam_fast.kernels.checks import check_same, check_tensor, check_written
from trqam_fast.kernels.dispatch import Backend, choose_backend


@torch.no_grad()
def adam_step(
    params: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    max_norm: float | None = None,
    targets: Tensor | None = None,
    tau: float | None = None,
    norm: AdamNorm | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Clip each run's gradient, move the targets, take one Adam step; all in place.

    With g the gradient of a run scaled to norm `max_norm` at most and t the new `step`::

        targets <- targets + tau (params_before - targets)
        m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
        params <- params - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Source: TRQAM sections "Optimiser" and "Targets" (docs/algorithm.md): the targets move toward
    the parameters as they were before the step.

    Args:
        params: `[S, P]`, contiguous, float32 or float64; written.
        gradient: `[S, P]`, unclipped; only read.
        exp_avg: First moment m, `[S, P]`; written.
        exp_avg_sq: Second moment v, `[S, P]`; written.
        step: Number of steps taken, float32 `[]`; written.
        lr: Learning rate, zero or more.
        betas: Decay rates of the moments, in [0, 1).
        eps: Added to the root of the second moment.
        max_norm: Largest norm of a run's gradient, positive; None does not clip.
        targets: `[S, Q]`, Q <= P, targets of the last Q parameters; None for none.
        tau: Step of the targets, in [0, 1]; to be given where there are some.
        norm: What `adam_norm` found of the whole gradient. The step is of the columns given alone
            then, which may be views of all, and `step` is left alone, as it is counted already;
            parts may run side by side, and together leave the bits of the whole.
        backend: ``reference`` (PyTorch's fused Adam), ``cpp`` (one fused pass on the CPU),
            ``triton`` (one fused pass, float32) or ``auto``, which with `norm` is its backend.

    Returns:
        Norm of each run's gradient before clipping, `[S]`. Of float32 squares ``triton`` sums in
        float32, the others in float64: from a norm of 1.8e19 it finds an infinite one, and a
        clipped gradient of zero.

    Raises:
        TypeError: an argument is no tensor, or of an unsupported dtype.
        ValueError: shapes, dtypes or devices do not fit, a tensor is not contiguous, a number is
            impossible, `tau` is missing, or `norm` is of another backend.
        BackendError: the backend asked for cannot run.
    """
    op = "adam_step"
    check_tensor(op, "params", params, (None, None))
    tensors = {"gradient": gradient, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    for name, tensor in tensors.items():
        check_tensor(op, name, tensor, tuple(params.shape))
    if targets is not None:
        check_tensor(op, "targets", targets, (params.shape[0], None))
        if targets.shape[1] > params.shape[1]:
            raise ValueError(
                f"{op}: targets has shape {list(targets.shape)}; it can have "
                f"{params.shape[1]} columns at most"
            )
        tensors["targets"] = targets
    check_same(op, params=params, **tensors)
    tensors = {"params": params, **tensors}
    if norm is None:
        check_written(op, **tensors)
    for name, tensor in tensors.items():
        apart = tensor if name == "targets" else params
        if tensor.stride(1) != 1 or tensor.stride(0) != apart.stride(0):
            raise ValueError(
                f"{op}: {name} has strides {tensor.stride()}, where params has {params.stride()}; "
                "pass the same columns of contiguous tensors"
            )
    check_step(step, params.device)
    settings = make_settings(
        lr=lr, betas=betas, eps=eps, max_norm=max_norm, tau=tau, targets=targets is not None
    )
    asked = norm.backend if norm is not None and backend == "auto" else backend
    chosen = choose_backend(op, asked, params.device, dtype=params.dtype)
    state = (params, gradient, exp_avg, exp_avg_sq)
    if norm is not None:
        if chosen != norm.backend:
            raise ValueError(
                f"{op}: backend {chosen} was asked for, and norm is of {norm.backend}; pass the "
                "same to both"
            )
        return ops.adam_step(*state, None, targets, settings, chosen, norm)
    if chosen == "reference":
        return reference.adam_step(*state, step, targets, settings)
    return ops.adam_step(*state, step, targets, settings, chosen, None)


@torch.no_grad()
def adam_norm(
    gradient: Tensor,
    step: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    backend: Backend = "auto",
) -> AdamNorm | None:
    """Begin a step that is done in parts: find each run's norm and count the step.

    Args:
        gradient: `[S, P]`, contiguous, unclipped; only read.
        step: Number of steps taken, float32 `[]`; written.
        betas: Decay rates of the moments, those of the parts.
        backend: As for `adam_step`.

    Returns:
        What `adam_step` takes as `norm` for each part; None, and `step` as it was, where the
        backend is ``reference``, which does no parts.

    Raises:
        TypeError: `gradient` or `step` is no tensor, or of an unsupported dtype.
        ValueError: `gradient` is not contiguous, `step` not one float32 number, or `betas` are no
            decay rates.
        BackendError: the backend asked for cannot run.
    """
    check_tensor("adam_step", "gradient", gradient, (None, None))
    if not gradient.is_contiguous():
        raise ValueError("adam_step: gradient is not contiguous; pass all of it")
    check_step(step, gradient.device)
    check_betas(betas)
    chosen = choose_backend("adam_step", backend, gradient.device, dtype=gradient.dtype)
    return None if chosen == "reference" else ops.adam_norm(gradient, step, betas, chosen)


def check_step(step: Tensor, device: torch.device) -> None:
    """Raise TypeError unless `step` is a tensor, ValueError unless one float32 number there."""
    if not isinstance(step, Tensor):
        raise TypeError(f"adam_step: step is a {type(step).__name__}; pass a float32 tensor []")
    if step.numel() != 1 or step.dtype != torch.float32 or step.device != device:
        raise ValueError(
            f"adam_step: step is {step.dtype} {list(step.shape)} on {step.device}; expected one "
            f"float32 number on {device}"
        )


__all__ = ["AdamNorm", "adam_norm", "adam_step"]
