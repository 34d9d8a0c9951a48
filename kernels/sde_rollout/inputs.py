"""What the rows of a rollout start from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from trqam_fast.kernels.fields import Context


class RolloutInputs(NamedTuple):
    """Data of a rollout: rows of the SDE, and rows of the noise-free flow.

    Attributes:
        observations: `[S, B, O]`; for callable fields also a `Context`.
        x0: `[S, B, D]`.
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`.
        ode_observations: `[S, N, O]`, or a `Context`.
        ode_x0: `[S, N, D]`.
    """

    observations: Tensor | Context
    x0: Tensor
    noise: Tensor
    ode_observations: Tensor | Context
    ode_x0: Tensor

    @property
    def flow_steps(self) -> int:
        """K."""
        return self.noise.shape[1] + 1
