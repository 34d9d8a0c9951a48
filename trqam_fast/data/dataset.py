"""Transitions on a device, and the sequence sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trqam_fast.agents import Batch
from trqam_fast.errors import UsageError

ACTION_LIMIT = 1.0 - 1e-5


class Sequences(NamedTuple):
    """Sequences of H steps from start indices `[...]`, in the order of the algorithm's section 6.

    Attributes:
        observations: s of the start index, `[..., O]`.
        actions: The raw actions, valid or not, `[..., H, A]`.
        rewards: R_j, discounted sums, `[..., H]`.
        masks: m_j, `[..., H]`.
        terminals: T_j, `[..., H]`.
        valid: valid_j, `[..., H]`.
        next_observations: s'_j, `[..., H, O]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    valid: Tensor
    next_observations: Tensor


@dataclass(frozen=True)
class Dataset:
    """N transitions, one after another, as float32 tensors on one device.

    Attributes:
        observations: `[N, O]`.
        actions: `[N, A]`.
        rewards: `[N]`.
        masks: 0 where the task is solved, `[N]`.
        terminals: 1 at the end of a trajectory, `[N]`.
        next_observations: `[N, O]`.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    masks: Tensor
    terminals: Tensor
    next_observations: Tensor

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], device: torch.device | str = "cpu"
    ) -> Dataset:
        """Build a dataset from arrays named like the attributes."""
        return cls(
            **{
                name: torch.as_tensor(arrays[name], dtype=torch.float32, device=device)
                for name in cls.__dataclass_fields__
            }
        )

    def __len__(self) -> int:
        return self.observations.shape[0]

    @property
    def obs_dim(self) -> int:
        """Width of an observation."""
        return self.observations.shape[-1]

    @property
    def act_dim(self) -> int:
        """Width of an action."""
        return self.actions.shape[-1]

    def check_length(self, horizon: int) -> None:
        """Raise `UsageError` unless some trajectory holds a sequence of `horizon` steps."""
        if len(self) < horizon:
            raise UsageError(
                f"the dataset has {len(self)} transitions, fewer than --horizon-length {horizon}; "
                "use more data or a shorter horizon"
            )
        ends = self.terminals.nonzero().flatten().tolist()
        bounds = [-1, *ends, len(self) - 1]
        longest = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
        if longest < horizon:
            raise UsageError(
                f"the longest trajectory has {longest} transitions, fewer than --horizon-length "
                f"{horizon}; use a shorter horizon"
            )

    def sequences(self, starts: Tensor, horizon: int, discount: float) -> Sequences:
        """Read H-step sequences from `starts`; they may cross the end of a trajectory.

        Args:
            starts: Start indices in [0, N - H], int64, any shape `[...]`.
            horizon: H.
            discount: gamma of one step.

        Returns:
            The sequences.
        """
        steps = torch.arange(horizon, device=starts.device)
        index = starts.unsqueeze(-1) + steps
        ended = self.terminals[index].cummax(-1).values
        valid = torch.cat([torch.ones_like(ended[..., :1]), 1.0 - ended[..., :-1]], dim=-1)
        discounts = discount ** steps.to(self.rewards.dtype)
        rewards = (discounts * self.rewards[index] * valid).cumsum(-1)
        # An invalid step must not lower the running minimum, so it counts as 1.
        masks = torch.where(valid > 0, self.masks[index], 1.0).cummin(-1).values
        last_valid = starts.unsqueeze(-1) + valid.cumsum(-1).long() - 1
        return Sequences(
            self.observations[starts],
            self.actions[index],
            rewards,
            masks,
            ended,
            valid,
            self.next_observations[last_valid],
        )

    def sample(
        self, generators: list[torch.Generator], batch_size: int, horizon: int, discount: float
    ) -> Batch:
        """Sample one batch for every run; run s draws from `generators[s]` alone."""
        device = self.observations.device
        starts = torch.stack(
            [
                torch.randint(
                    len(self) - horizon + 1, (batch_size,), generator=generator, device=device
                )
                for generator in generators
            ]
        )
        sequences = self.sequences(starts, horizon, discount)
        return Batch(
            sequences.observations,
            sequences.actions,
            sequences.rewards[..., -1],
            sequences.masks[..., -1],
            sequences.valid[..., -1],
            sequences.next_observations[..., -1, :],
        )
