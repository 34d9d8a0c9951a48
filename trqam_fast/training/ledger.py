"""What a run has come to so far: times, updates, success, seeds that diverged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from trqam_fast.runs.checkpoint import TIMED
from trqam_fast.runs.folder import STAGES


@dataclass
class Ledger:
    """Account of a run, part of its checkpoints.

    Attributes:
        seconds: By stage, of loading the data, and of evaluations.
        updates: By stage.
        success: By stage, of every seed at the newest evaluation; NaN where it diverged.
        evaluated: Step of the newest evaluation, -1 before the first.
        failures: Reason by index of the seeds that diverged: by their metrics, or their actions.
        online_seconds: What the online stage's seconds were spent on; its driver keeps them.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TIMED, 0.0))
    updates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    success: dict[str, list[float]] = field(default_factory=dict)
    evaluated: int = -1
    failures: dict[int, str] = field(default_factory=dict)
    online_seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def values(self) -> dict[str, Any]:
        """Return the account for a checkpoint."""
        names = [item.name for item in fields(self) if item.name != "online_seconds"]
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the account of a checkpoint."""
        for item in fields(self):
            if item.name in state:
                setattr(self, item.name, state[item.name])
        if state["online"] is not None:
            self.online_seconds = state["online"].get("seconds", {})
