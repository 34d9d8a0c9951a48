"""What the rows of a rollout start from."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RolloutInputs(NamedTuple):
    """Data of a compiled rollout: rows of the SDE, and rows of the noise-free flow.

    Attributes:
        observations: `[S, B, O]`.
        x0: `[S, B, D]`.
        noise: eps_0..eps_{K-2}, `[S, K - 1, B, D]`.
        ode_observations: `[S, N, O]`.
        ode_x0: `[S, N, D]`.
    """

    observations: Tensor
    x0: Tensor
    noise: Tensor
    ode_observations: Tensor
    ode_x0: Tensor

    @property
    def flow_steps(self) -> int:
        """K."""
        return self.noise.shape[1] + 1
