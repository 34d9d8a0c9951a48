"""Trajectories in shards, which survive a killed process, and their assembly to npz files."""

from __future__ import annotations

import contextlib
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trqam_fast.damage import Damaged, reading
from trqam_fast.data.generate.expert import Episode, Expert, Stream
from trqam_fast.errors import RunError
from trqam_fast.files import open_file, written_whole

SHARD_EPISODES = 4
NUMBERS = "biuf"
"""Kinds of NumPy's types that trajectories are made of."""
KEPT = "finished trajectories are kept, and the same command goes on from there"


@dataclass(frozen=True)
class Shard:
    """A few consecutive trajectories of one stream, in a file of their own.

    Attributes:
        path: Its file, which is there once all of its trajectories are.
        stream: ``train`` or ``val``.
        first: Index of its first trajectory.
        episodes: Number of its trajectories.
    """

    path: Path
    stream: Stream
    first: int
    episodes: int

    def make(self, expert: Expert) -> Iterator[None]:
        """Roll out the trajectories, yielding after each one, and write the file at the end.

        Raises:
            RunError: the expert failed; the message says at which trajectory.
        """
        made: list[Episode] = []
        for index in range(self.first, self.first + self.episodes):
            try:
                made.append(expert.episode(self.stream, index))
            except Exception as error:
                raise RunError(
                    f"trajectory {index} of {self.stream} cannot be generated "
                    f"({type(error).__name__}: {error}); {KEPT}"
                ) from error
            yield
        arrays: dict[str, Any] = {k: np.concatenate([part[k] for part in made]) for k in made[0]}
        with written_whole(self.path) as file:
            np.savez(file, **arrays)

    def is_made(self) -> bool:
        """Return whether its file is there and whole; a damaged one is told of on stderr.

        Raises:
            Unreadable: the system refuses; the file may be whole.
        """
        if not self.path.exists():
            return False
        try:
            with self.opened() as archive:
                rows = {name: len(self.read(name)) for name in archive.files}
                if len(set(rows.values())) != 1:
                    raise ValueError(f"its arrays have these rows: {rows}")
        except Damaged as error:
            print(f"warning: {error}", file=sys.stderr)
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of its arrays; errors as of `read`."""
        with self.opened() as archive:
            return archive.files

    def read(self, name: str) -> np.ndarray:
        """Return one of its arrays.

        Raises:
            Damaged: it has another content than was written.
            Unreadable: the system refuses.
        """
        with self.opened() as archive:
            array = archive[name]
            if array.dtype.kind not in NUMBERS or array.ndim == 0 or len(array) == 0:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
            return array

    @contextlib.contextmanager
    def opened(self) -> Iterator[np.lib.npyio.NpzFile]:
        """Open its file to read from; errors as of `read`."""
        with (
            reading(self.path, "is damaged", "the command makes it again"),
            open_file(self.path) as file,
            np.load(file) as archive,
        ):
            yield archive


def plan_shards(folder: Path, stream: Stream, episodes: int) -> list[Shard]:
    """Divide the trajectories of a stream into shards."""
    shards = []
    for first in range(0, episodes, SHARD_EPISODES):
        path = folder / f"{stream}-{first:06d}.npz"
        shards.append(Shard(path, stream, first, min(SHARD_EPISODES, episodes - first)))
    return shards


def assemble(shards: Sequence[Shard], path: Path) -> None:
    """Join shards to one compressed npz file, with one array of one shard in memory at a time.

    Raises:
        Damaged: a shard is, or does not fit the first one.
        Unreadable: the system refuses.
    """
    heads = {name: shards[0].read(name)[:0] for name in shards[0].names()}
    rows = sum(len(shard.read("terminals")) for shard in shards)
    with (
        written_whole(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name, head in heads.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = np.lib.format.header_data_from_array_1_0(head)
                header["shape"] = (rows, *head.shape[1:])
                np.lib.format.write_array_header_1_0(member, header)
                for shard in shards:
                    array = shard.read(name)
                    if (array.dtype, array.shape[1:]) != (head.dtype, head.shape[1:]):
                        raise Damaged(
                            f"{shard.path} does not fit {shards[0].path.name}: {name} is "
                            f"{array.dtype} {list(array.shape)}; delete {shard.path.parent}"
                        )
                    member.write(np.ascontiguousarray(array).data.cast("B"))
