"""The replay buffer of online fine-tuning: the offline data, then what every run adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trqam_fast.data.batch import Batch
from trqam_fast.data.dataset import FIELDS, Transitions, follow
from trqam_fast.kernels import Backend
from trqam_fast.randomness import Randomness


class ReplayBuffer:
    """Offline transitions shared by S runs, followed by each run's own online ones.

    A sequence may start in the offline data and end in the online ones, as if both lay in one
    array: the online storage begins with a copy of the last H - 1 offline transitions.

    Args:
        offline: N transitions.
        runs: S.
        capacity: Most online transitions of a run.
        horizon: H, the length of the sequences that will be sampled.
        balanced: Take half of each batch from the online transitions alone.
        device: Where the online transitions are kept.
    """

    capturable = False
    """A captured graph would sample for ever from the transitions that there were."""

    def __init__(
        self,
        offline: Transitions,
        runs: int,
        capacity: int,
        horizon: int,
        *,
        balanced: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.offline, self.runs, self.balanced = offline, runs, balanced
        self.lead, self.added = horizon - 1, 0
        widths = {"observations": (offline.obs_dim,), "actions": (offline.act_dim,)}
        widths["next_observations"] = widths["observations"]
        tail = offline.tail(self.lead)
        self.online: dict[str, Tensor] = {}
        for name in FIELDS:
            size = (runs, self.lead + capacity, *widths.get(name, ()))
            self.online[name] = torch.zeros(size, device=device)
            self.online[name][:, : self.lead] = torch.as_tensor(tail[name], device=device)

    def add(self, transitions: dict[str, np.ndarray]) -> None:
        """Append one transition of every run: arrays `[S, ...]` named like `FIELDS`."""
        row = self.lead + self.added
        for name, storage in self.online.items():
            storage[:, row] = torch.as_tensor(transitions[name], dtype=torch.float32)
        self.added += 1

    def end_trajectory(self, run: int) -> None:
        """Let the newest transition of a run end its trajectory, where another one follows."""
        if self.added:
            self.online["terminals"][run, self.lead + self.added - 1] = 1.0

    def sample(
        self, randomness: Randomness, batch_size: int, horizon: int, discount: float
    ) -> Batch:
        """Sample one batch for every run.

        Without `balanced`, starts are uniform over all N + n - H + 1 of them; with it, the second
        half of a batch starts at one of the n - H + 1 online starts.
        """
        count = self.offline.start_count(horizon)
        if not self.balanced:
            drawn = randomness.draw(integers=batch_size, high=count + self.added)
            return self.gather(drawn.integers, horizon, discount, randomness.backend)
        half = batch_size // 2
        offline = randomness.draw(integers=half, high=count).integers
        online = randomness.draw(integers=batch_size - half, high=self.added - self.lead).integers
        starts = torch.cat([offline, count + self.lead + online], dim=1)
        return self.gather(starts, horizon, discount, randomness.backend)

    def gather(
        self, starts: Tensor, horizon: int, discount: float, backend: Backend = "auto"
    ) -> Batch:
        """Return the sequences from `starts` `[S, B]` in [0, N + n - H]."""
        count = self.offline.start_count(horizon)
        offline = self.offline.gather(starts.clamp(max=count - 1), horizon, discount, backend)
        online = self._gather_online((starts - count).clamp(min=0), horizon, discount)
        parts = []
        for ours, theirs in zip(online, offline, strict=True):
            is_online = (starts >= count).view(*starts.shape, *[1] * (ours.dim() - 2))
            parts.append(torch.where(is_online, ours, theirs))
        return Batch(*parts)

    def _gather_online(self, starts: Tensor, horizon: int, discount: float) -> Batch:
        run = torch.arange(self.runs, device=starts.device).unsqueeze(-1)
        index = starts.unsqueeze(-1) + torch.arange(horizon, device=starts.device)
        data, each = self.online, run.unsqueeze(-1)
        names = ("rewards", "masks", "terminals")
        rewards, masks, terminals = (data[name][each, index].unbind(-1) for name in names)
        found = follow(rewards, masks, terminals, discount)
        return Batch(
            data["observations"][run, starts],
            data["actions"][each, index],
            found.rewards,
            found.masks,
            found.valid,
            data["next_observations"][run, starts + found.steps - 1],
        )

    def state_dict(self) -> dict[str, Any]:
        """Online transitions as tensors on the CPU, `[S, n, ...]`."""
        rows = slice(self.lead, self.lead + self.added)
        return {
            name: storage[:, rows].to("cpu", copy=True) for name, storage in self.online.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.added = state["rewards"].shape[1]
        for name, storage in self.online.items():
            storage[:, self.lead : self.lead + self.added] = state[name].to(storage.device)
