"""Transitions on a device, and the sequence sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trqam_fast.agents import Batch
from trqam_fast.errors import UsageError

FIELDS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations")
"""Arrays of a dataset."""

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


class Outcomes(NamedTuple):
    """What the sequences from all starts come to at their last step.

    Attributes:
        table: R, m and valid of index H-1, `[N - H + 1, 3]`.
        last_valid: Transition whose next observation is s', `[N - H + 1]`, int64.
    """

    table: Tensor
    last_valid: Tensor


OUTCOMES_AT_A_TIME = 1_000_000
"""Starts whose outcomes are computed together; bounds the memory that takes."""


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
    _outcomes: dict[tuple[int, float], Outcomes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], device: torch.device | str = "cpu"
    ) -> Dataset:
        """Build a dataset from arrays named like the attributes."""
        return cls(
            **{
                name: torch.as_tensor(arrays[name], dtype=torch.float32, device=device)
                for name in FIELDS
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
        index = starts.unsqueeze(-1) + torch.arange(horizon, device=starts.device)
        valid, rewards, masks, ended = self._accumulate(index, discount)
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

    def _accumulate(self, index: Tensor, discount: float) -> tuple[Tensor, ...]:
        """Return valid_j, R_j, m_j and T_j of the sequences at `index` `[..., H]`."""
        ended = self.terminals[index].cummax(-1).values
        valid = torch.cat([torch.ones_like(ended[..., :1]), 1.0 - ended[..., :-1]], dim=-1)
        steps = torch.arange(index.shape[-1], device=index.device)
        discounts = discount ** steps.to(self.rewards.dtype)
        rewards = (discounts * self.rewards[index] * valid).cumsum(-1)
        # An invalid step must not lower the running minimum, so it counts as 1.
        masks = torch.where(valid > 0, self.masks[index], 1.0).cummin(-1).values
        return valid, rewards, masks, ended

    def outcomes(self, horizon: int, discount: float) -> Outcomes:
        """Return what a sequence from every possible start comes to, computed once.

        It depends on the start alone, so a batch is a lookup.
        """
        key = (horizon, discount)
        if key not in self._outcomes:
            starts = torch.arange(len(self) - horizon + 1, device=self.rewards.device)
            parts = [self._outcomes_from(part, *key) for part in starts.split(OUTCOMES_AT_A_TIME)]
            self._outcomes[key] = Outcomes(*map(torch.cat, zip(*parts, strict=True)))
        return self._outcomes[key]

    def _outcomes_from(self, starts: Tensor, horizon: int, discount: float) -> Outcomes:
        """Return the outcomes of sequences from `starts` `[n]`."""
        index = starts.unsqueeze(-1) + torch.arange(horizon, device=starts.device)
        valid, rewards, masks, _ = self._accumulate(index, discount)
        table = torch.stack([rewards[:, -1], masks[:, -1], valid[:, -1]], dim=-1)
        return Outcomes(table, starts + valid.sum(-1).long() - 1)

    def sample(
        self, generators: list[torch.Generator], batch_size: int, horizon: int, discount: float
    ) -> Batch:
        """Sample one batch for every run; run s draws from `generators[s]` alone."""
        device = self.observations.device
        starts = torch.empty(len(generators), batch_size, dtype=torch.int64, device=device)
        for run, generator in enumerate(generators):
            starts[run].random_(0, len(self) - horizon + 1, generator=generator)
        outcomes = self.outcomes(horizon, discount)
        rewards, masks, valid = outcomes.table[starts].unbind(-1)
        steps = self.actions.unfold(0, horizon, 1).transpose(1, 2)
        return Batch(
            self.observations[starts],
            steps[starts],
            rewards,
            masks,
            valid,
            self.next_observations[outcomes.last_valid[starts]],
        )
