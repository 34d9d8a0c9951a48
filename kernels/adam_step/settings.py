"""Settings of the optimiser's step, and what parts of one share."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """Numbers of a step.

    Attributes:
        lr: Learning rate.
        beta1: Decay rate of the first moment.
        beta2: Decay rate of the second moment.
        eps: Added to the root of the second moment.
        max_norm: Largest norm of a run's gradient; infinite where it is not clipped.
        tau: Step of the targets.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    max_norm: float
    tau: float


def check_betas(betas: tuple[float, float]) -> None:
    """Raise ValueError unless both are decay rates."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"adam_step: betas are {betas}; use two numbers in [0, 1)")


def make_settings(
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    max_norm: float | None,
    tau: float | None,
    targets: bool,
) -> Settings:
    """Return the settings of a step; raise ValueError if one of them is impossible.

    Arguments are those of `adam_step`, `targets` whether there are some.
    """
    check_betas(betas)
    step = 0.0 if tau is None else tau
    for name, value, possible, remedy in (
        ("lr", lr, 0 <= lr < math.inf, "use a finite number, zero or more"),
        ("eps", eps, 0 <= eps < math.inf, "use a finite number, zero or more"),
        (
            "max_norm", max_norm, max_norm is None or max_norm > 0,
            "use a positive number, or None for no clipping",
        ),
        ("tau", tau, 0 <= step <= 1, "use a number in [0, 1]"),
        ("tau", tau, tau is not None or not targets, "pass the step of the targets, in [0, 1]"),
    ):  # fmt: skip
        if not possible:
            raise ValueError(f"adam_step: {name} is {value}; {remedy}")
    return Settings(lr, *betas, eps, math.inf if max_norm is None else max_norm, step)


class AdamNorm(NamedTuple):
    """What the parts of a step share: each run's gradient norm, as its backend keeps it.

    Attributes:
        tensors: Norms `[S]` and the step's number in C++, sums of squares and corrections of the
            moments in Triton.
        backend: ``cpp`` or ``triton``.
    """

    tensors: list[Tensor]
    backend: str
