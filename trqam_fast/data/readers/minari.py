"""Minari's datasets: ``minari:NAME``, of the local ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from trqam_fast.data.readers import Arrays, installed, refuse_keys
from trqam_fast.errors import UsageError


def read(place: str, keys: tuple[str, ...] = ()) -> tuple[Arrays, list[str]]:
    """Return the transitions of all episodes; see `readers.read`.

    Observations of a `Dict` space are joined in the order of its keys, as `Standard` joins them.
    """
    minari = installed("minari", "minari", f"minari:{place}")
    try:
        dataset = minari.load_dataset(place)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UsageError(
            f"minari:{place} cannot be loaded ({type(error).__name__}); see 'minari list local', "
            f"fetch it with 'minari download {place}'"
        ) from None
    space, parts = dataset.observation_space, []
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        if not steps:
            continue
        observations = rows_of(episode.observations, space, keys, place)
        actions = np.asarray(episode.actions)
        if actions.dtype.kind != "f":
            raise UsageError(
                f"minari:{place} has actions of dtype {actions.dtype}, expected floating-point "
                "numbers of a Box; choose a dataset with continuous actions"
            )
        parts.append(
            {
                "observations": observations[:-1],
                "next_observations": observations[1:],
                "actions": actions.reshape(steps, -1),
                "rewards": episode.rewards,
                "masks": ~np.asarray(episode.terminations, dtype=bool),
                "terminals": np.arange(steps) == steps - 1,
            }
        )
    if not parts:
        raise UsageError(f"minari:{place} has no transitions; record some")
    joined = keys or (space.keys() if isinstance(episode.observations, dict) else ())
    notes = [f"observations of minari:{place}: {', '.join(joined)}"] if joined else []
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, notes


def rows_of(values: Any, space: Any, keys: tuple[str, ...], place: str) -> np.ndarray:
    """Return the observations of an episode, `[T + 1, O]`."""
    if isinstance(values, dict):
        names = keys or tuple(space.spaces)
        missing = [name for name in names if name not in values]
        if missing:
            raise UsageError(
                f"minari:{place} has no observations {missing[0]!r}; it has {', '.join(values)}"
            )
        return np.concatenate([rows_of(values[n], space[n], (), place) for n in names], axis=-1)
    refuse_keys(keys, f"minari:{place}")
    array = np.asarray(values)
    return array.reshape(len(array), -1)
