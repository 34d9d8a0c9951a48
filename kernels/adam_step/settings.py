"""Settings of the optimiser's step, and what parts of one share."""

from __future__ import annotations

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


class AdamNorm(NamedTuple):
    """What the parts of a step share: each run's gradient norm, as its backend keeps it.

    Attributes:
        tensors: Norms `[S]` and the step's number in C++, sums of squares and corrections of the
            moments in Triton.
        backend: ``cpp`` or ``triton``.
    """

    tensors: list[Tensor]
    backend: str
