"""Streams of an update: parts of it that need not wait for each other run side by side on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

MAIN = "main"
"""The branch that the update begins and ends on: the caller's stream."""


class Branches:
    """The branches of an update, each of which does what it is given in its order.

    A branch begins where the update does, and waits for others only where `on` says so. At the end
    `join` makes the main one wait for all. On the streams of a GPU branches run side by side, and
    are paths of the graph of a captured update; without, all is done in the order of the code,
    which is one of the orders that the branches allow.

    Two rules keep results the same in every order, and a test holds every algorithm to them: what
    one branch writes and another reads or writes is ordered by an `after` or by the join; and a
    tensor that leaves the branch that made it lives until the join (`keep`), as its memory would
    otherwise be given to the next tensor of that branch too early.

    Args:
        device: The GPU whose streams they are; None does everything on the caller's stream.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.streams: dict[str, torch.cuda.Stream] = {}
        self.open: dict[str, torch.cuda.Stream] = {}
        self.kept: list[Any] = []

    def begin(self) -> None:
        """Begin an update on the current stream."""
        if self.device is not None:
            self.open = {MAIN: torch.cuda.current_stream(self.device)}
            self.start = self.open[MAIN].record_event()

    def on(self, name: str, *, after: tuple[str, ...] = ()) -> AbstractContextManager[None]:
        """Do what is inside on branch `name`, once what `after` have been given so far is done."""
        return self._on(name, after) if self.open else nullcontext()

    @contextmanager
    def _on(self, name: str, after: tuple[str, ...]) -> Iterator[None]:
        if name not in self.open:
            if name not in self.streams:
                # Of the lowest priority: the main stream's chain of launches is what takes longest.
                self.streams[name] = torch.cuda.Stream(self.device, priority=0)
            self.open[name] = self.streams[name]
            self.open[name].wait_event(self.start)
        stream = self.open[name]
        for other in after:
            stream.wait_stream(self.open[other])
        with torch.cuda.stream(stream):
            yield

    def keep(self, *things: Any) -> None:
        """Keep alive until the join what is not on the branch that made it, nor returned."""
        self.kept += things

    def join(self) -> None:
        """Make the main branch, and so what follows the update, wait for all others."""
        for name, stream in self.open.items():
            if name != MAIN:
                self.open[MAIN].wait_stream(stream)
        self.open = {}
        self.kept.clear()
