"""Signals by which schedulers ask a run to stop: SIGTERM and SIGUSR1."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from trqam_fast.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether the run was asked to stop; the trainer looks between updates.

    Attributes:
        signal: Name of the signal that asked, empty if none did.
    """

    def __init__(self) -> None:
        self.signal = ""
        self._at_once = False

    def __bool__(self) -> bool:
        return bool(self.signal)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside; outside the main thread Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises `Stopped` where the program is, for work that can be repeated."""
        self._at_once = True
        try:
            if self.signal:
                raise Stopped(f"stopped by {self.signal}")
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise Stopped(f"stopped by {self.signal}")
