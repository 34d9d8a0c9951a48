"""Random numbers of several runs: counters, not states."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trqam_fast.kernels import Backend, Draws, philox


class Randomness:
    """Random numbers of S runs, one call for all of them.

    A number depends on its run's key, on how many draws came before (`draw_two` is two), on its
    kind and on its place in the call: not on the other runs, the device or the backend (normals: to
    a few units in the last place). The one counter lies on the device, so that a captured graph
    draws anew at every replay; it is all there is to save.

    Args:
        keys: One number below 2^63 for each run, int64 `[S]`.
        device: Where the numbers are needed.
        backend: ``auto``, ``reference``, ``cpp`` or ``triton``, as for `philox`.
    """

    def __init__(
        self,
        keys: Sequence[int],
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
    ) -> None:
        self.keys = torch.tensor(list(keys), dtype=torch.int64, device=device)
        self.calls = torch.zeros(1, dtype=torch.int64, device=device)
        self.ended = torch.zeros(1, dtype=torch.int32, device=device)
        self.backend = backend

    @property
    def runs(self) -> int:
        """S."""
        return len(self.keys)

    def draw(
        self,
        *,
        normals: int = 0,
        uniforms: int = 0,
        integers: int = 0,
        high: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw numbers of every run, independent of those of all other calls; see `philox`."""
        return philox(
            self.keys, self.calls, stream=0, normals=normals, uniforms=uniforms, integers=integers,
            high=high, dtype=dtype, ended=self.ended, backend=self.backend,
        )  # fmt: skip

    def draw_two(
        self,
        *,
        integers: int,
        high: int,
        normals: int = 0,
        uniforms: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """Draw what a call for the integers and one after it for the others would.

        By Triton it is one launch.
        """
        return philox(
            self.keys, self.calls, stream=0, normals=normals, uniforms=uniforms, integers=integers,
            high=high, dtype=dtype, ended=self.ended, calls=2, backend=self.backend,
        )  # fmt: skip

    def position(self) -> int:
        """Return how often `draw` was called."""
        return int(self.calls)

    def seek(self, position: int) -> None:
        """Go on as if `draw` had been called `position` times."""
        self.calls.fill_(position)
