"""What asks a run to stop: Ctrl-C, a scheduler's SIGTERM and SIGUSR1, the caller's function."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import numpy as np

from trqam_fast.cli import name_of, own_line
from trqam_fast.errors import INTERRUPTED, REQUEUE, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
OnEvaluation = Callable[[str, int, dict[int, float]], object]
"""Takes stage, step and success by seed; see `trqam_fast.train.train`."""


class StopRequest:
    """Whether the run was asked to stop; the trainer looks between updates.

    A second Ctrl-C raises `KeyboardInterrupt` wherever the program is.

    Args:
        on_evaluation: Called after each evaluation; what it returns may ask too.

    Attributes:
        signal: Name of the signal that asked, empty if none did.
        ended: Whether that function asked.
        status: Exit status that it asks for.
        way_on: How to go on afterwards, in words.
    """

    def __init__(self, on_evaluation: OnEvaluation | None = None) -> None:
        self.on_evaluation = on_evaluation
        self.signal = ""
        self.ended = False
        self.status = REQUEUE
        self.way_on = "the same command begins again"
        self._at_once = False

    def __bool__(self) -> bool:
        return self.ended or bool(self.signal)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside; outside the main thread Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # A run in the background of a script has its Ctrl-C ignored, and it stays so.
        numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in numbers}
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
                raise self.stopped()
            yield
        finally:
            self._at_once = False

    def evaluated(self, stage: str, step: int, success: dict[int, float]) -> None:
        """Tell the caller's function of an evaluation, which may ask to stop.

        Args:
            stage: The stage.
            step: The step.
            success: By seed; those that diverged, NaN, are left out.
        """
        live = {seed: rate for seed, rate in success.items() if math.isfinite(rate)}
        if self.on_evaluation is None or not live:
            return
        answer = self.on_evaluation(stage, step, live)
        self.ended = isinstance(answer, bool | np.bool_) and not answer

    def stopped(self, where: str = "") -> Stopped:
        """Return what to raise when everything is saved.

        Args:
            where: E.g. "after step 7".
        """
        by = self.signal or "on_evaluation"
        return Stopped(
            f"stopped by {' '.join(filter(None, (by, where)))}; {self.way_on}", self.status
        )

    def _handle(self, number: int, frame: FrameType | None) -> None:
        interrupt = number == signal.SIGINT
        if interrupt:
            soon = bool(self.signal) or self._at_once
            words = "stopping: the run is saved first; Ctrl-C again leaves at once\n"
            with contextlib.suppress(OSError, ValueError):  # where stderr is no file
                # print() may be under way already, and cannot be entered twice.
                os.write(sys.stderr.fileno(), f"{own_line()}{'' if soon else words}".encode())
        if interrupt and self.signal:
            raise KeyboardInterrupt
        self.signal = name_of(number)
        self.status = INTERRUPTED if interrupt else REQUEUE
        if self._at_once:
            self._at_once = False
            raise self.stopped()
