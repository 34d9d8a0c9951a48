"""Datasets of one's own: one file for each format, and what is checked of all of them.

A source is ``[FORMAT:]PLACE[#KEY,KEY]``. A reader takes the place and the keys and returns arrays
of one row for each transition: `observations` `[N, O]`, `actions` `[N, A]` in the environment's own
units, `rewards` `[N]`, `terminals` `[N]` (1 at the end of a trajectory), and if it has them `masks`
`[N]` (0 where the task ended there) and `next_observations` `[N, O]`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from trqam_fast.errors import UsageError
from trqam_fast.files import expanded
from trqam_fast.simulator.environment import Interface, interface_of

READERS = ("npz", "minari", "lerobot", "robomimic")
"""Formats; each is a module here with a function `read(place, keys)`."""

SOURCES = (
    "a file (.npz, .hdf5), a LeRobotDataset's folder, or FORMAT:PLACE with one of "
    f"{', '.join(READERS)}"
)
"""What a source may be, in words."""

SUFFIXES = {".npz": "npz", ".hdf5": "robomimic", ".h5": "robomimic"}
"""Formats that a file's name tells."""

Arrays = dict[str, np.ndarray]


class Source(NamedTuple):
    """Where a dataset of one's own is.

    Attributes:
        form: One of `READERS`.
        place: A path, or a name that the format has.
        keys: Parts of the observations, in order; empty takes those that the format implies.
    """

    form: str
    place: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        keys = f"#{','.join(self.keys)}" if self.keys else ""
        return f"{self.form}:{self.place}{keys}"

    @property
    def absolute(self) -> str:
        """The same source, whatever the working folder is."""
        if self.form == "minari":
            return str(self)
        return str(self._replace(place=os.path.abspath(expanded(Path(self.place)))))


def parse_source(text: str) -> Source:
    """Take the name of a source apart.

    Raises:
        UsageError: its format is unknown.
    """
    form, separator, rest = text.partition(":")
    if not separator or form not in READERS:
        form, rest = "", text
    place, _, keys = rest.partition("#")
    if not form:
        path = expanded(Path(place))
        form = (
            "lerobot" if (path / "meta" / "info.json").exists() else SUFFIXES.get(path.suffix, "")
        )
    if not form or not place:
        raise UsageError(f"--dataset is {text!r}; name {SOURCES}")
    return Source(form, place, tuple(key for key in keys.split(",") if key))


def read(source: Source) -> tuple[Arrays, list[str]]:
    """Read a dataset, check it and complete it.

    Returns:
        Arrays named like `FIELDS`, float32, actions in the environment's own units; and what is
        worth saying of them.

    Raises:
        UsageError: it is not there, damaged, or not whole: the sentence names the array, what is
            expected and what was found.
        Unreadable: the system refuses.
    """
    from trqam_fast.data.readers.whole import complete

    reader = importlib.import_module(f"{__name__}.{source.form}")
    arrays, notes = reader.read(source.place, source.keys)
    arrays, more = complete(arrays, str(source.place))
    return arrays, [*notes, *more]


def read_fitting(source: Source, interface: Interface, env_name: str) -> tuple[Arrays, list[str]]:
    """Read a dataset for an environment, its actions scaled to [-1, 1]; see `read`.

    Args:
        source: The dataset.
        interface: The environment's.
        env_name: Its name, for messages.
    """
    from trqam_fast.data.readers.whole import fit

    arrays, notes = read(source)
    arrays, more = fit(arrays, interface, env_name, source.place)
    return arrays, [*notes, *more]


def look_at(source: Source, env_id: str | None = None) -> tuple[list[str], list[str]]:
    """Return a sentence for what is wrong with a dataset, and what training says of it.

    Args:
        source: The dataset.
        env_id: Environment that it must fit; None looks at the data alone.

    Raises:
        Unreadable: the system refuses.
    """
    try:
        if env_id is None:
            return [], read(source)[1]
        return [], read_fitting(source, interface_of(env_id, trying=True), env_id)[1]
    except UsageError as error:
        return [str(error)], []


def refuse_keys(keys: tuple[str, ...], place: str) -> None:
    """Raise `UsageError` if parts are chosen of observations that have none."""
    if keys:
        raise UsageError(f"{place} has no parts to choose; drop #{','.join(keys)}")


def installed(module: str, extra: str, place: str) -> ModuleType:
    """Import what a format needs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(
            f"reading {place} needs {module.partition('.')[0]}, which is not installed; run "
            f"pip install 'trqam_fast[{extra}]'"
        ) from None
