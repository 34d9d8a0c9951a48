"""Transitions in memory, and the sequence sampler (docs/algorithm.md, "Sequence sampler")."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trqam_fast.data.batch import Batch
from trqam_fast.errors import UsageError
from trqam_fast.kernels import Backend, gather_sequences
from trqam_fast.randomness import Randomness

if TYPE_CHECKING:
    from trqam_fast.data.flat import FlatSet

FIELDS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations")
"""Arrays of a dataset."""

ROWS_AT_A_TIME = 1_000_000
"""Transitions that are read or worked on together; bounds the memory that takes."""

FINGERPRINT_ROWS = 1000
"""Transitions at the end of a dataset that tell it from others."""

FEW_STARTS = 0.5
"""Share of starts of whole sequences below which it is worth saying."""


class Outcomes(NamedTuple):
    """What H-step sequences come to at their last step, all of one shape.

    Attributes:
        rewards: R, the discounted sum, float32.
        masks: m, float32.
        valid: 1 where step H-1 lies in the trajectory of the start, float32.
        steps: Steps in that trajectory, 1 to H, int64.
        ended: Whether the last of them ends the trajectory, bool.
    """

    rewards: Tensor
    masks: Tensor
    valid: Tensor
    steps: Tensor
    ended: Tensor


def follow(
    rewards: Sequence[Tensor], masks: Sequence[Tensor], terminals: Sequence[Tensor], discount: float
) -> Outcomes:
    """Follow sequences of H steps, many at once.

    Elementwise operations only, so the result is the same on every device.

    Args:
        rewards: Of step 0, 1, ..., H - 1, float32, all of one shape `[...]`.
        masks: 0 where the task is solved; likewise.
        terminals: Not 0 at the end of a trajectory; likewise.
        discount: gamma of one step.

    Returns:
        The outcomes, each `[...]`.
    """
    total = torch.zeros_like(rewards[0], dtype=torch.float64)
    mask = torch.ones_like(masks[0])
    ended = torch.zeros_like(rewards[0], dtype=torch.bool)
    valid, steps = ~ended, torch.zeros_like(ended, dtype=torch.int64)
    for step in range(len(rewards)):
        valid = ~ended
        total += torch.where(valid, rewards[step] * discount**step, 0.0)
        mask = torch.where(valid, torch.minimum(mask, masks[step]), mask)
        steps += valid
        ended |= terminals[step] != 0
    return Outcomes(total.float(), mask, valid.float(), steps, ended)


def outcomes(
    rewards: Tensor, masks: Tensor, terminals: Tensor, horizon: int, discount: float
) -> Outcomes:
    """Follow the sequences of `horizon` steps from every start among consecutive transitions.

    Takes three columns `[n + H - 1]` and returns the outcomes of the n first starts.
    """
    count = len(rewards) - horizon + 1
    steps = [slice(step, step + count) for step in range(horizon)]
    return follow(
        [rewards[rows] for rows in steps],
        [masks[rows] for rows in steps],
        [terminals[rows] for rows in steps],
        discount,
    )


class Transitions:
    """What both storages have in common.

    Attributes:
        device: Where batches are.
        obs_dim: Width of an observation.
        act_dim: Width of an action.
        capturable: Whether a captured graph may sample: on the device alone, the same every time.
    """

    device: torch.device
    obs_dim: int
    act_dim: int
    capturable: bool

    def __len__(self) -> int:
        raise NotImplementedError

    def trajectory_ends(self) -> Tensor:
        """Return the transitions that end a trajectory, in order, int64."""
        raise NotImplementedError

    def gather(
        self, starts: Tensor, horizon: int, discount: float, backend: Backend = "auto"
    ) -> Batch:
        """Read H-step sequences; they may cross the end of a trajectory.

        Args:
            starts: Start indices in [0, N - H], int64 `[S, B]`.
            horizon: H.
            discount: gamma of one step.
            backend: As for `gather_sequences`, of transitions in memory.

        Returns:
            The batch on `device`.
        """
        raise NotImplementedError

    def tail(self, count: int) -> dict[str, np.ndarray]:
        """Return the last `count` transitions (all if there are fewer), every one of `FIELDS`."""
        raise NotImplementedError

    def start_count(self, horizon: int) -> int:
        """Return the number of possible starts, N - H + 1."""
        return len(self) - horizon + 1

    def sample(
        self, randomness: Randomness, batch_size: int, horizon: int, discount: float
    ) -> Batch:
        """Sample one batch for every run; starts are uniform over all that there are.

        What draws the random numbers gathers too.
        """
        drawn = randomness.draw(integers=batch_size, high=self.start_count(horizon))
        return self.gather(drawn.integers, horizon, discount, randomness.backend)

    def fingerprint(self) -> str:
        """Return the number of transitions and a hash of some, the same for every storage."""
        digest = hashlib.sha256(self.trajectory_ends().cpu().numpy().tobytes())
        for array in self.tail(FINGERPRINT_ROWS).values():
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
        return f"{len(self)} transitions with hash {digest.hexdigest()[:12]}"

    def check_length(self, horizon: int) -> list[str]:
        """Return what is worth saying of the starts of sequences of `horizon` steps.

        Raises:
            UsageError: no trajectory holds one.
        """
        if len(self) < horizon:
            raise UsageError(
                f"the dataset has {len(self)} transitions, fewer than --horizon-length {horizon}; "
                "use more data or a shorter horizon"
            )
        bounds = np.r_[-1, self.trajectory_ends().cpu().numpy(), len(self) - 1]
        lengths = np.diff(bounds)
        longest = int(lengths.max())
        if longest < horizon:
            raise UsageError(
                f"the longest trajectory has {longest} transitions, fewer than --horizon-length "
                f"{horizon}; use a shorter horizon"
            )
        share = (lengths - horizon + 1).clip(0).sum() / self.start_count(horizon)
        if share >= FEW_STARTS:
            return []
        return [
            f"the trajectory of {1 - share:.0%} of the starts ends before --horizon-length "
            f"{horizon} steps; those count as 0 in losses, which are means over all starts, so "
            "little is learned from a batch; use a shorter horizon or longer trajectories"
        ]


class Lookup(NamedTuple):
    """Outcomes of every start, laid out for a batch to look up.

    Attributes:
        table: R, m and valid of index H-1, `[N - H + 1, 3]`.
        next_row: Row of the pool that holds s', `[N - H + 1]`, int64.
    """

    table: Tensor
    next_row: Tensor


class Dataset(Transitions):
    """N transitions, one after another, as float32 tensors on one device.

    Every observation is stored once: the observation that follows a transition is the next row of
    the pool, unless the transition is among `own`, whose following observations come last.

    Args:
        pool: Observations, then those that follow the transitions `own`, `[N + F, O]`.
        own: Transitions that the next row does not follow, in order, `[F]`, int64.
        actions: `[N, A]`.
        rewards: `[N]`.
        masks: 0 where the task is solved, `[N]`.
        terminals: 1 at the end of a trajectory, `[N]`.
    """

    capturable = True

    def __init__(
        self,
        pool: Tensor,
        own: Tensor,
        actions: Tensor,
        rewards: Tensor,
        masks: Tensor,
        terminals: Tensor,
    ) -> None:
        self.pool, self.own, self.actions = pool, own, actions
        self.rewards, self.masks, self.terminals = rewards, masks, terminals
        self.device = pool.device
        self.obs_dim, self.act_dim = pool.shape[-1], actions.shape[-1]
        self._lookups: dict[tuple[int, float], Lookup] = {}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray | Tensor], device: torch.device | str = "cpu"
    ) -> Dataset:
        """Build a dataset from arrays named like `FIELDS`, one row for each transition."""
        tensors = {
            name: torch.as_tensor(arrays[name], dtype=torch.float32, device=device).contiguous()
            for name in FIELDS
        }
        observations = tensors.pop("observations")
        following = tensors.pop("next_observations")
        # Bits are compared, so that a zero keeps its sign.
        differs = following[:-1].view(torch.int32) != observations[1:].view(torch.int32)
        last = torch.ones(1, dtype=torch.bool, device=observations.device)
        own = torch.cat([differs.any(-1), last]).nonzero().flatten()
        return cls(torch.cat([observations, following[own]]), own, **tensors)

    @classmethod
    def from_flat(
        cls, flat: FlatSet, task: int, *, sparse: bool = False, device: torch.device | str = "cpu"
    ) -> Dataset:
        """Copy a flat set into memory; `sparse` as in `load_task`."""
        count, obs_dim, act_dim = flat.transitions, flat.obs_dim, flat.act_dim
        pool = torch.empty(count + flat.trajectories, obs_dim, device=device)
        actions = torch.empty(count, act_dim, device=device)
        columns = [torch.empty(count, device=device) for _ in range(3)]
        for start in range(0, count, ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, count)
            records = torch.from_numpy(flat.read("records", start, stop))
            pool[start:stop] = records[:, :obs_dim].to(device)
            actions[start:stop] = records[:, obs_dim:].to(device)
            for column, values in zip(
                columns, flat.read_task(task, start, stop, sparse), strict=True
            ):
                column[start:stop] = torch.from_numpy(values).to(device)
        pool[count:] = torch.from_numpy(flat.read("finals", 0, flat.trajectories)).to(device)
        own = columns[2].nonzero().flatten()
        flat.check_ends(own.cpu().numpy())
        return cls(pool, own, actions, *columns)

    def __len__(self) -> int:
        return self.actions.shape[0]

    @property
    def observations(self) -> Tensor:
        """Observations, `[N, O]`."""
        return self.pool[: len(self)]

    def trajectory_ends(self) -> Tensor:
        """Return the transitions that end a trajectory, in order, int64."""
        return self.terminals.nonzero().flatten()

    def next_rows(self, index: Tensor) -> Tensor:
        """Return the rows of the pool that follow the transitions `index`, int64."""
        rank = torch.searchsorted(self.own, index).clamp_(max=len(self.own) - 1)
        return torch.where(self.own[rank] == index, len(self) + rank, index + 1)

    def lookup(self, horizon: int, discount: float) -> Lookup:
        """Return the outcomes of every start, computed once: they depend on the start alone."""
        key = (horizon, discount)
        if key not in self._lookups:
            parts = []
            for start in range(0, self.start_count(horizon), ROWS_AT_A_TIME):
                stop = min(start + ROWS_AT_A_TIME, self.start_count(horizon))
                rows = slice(start, stop + horizon - 1)
                found = outcomes(self.rewards[rows], self.masks[rows], self.terminals[rows], *key)
                last = torch.arange(start - 1, stop - 1, device=self.device) + found.steps
                parts.append((torch.stack(found[:3], dim=-1), self.next_rows(last)))
            self._lookups[key] = Lookup(*map(torch.cat, zip(*parts, strict=True)))
        return self._lookups[key]

    def gather(
        self, starts: Tensor, horizon: int, discount: float, backend: Backend = "auto"
    ) -> Batch:
        """Read sequences without a word to the host; see `Transitions.gather`."""
        found = gather_sequences(
            starts, self.pool, self.actions, *self.lookup(horizon, discount), horizon,
            backend="auto" if backend == "cpp" else backend,  # There is no C++ code for it.
        )  # fmt: skip
        return Batch(*found)

    def tail(self, count: int) -> dict[str, np.ndarray]:
        """Return the last `count` transitions; see `Transitions.tail`."""
        index = torch.arange(max(len(self) - count, 0), len(self), device=self.device)
        tensors = {name: getattr(self, name)[index] for name in FIELDS[:-1]}
        tensors["next_observations"] = self.pool[self.next_rows(index)]
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
