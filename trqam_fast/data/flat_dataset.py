"""Transitions in a flat set on disk: the sampler's other storage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trqam_fast.data.batch import Batch
from trqam_fast.data.dataset import FIELDS, ROWS_AT_A_TIME, Dataset, Transitions, outcomes
from trqam_fast.data.flat import FlatSet
from trqam_fast.errors import RunError
from trqam_fast.kernels import Backend
from trqam_fast.kernels.dispatch import EXTENSION

RESIDENT = 640 * 2**20
"""Bytes of a flat set's records that may stay in memory."""

READ_WINDOWS = getattr(EXTENSION, "read_windows", None)
"""The extension's way to read pieces; None without one, or with one of an older version."""


class FlatDataset(Transitions):
    """N transitions in a flat set on disk; the same batches as from memory, bit for bit.

    A sequence is one piece of H + 1 neighbouring records. The first `RESIDENT` bytes of them are
    mapped into memory; from the rest a piece is read by a call, which copies it from the system's
    page cache. A mapping of everything would grow to the size of the file: pages that a sample
    touches count as this process's memory, and releasing them costs more than the calls. In memory
    are also 8 bytes a transition for each horizon and discount, and the last observations of the
    trajectories.

    Args:
        flat: The set.
        task: Number of the single task.
        sparse: Replace the reward by 0 where the task is solved and -1 elsewhere.
        device: Where batches are; they are gathered on the host.

    Raises:
        Damaged: the terminals contradict the manifest.
    """

    capturable = False

    def __init__(
        self,
        flat: FlatSet,
        task: int,
        *,
        sparse: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.flat, self.task, self.sparse = flat, task, sparse
        self.device = torch.device(device)
        self.obs_dim, self.act_dim = flat.obs_dim, flat.act_dim
        self.width = flat.obs_dim + flat.act_dim
        self.finals = flat.read("finals", 0, flat.trajectories)
        ends = [
            start + np.flatnonzero(flat.read("terminals", start, start + ROWS_AT_A_TIME))
            for start in range(0, flat.transitions, ROWS_AT_A_TIME)
        ]
        self.ends = np.concatenate(ends)
        flat.check_ends(self.ends)
        self._tables: dict[tuple[int, float], np.ndarray] = {}
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self._file = open(flat.file("records"), "rb")
        rows = min(RESIDENT // (4 * self.width), flat.transitions + 1)
        # Copy on write, as torch asks for memory that may be written to; nothing writes.
        self._mapped = torch.from_numpy(
            np.memmap(self._file, np.float32, "c", flat.offset("records"), shape=(rows, self.width))
        )

    def __len__(self) -> int:
        return self.flat.transitions

    def trajectory_ends(self) -> Tensor:
        """Return the transitions that end a trajectory, in order, int64."""
        return torch.from_numpy(self.ends)

    def table(self, horizon: int, discount: float) -> np.ndarray:
        """Return R and mask + 2 ended + 4 steps of every start, float32 `[N - H + 1, 2]`."""
        key = (horizon, discount)
        if key not in self._tables:
            table = np.empty((self.start_count(horizon), 2), np.float32)
            for start in range(0, len(table), ROWS_AT_A_TIME):
                stop = min(start + ROWS_AT_A_TIME, len(table))
                columns = self.flat.read_task(self.task, start, stop + horizon - 1, self.sparse)
                rewards, masks, terminals = map(torch.from_numpy, columns)
                found = outcomes(rewards, masks, terminals, horizon, discount)
                table[start:stop, 0] = found.rewards
                table[start:stop, 1] = found.masks + 2 * found.ended + 4 * found.steps
            self._tables[key] = table
        return self._tables[key]

    def read_windows(self, starts: np.ndarray, rows: int) -> np.ndarray:
        """Return `rows` records from each of `starts` `[n]`: `[n, rows, O + A]`, valid till reuse.

        Raises:
            RunError: the file has become shorter or cannot be read.
        """
        count, size = len(starts), rows * self.width
        if (count, rows) not in self._buffers:
            self._buffers[count, rows] = torch.empty(count, size)
        buffer = self._buffers[count, rows]
        try:
            whole = self._read(np.ascontiguousarray(starts), rows, buffer)
        except OSError as error:
            raise RunError(f"cannot read {self.flat.file('records')}: {error.strerror}") from None
        if not whole:
            raise RunError(f"{self.flat.file('records')} has become shorter; convert it again")
        return buffer.numpy().reshape(count, rows, self.width)

    def _read(self, starts: np.ndarray, rows: int, buffer: Tensor) -> bool:
        """Fill the buffer `[n, rows * (O + A)]`; return whether the file was long enough."""
        descriptor, first = self._file.fileno(), self.flat.offset("records")
        inside = len(self._mapped) - rows + 1  # starts whose windows are mapped
        stride, size = 4 * self.width, 4 * buffer.shape[1]
        if READ_WINDOWS is not None:
            return READ_WINDOWS(
                descriptor, first, self._mapped.data_ptr(), inside, starts.ctypes.data,
                len(starts), stride, size, buffer.data_ptr(),
            )  # fmt: skip
        lines, mapped = buffer.numpy(), self._mapped.numpy()
        for line, start in zip(lines, starts.tolist(), strict=True):
            if start < inside:
                line[:] = mapped[start : start + rows].ravel()
                continue
            missing, at = memoryview(line.view(np.uint8)), first + start * stride
            while missing:
                done = os.preadv(descriptor, [missing], at)
                if not done:
                    return False
                missing, at = missing[done:], at + done
        return True

    def gather(
        self, starts: Tensor, horizon: int, discount: float, backend: Backend = "auto"
    ) -> Batch:
        """Read sequences from the file; see `Transitions.gather`."""
        # numpy, as its calls cost less than torch's and there are many small ones.
        index = starts.cpu().numpy().ravel()
        rewards, code = self.table(horizon, discount)[index].T
        code = code.astype(np.int64)
        steps = code >> 2
        windows = self.read_windows(index, horizon + 1)
        following = windows[np.arange(len(index)), steps, : self.obs_dim]
        ended = np.flatnonzero(code & 2)
        last = index[ended] + steps[ended] - 1
        following[ended] = self.finals[np.searchsorted(self.ends, last)]
        arrays = (
            windows[:, 0, : self.obs_dim].copy(),
            windows[:, :horizon, self.obs_dim :].copy(),
            rewards.copy(),
            (code & 1).astype(np.float32),
            (steps == horizon).astype(np.float32),
            following,
        )
        batch = Batch(*(torch.from_numpy(a).view(*starts.shape, *a.shape[1:]) for a in arrays))
        if self.device.type != "cuda":
            return batch
        return Batch(*(t.pin_memory().to(self.device, non_blocking=True) for t in batch))

    def tail(self, count: int) -> dict[str, np.ndarray]:
        """Return the last `count` transitions; see `Transitions.tail`."""
        start, stop = max(len(self) - count, 0), len(self)
        records = self.flat.read("records", start, stop + 1)[:, : self.obs_dim]
        following = records[1:].copy()
        inside = self.ends[self.ends >= start]
        following[inside - start] = self.finals[len(self.ends) - len(inside) :]
        rewards, masks, terminals = self.flat.read_task(self.task, start, stop, self.sparse)
        actions = self.flat.read("records", start, stop)[:, self.obs_dim :]
        arrays = (records[:-1].copy(), actions.copy(), rewards, masks, terminals, following)
        return dict(zip(FIELDS, arrays, strict=True))


def open_flat(
    path: Path, env_id: str, *, sparse: bool = False, device: torch.device | str = "cpu"
) -> Dataset | FlatDataset:
    """Open a flat set for a single task: on a GPU with room a copy there, else from the disk."""
    flat = FlatSet.open(path)
    flat.check_layout()
    task = flat.task_number(env_id)
    if has_room(flat, torch.device(device)):
        return Dataset.from_flat(flat, task, sparse=sparse, device=device)
    return FlatDataset(flat, task, sparse=sparse, device=device)


RESERVE = 4 * 2**30
"""Bytes of a GPU that are left to training."""


def has_room(flat: FlatSet, device: torch.device) -> bool:
    """Return whether a GPU can hold a flat set and what is computed from it."""
    if device.type != "cuda":
        return False
    # Three columns, the lookup of 20 bytes, and the room to put its parts together.
    needed = flat.transitions * (4 * (flat.obs_dim + flat.act_dim + 3) + 2 * 20)
    return needed + RESERVE < torch.cuda.mem_get_info(device)[0]
