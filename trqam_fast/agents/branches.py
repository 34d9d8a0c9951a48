"""Streams of an update: parts of it that need not wait for each other run side by side on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

MAIN = "main"
"""The branch that the update begins and ends on: the caller's stream."""


class Branches:
    """The branches of an update, each of which does what it is given in its order.

    A branch begins where the update does, and waits for others only where `on` says so; at the end
    the main one waits for all. What is left for `later` may go on beside the next update. On the
    streams of a GPU branches run side by side, and are paths of the graph of a captured update;
    without, all is done in the order of the code, which is one of the orders that the branches
    allow.

    Two rules keep results the same in every order, and a test holds every algorithm to them: what
    one branch writes and another reads or writes is ordered by an `after` or by the end; and a
    tensor that leaves the branch that made it lives until the end (`keep`), as its memory would
    otherwise be given to the next tensor of that branch too early.

    Args:
        device: The GPU whose streams they are; None does everything on the caller's stream.

    Attributes:
        joined: Whether updates follow each other, so that one may leave something for later.
        left: What the last update left on a branch: the event at its end.
        deferred: What it left that has not been begun yet.
        streams: Streams by branch, made when first needed; the main one's is that of the caller.
        begun: Branches of the update that is running, in order; empty between updates.
        start: The event that all of them wait for.
        kept: What lives until the end.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.streams: dict[str, torch.cuda.Stream] = {}
        self.begun: dict[str, None] = {}
        self.start: torch.cuda.Event | None = None
        self.kept: list[Any] = []
        self.joined = False
        self.left: dict[str, torch.cuda.Event] = {}
        self.deferred: dict[str, Callable[[], object]] = {}

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Let what is inside be an update, which begins on the current stream and ends there."""
        self.begun, self.start = {MAIN: None}, None
        if self.device is not None:
            self.streams[MAIN] = torch.cuda.current_stream(self.device)
            self.start = self.streams[MAIN].record_event()
        try:
            yield
        finally:
            begun, self.begun = self.begun, {}
            if self.device is not None:
                for name in begun:
                    if name != MAIN:
                        self.streams[MAIN].wait_stream(self.streams[name])
            self.finish()

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Let what is inside be updates alone, so that one may go on beside the next."""
        self.joined = self.device is not None
        try:
            yield
            self.begin_deferred()
        finally:
            self.joined = False
            self.deferred.clear()
            self.finish()

    def finish(self) -> None:
        """Let the current branch wait for what was left for later, and keep nothing any more."""
        self.catch_up()
        self.left.clear()
        self.kept.clear()

    @contextmanager
    def later(self, name: str) -> Iterator[None]:
        """Do what is inside on branch `name`, once all so far is done, beside the next update.

        Whatever reads or writes the same on another branch calls `catch_up` first. Where updates
        are not `joined` it is done where it stands.
        """
        if not self.joined:
            yield
            return
        stream = self.stream(name)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
            self.left[name] = stream.record_event()

    def defer(self, name: str, work: Callable[[], object]) -> None:
        """Do `work` on branch `name` beside the next update, from where that begins it.

        It may let launches of its own go first (`begin_deferred`); what needs the work begins it
        too (`catch_up`). Where updates are not `joined` it is done where it stands.
        """
        if self.joined:
            self.deferred[name] = work
        else:
            work()

    def begin_deferred(self) -> None:
        """Begin what was deferred, once the current branch has done what it was given so far."""
        while self.deferred:
            name, work = self.deferred.popitem()
            with self.later(name):
                work()

    def catch_up(self) -> None:
        """Let the current branch wait for what the last update left for later."""
        self.begin_deferred()
        for event in self.left.values():
            torch.cuda.current_stream(self.device).wait_event(event)

    def on(self, name: str, *, after: tuple[str, ...] = ()) -> AbstractContextManager[None]:
        """Do what is inside on branch `name`, once what `after` have been given so far is done.

        Outside an update it is done where it stands.

        Raises:
            ValueError: one of `after` is no branch of this update yet.
        """
        if not self.begun:
            return nullcontext()
        for other in after:
            if other not in self.begun:
                raise ValueError(
                    f"branch {name!r} is to wait for {other!r}, which this update has not begun; "
                    f"it has begun {', '.join(self.begun)}"
                )
        return self._on(name, after)

    def _on(self, name: str, after: tuple[str, ...]) -> AbstractContextManager[None]:
        if self.start is None:  # without a GPU
            self.begun[name] = None
            return nullcontext()
        stream = self.stream(name)
        if name not in self.begun:
            self.begun[name] = None
            stream.wait_event(self.start)
        for other in after:
            stream.wait_stream(self.streams[other])
        return torch.cuda.stream(stream)

    def stream(self, name: str) -> torch.cuda.Stream:
        """Return the stream of a branch."""
        if name not in self.streams:
            # Of the lowest priority: the main branch's chain of launches takes longest.
            self.streams[name] = torch.cuda.Stream(self.device, priority=0)
        return self.streams[name]

    def keep(self, *things: Any) -> None:
        """Keep alive until the end what is not on the branch that made it, nor returned."""
        if self.device is not None:
            self.kept += things
