"""What became of a sweep's jobs, in files that any machine can read."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from trqam_fast.damage import reading
from trqam_fast.errors import UsageError
from trqam_fast.files import read_text, write_json
from trqam_fast.kinds import is_a, kind_in_words
from trqam_fast.sweep.plan import Job

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0

State = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class JobState:
    """A job's state, as the process that runs it last wrote it.

    Attributes:
        state: running, done, failed, or stopped by a signal, to be continued.
        reason: One sentence where it failed or stopped, else empty.
        host: Machine that ran it.
        pid: Process that ran it.
        attempt: How often it was started.
        started, ended: Unix seconds of the last attempt; `ended` is None while it runs.
        beat: Unix seconds of the last sign of life.
    """

    state: State
    reason: str
    host: str
    pid: int
    attempt: int
    started: float
    ended: float | None
    beat: float = 0.0

    @property
    def stale(self) -> bool:
        """Whether it should be running, but has given no sign of life for too long."""
        return self.state == "running" and time.time() - self.beat > STALE_SECONDS


def state_path(out: Path, job: Job) -> Path:
    """Return the file of a job's state."""
    return out / "jobs" / f"{job.name}.json"


def read_state(out: Path, job: Job) -> JobState | None:
    """Return a job's state, None if it has not been started.

    Raises:
        UsageError: the file is damaged.
        Unreadable: the system refuses.
    """
    path = state_path(out, job)
    with reading(path, "is damaged", "delete it"):
        try:
            values = json.loads(read_text(path))
            state = JobState(**values, beat=path.stat().st_mtime)
        except FileNotFoundError:
            return None
        for name, kind in get_type_hints(JobState).items():
            if not is_a(values.get(name, 0.0), kind):
                raise ValueError(f"its {name} is no {kind_in_words(kind)}")
        return state


class StateFile:
    """Writes the state of one attempt at a job; what is no attempt keeps their number."""

    def __init__(self, out: Path, job: Job, *, attempt: bool = True) -> None:
        self.path = state_path(out, job)
        try:
            before = read_state(out, job)
        except UsageError:  # damaged, and about to be written anew
            before = None
        attempts = (0 if before is None else before.attempt) + attempt
        self.values: dict[str, Any] = {
            "state": "running", "reason": "", "host": socket.gethostname(), "pid": os.getpid(),
            "attempt": attempts, "started": time.time(), "ended": None,
        }  # fmt: skip

    def end(self, state: State, reason: str = "") -> JobState:
        """Write that the job has ended, and return that."""
        self.write(state=state, reason=reason, ended=time.time())
        return JobState(**self.values, beat=time.time())

    def not_begun(self, reason: str) -> JobState:
        """Return that the job was stopped before it began; nothing is written of a queued job."""
        now = time.time()
        values = self.values | {"state": "stopped", "reason": reason, "ended": now}
        return JobState(**values, beat=now)

    def write(self, **changes: Any) -> None:
        """Write the state with some values changed."""
        self.values |= changes
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.values)

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Give a sign of life every `HEARTBEAT_SECONDS` inside."""

        def beat() -> bool:
            with contextlib.suppress(OSError):  # a file system that is away for a while
                os.utime(self.path)
            return True

        with repeating(HEARTBEAT_SECONDS, beat):
            yield


@contextlib.contextmanager
def repeating(seconds: float, call: Callable[[], bool]) -> Iterator[None]:
    """Inside, call something every so many seconds in a thread, as long as it returns True."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(seconds) and call():
            pass

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
