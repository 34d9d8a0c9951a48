"""A trained policy, to act with: numpy in, numpy out."""

from __future__ import annotations

import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.agents import Agent
from trqam_fast.damage import reason_of
from trqam_fast.errors import UsageError
from trqam_fast.evaluation.episodes import Request
from trqam_fast.evaluation.policy import choose_chunks
from trqam_fast.files import expanded
from trqam_fast.kernels import Backend
from trqam_fast.program import write_program
from trqam_fast.runs.folder import RunFolder
from trqam_fast.simulator.bounds import float32_bounds, unscaled
from trqam_fast.simulator.environment import Parts, names_of
from trqam_fast.training.interface import Sizes
from trqam_fast.training.load_run import check_here, load_run

FLATTEN = "gymnasium.spaces.flatten(env.observation_space, observation)"
"""What joins an observation of any space as training does."""


class Policy:
    """The policy of one seed of a run; keeps what is left of its chunks of actions.

    It acts in one environment or in several at once, row for row. Row i draws its noise from a
    generator of its own, so its actions follow from the seed and its observations alone.

    Args:
        agent: S runs.
        sizes: What the policy takes and gives.
        run: Index of the run in [0, S).
        seed: Seed of its noise.

    Raises:
        UsageError: there is no such run, or the seed is no whole number of 0 or more.

    Attributes:
        agent: The agent, for what this class does not do.
        sizes: What the policy takes and gives; `sizes.low` and `sizes.high` bound its actions.
    """

    def __init__(self, agent: Agent, sizes: Sizes, *, run: int = 0, seed: int = 0) -> None:
        check_count("run", run, agent.runs)
        self.agent, self.sizes, self.run = agent, sizes, run
        self.low, self.high = np.asarray(sizes.low), np.asarray(sizes.high)
        self.bounds = float32_bounds(self.low, self.high)
        self.act_shape = (sizes.act_dim,) if sizes.act_shape is None else sizes.act_shape
        self.reset(seed)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        seed: int = 0,
        train_seed: int | None = None,
        device: str = "cpu",
        backend: Backend = "auto",
        kind: type[Agent] | None = None,
    ) -> Policy:
        """Load the policy of a run; its environment need not be installed.

        Args:
            path: A run folder, of which the newest whole checkpoint is taken, a checkpoint in
                one, or what ``python -m trqam_fast.export`` wrote.
            seed: Seed of the policy's noise.
            train_seed: Seed of the run, where a folder holds several; the first by default.
            device: Torch device to act on.
            backend: Implementation of the ops.
            kind: Class of an export's algorithm, where that is not of this package.

        Raises:
            UsageError: there is none, it is damaged, or it has no such seed; or there are no such
                device and backend.
        """
        check_count("seed", seed)
        check_here(device, backend)
        folder, checkpoint = expanded(Path(path)), None
        if folder.is_file():
            folder, checkpoint = folder.resolve().parent.parent, folder
            if not RunFolder(folder).exists:
                raise UsageError(
                    f"{checkpoint} is no checkpoint in a run folder; name a run folder, a "
                    "checkpoint in one or an export's folder; torch.export.load takes a .pt2 file"
                )
        loaded = load_run(folder, checkpoint, device, backend, kind)
        seeds = loaded.config.seeds
        train_seed = seeds[0] if train_seed is None else train_seed
        if train_seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise UsageError(f"train_seed is {train_seed}, but {folder} has the seeds {known}")
        failure = loaded.failures.get(seeds.index(train_seed))
        if failure is not None:
            warnings.warn(f"seed {train_seed} of {folder} diverged: {failure}", stacklevel=2)
        return cls(loaded.agent, loaded.sizes, run=seeds.index(train_seed), seed=seed)

    def reset(self, seed: int | None = None) -> None:
        """Begin new episodes: forget what is left of chunks.

        Args:
            seed: Start the noise anew from this seed; None goes on with it.

        Raises:
            UsageError: it is no whole number of 0 or more.
        """
        if seed is not None:
            check_count("seed", seed)
            self.seed = seed
            self.generators: list[np.random.Generator] = []
        self.queues: list[deque[np.ndarray]] = []

    def __call__(self, observation: Any, *, deterministic: bool = False) -> np.ndarray:
        """Return the next action.

        Args:
            observation: `[O]`, or `[n, O]` of n environments; a dict of vectors, nested or not, is
                joined in the order of the environment's space, as gymnasium flattens it, and where
                a run did not keep that, of an earlier version, by name. Observations of other
                spaces (pictures, `Discrete`, `Tuple`) go through `gymnasium.spaces.flatten` first.
            deterministic: Take zeros for noise where a new chunk is chosen.

        Returns:
            `[A]` or `[n, A]`, float32, in the environment's own units and bounds; in place of
            `[A]` the shape of its action space, if that is another one.

        Raises:
            ValueError: an observation of another width or of other parts, numbers that are not
                finite, or another number of environments than before; `reset` begins anew.
        """
        rows = as_rows(observation, self.sizes.parts)
        shape = rows.shape
        rows = np.atleast_2d(rows)
        if rows.ndim != 2 or rows.shape[1] != self.sizes.obs_dim or not len(rows):
            raise ValueError(
                f"observation has shape {list(shape)}, expected [{self.sizes.obs_dim}] or "
                f"[n, {self.sizes.obs_dim}] of one row or more; {FLATTEN} makes one"
            )
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0].tolist()
            raise ValueError(
                f"observation has {rows[row, column]} at number {column} of row {row}, expected "
                "finite numbers"
            )
        if self.queues and len(self.queues) != len(rows):
            raise ValueError(
                f"observation has {len(rows)} rows, but {len(self.queues)} before; call reset() "
                "where other environments begin"
            )
        self.queues = self.queues or [deque() for _ in rows]
        self.fill(rows, deterministic)
        actions = np.stack([queue.popleft() for queue in self.queues])
        actions = unscaled(actions, self.low, self.high).astype(np.float32)
        # Rounding may have left bounds that float32 does not have.
        actions = actions.clip(*self.bounds).reshape(-1, *self.act_shape)
        return actions[0, ...] if len(shape) == 1 else actions

    def fill(self, rows: np.ndarray, deterministic: bool) -> None:
        """Choose a chunk for every row of observations `[n, O]` that has no action left."""
        for row in range(len(self.generators), len(rows)):
            self.generators.append(np.random.default_rng([self.seed, row]))
        shape = (self.agent.candidates, self.agent.noise_dim)
        empty = [row for row, queue in enumerate(self.queues) if not queue]
        requests = [
            Request(
                rows[row],
                np.zeros(shape) if deterministic else self.generators[row].standard_normal(shape),
            )
            for row in empty
        ]
        for row, chunk in zip(empty, choose_chunks(self.agent, self.run, requests), strict=True):
            self.queues[row].extend(np.clip(chunk, -1.0, 1.0))

    def predict(
        self,
        observation: Any,
        state: None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """Return the next action and None, as Stable-Baselines3's models do.

        Args:
            observation: As of a call.
            state: Unused; here for the interface.
            episode_start: Whether an episode begins, `[n]`; what is left of its chunk is dropped.
            deterministic: As of a call.

        Raises:
            ValueError: `episode_start` is of another number of environments than before.
        """
        if episode_start is not None:
            starts = np.ravel(episode_start)
            if self.queues and len(starts) != len(self.queues):
                raise ValueError(
                    f"episode_start has {len(starts)} flags for {len(self.queues)} environments; "
                    "pass one for each"
                )
            for queue, begins in zip(self.queues, starts, strict=False):
                if begins:
                    queue.clear()
        return self(observation, deterministic=deterministic), None

    def export(self, path: Path | str, *, format: str | None = None) -> Path:
        """Write the policy as a function of tensors that acts without this package.

        Its arguments are ``observations`` `[B, O]` and ``noise`` `[B, N W]`, standard normal, both
        float32 and of any number of rows; it returns the chunks of actions ``actions``
        `[B, H, A]`, float32, in the environment's own units and bounds. N is `agent.candidates`,
        the actions that the policy chooses among, and W is `agent.noise_dim`, the noise of one: D
        numbers that the flow starts from, for QAM-E another D of the edit. Zeros act as
        `deterministic` does. It computes as the policy does, in float32: equal to rounding, as
        long as no two candidates are as good.

        Args:
            path: The file; what was there is replaced.
            format: ``pt2`` for `torch.export.load`, on the CPU, or ``onnx``; None for what the
                file's name ends in.

        Raises:
            UsageError: there is no such format or no folder for the file, or packages for ONNX
                are missing.
            OSError: the disk refuses.
        """
        return write_program(self.agent, self.sizes, self.run, expanded(Path(path)), format)


def as_rows(observation: Any, parts: Parts | None) -> np.ndarray:
    """Return an observation as `[O]` or `[n, O]`, float32, the parts of a dict side by side.

    Args:
        observation: An array, or a dict of arrays.
        parts: Those that the dict must have, in order; None takes all by name.

    Raises:
        ValueError: it has other parts, or they do not go side by side.
    """
    if not isinstance(observation, dict):
        return as_array(observation)
    found = parts_of(observation)
    order = sorted(found) if parts is None else parts
    if set(found) != set(order):
        expected = "an array" if order == ((),) else f"the parts {names_of(order)}"
        raise ValueError(
            f"observation is a dict of {names_of(sorted(found)) or 'nothing'}, expected {expected}"
        )
    rows = {array.shape[:-1] if array.ndim else None for array in found.values()}
    if len(rows) != 1 or None in rows:
        shapes = ", ".join(f"{names_of([path])} {list(a.shape)}" for path, a in found.items())
        raise ValueError(
            f"observation has parts of the shapes {shapes or 'none'}, expected [numbers] each, or "
            f"[n, numbers] each; {FLATTEN} joins others"
        )
    return np.concatenate([found[path] for path in order], axis=-1)


def parts_of(observation: Any) -> dict[tuple[str, ...], np.ndarray]:
    """Return the arrays of an observation, float32, by their paths in a dict."""
    if not isinstance(observation, dict):
        return {(): as_array(observation)}
    return {
        (name, *path): array
        for name, part in observation.items()
        for path, array in parts_of(part).items()
    }


def as_array(observation: Any) -> np.ndarray:
    """Return an observation or a part of one as an array, float32.

    Raises:
        ValueError: it is none.
    """
    try:
        return np.asarray(observation, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"observation has a {type(observation).__name__} that is no array of numbers "
            f"({reason_of(error)}); pass {FLATTEN}"
        ) from error


def check_count(name: str, value: int, end: int | None = None) -> None:
    """Raise `UsageError` unless an argument is a whole number of 0 or more, and below `end`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 0 or (end is not None and value >= end):
        bounds = "0 or more" if end is None else f"0 to {end - 1}"
        raise UsageError(f"{name} is {value!r}; use a whole number, {bounds}")
