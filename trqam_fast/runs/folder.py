"""A run's folder: configuration, versions, CSV logs, checkpoints, summary, curves."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from trqam_fast.damage import Unreadable, reading
from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import PARTIAL, write_json
from trqam_fast.runs.csv_log import CsvLog
from trqam_fast.runs.values import load_json
from trqam_fast.runs.versions import versions

STAGES = ("pretrain", "offline", "online")
"""What a run does, in order."""

KEYS = ("stage", "step", "seed")
"""Columns that say what a row of metrics is of."""

MODEL = "model.safetensors"
"""Weights of an export, which has a config.json and is no run."""
RUNS_DIR = Path("runs")
LOCK = "run.lock"
ENDING = ("summary.json", "curves.png")
"""What the end of a run writes."""
LOST = "is damaged", "move it away to go on without its rows"
"""What is said of a damaged log of a run that is continued, and what helps."""
LOOKS, LOOK_SECONDS = 3, 0.02
"""Attempts to take a lock, and the time between them: a look at it lasts microseconds."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder.
        metrics: Columns of metrics.csv, in this order; others may follow.
    """

    EVAL = ("step", "success", "stage", "seed", "episodes", "return", "length")
    EPISODES = ("step", "seed", "episode", "success", "return", "length")
    TIMING = ("stage", "step", "updates_per_second", "seconds")

    def __init__(self, path: Path, metrics: Sequence[str] = ()) -> None:
        self.path = path
        self._made: list[Path] = []
        self.checkpoints = path / "checkpoints"
        self.metrics = CsvLog(path / "metrics.csv", (*KEYS, *metrics))
        self.first_updates = CsvLog(path / "first_updates.csv", self.metrics.columns)
        self.eval = CsvLog(path / "eval.csv", self.EVAL)
        self.episodes = CsvLog(path / "episodes.csv", self.EPISODES)
        self.timing = CsvLog(path / "timing.csv", self.TIMING)
        self.logs = (self.metrics, self.first_updates, self.eval, self.episodes, self.timing)

    @classmethod
    def new(cls, env_name: str, algo: str, metrics: Sequence[str] = ()) -> RunFolder:
        """Make runs/<env>/<algo>/<time>, which no other process makes, and return it.

        Raises:
            RunError: it cannot be made.
        """
        parent = RUNS_DIR / folder_name(env_name) / folder_name(algo)
        moment = time.strftime("%Y%m%d-%H%M%S")
        names = (moment if n == 1 else f"{moment}-{n:02}" for n in itertools.count(1))
        while True:
            folder = cls(parent / next(names), metrics)
            with contextlib.suppress(FileExistsError):
                folder._make(exist_ok=False)
                return folder

    @staticmethod
    def newest(env_name: str, algo: str) -> Path | None:
        """Return the run of a task and algorithm that began last by its name, None without any.

        Raises:
            Unreadable: the system refuses to look for them.
        """
        parent = RUNS_DIR / folder_name(env_name) / folder_name(algo)
        try:
            runs = [path for path in parent.iterdir() if RunFolder(path).exists]
        except FileNotFoundError:
            return None
        except OSError as error:  # glob would find none
            raise Unreadable(parent, error) from None
        return max(runs, default=None)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").exists()

    def check_free(self, overwrite: bool) -> None:
        """Raise `UsageError` unless a new run may be put here."""
        if self.exists and not overwrite:
            raise UsageError(
                f"--run-dir {self.path} already holds a run; continue it with --resume, replace "
                "it with --overwrite, or name another folder"
            )
        others = self.path.iterdir() if self.path.exists() and not self.exists else ()
        if any(path.suffix != PARTIAL and path.name != LOCK for path in others):
            raise UsageError(
                f"--run-dir {self.path} holds other files; name an empty or new folder"
            )

    def _make(self, exist_ok: bool = True) -> None:
        """Make the folder and note which folders that were.

        Raises:
            FileExistsError: it is there, unless it may be.
            UsageError: it is a file.
            RunError: it cannot be made.
        """
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=exist_ok)
        except OSError as error:
            if isinstance(error, FileExistsError) and not exist_ok:
                raise
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise UsageError(
                    f"--run-dir {self.path} is a file, or leads through one; name a folder"
                ) from None
            raise RunError(f"cannot write to --run-dir {self.path}: {error}") from None
        self._made = self._made or missing

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes from writing to it, as far as its disk can.

        If nothing is written to it, what was made is removed at the end.

        Raises:
            UsageError: another process has it.
            RunError: it cannot be written.
        """
        self._make()
        with self._lock():
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if self._made and [path.name for path in self.path.iterdir()] == [LOCK]:
                        (self.path / LOCK).unlink()
                        for path in self._made:
                            path.rmdir()

    def _lock(self) -> IO[str]:
        """Return the folder's lock file, locked."""
        while True:
            try:
                file = open(self.path / LOCK, "w")
            except FileNotFoundError:  # its holder has removed the folder since
                self._make()
                continue
            except OSError as error:
                raise RunError(f"cannot write to --run-dir {self.path}: {error}") from None
            if not lock(file, fcntl.LOCK_EX):
                file.close()
                raise UsageError(
                    f"--run-dir {self.path} is being written by another process; wait for its end "
                    "or name another folder"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path / LOCK)):
                    return file
            file.close()  # its holder has removed it since

    def _remove_report(self) -> None:
        """Remove the report on the older run, and its folder unless it holds other files."""
        report = self.path / "report"
        with contextlib.suppress(OSError):
            for path in (report / "index.html", *report.glob("*.svg")):
                path.unlink(missing_ok=True)
            report.rmdir()

    def create(
        self, config: dict[str, Any], declaration: dict[str, Any], overwrite: bool = False
    ) -> None:
        """Empty the folder of an older run, write what is known before the first step.

        Args:
            config: The run's configuration.
            declaration: What its algorithm declares.
            overwrite: Whether there may be an older run.

        Raises:
            UsageError: there is an older run, which may not be.
            RunError: it cannot be written.
        """
        self.check_free(overwrite)
        try:
            for log in self.logs:
                log.path.unlink(missing_ok=True)
            for name in (*ENDING, "update_plan.json"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoints", "evaluation", "trackers"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self._remove_report()
            write_json(self.path / "config.json", config)
            write_json(self.path / "algorithm.json", declaration)
            write_json(self.path / "versions.json", versions())
            self.checkpoints.mkdir()
        except OSError as error:
            raise RunError(f"cannot write to --run-dir {self.path}: {error}") from None

    def reopen(self) -> None:
        """Take back that the run has ended, before it goes on."""
        for name in ENDING:
            (self.path / name).unlink(missing_ok=True)

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.checkpoints / f"step_{step:09d}.pt"

    def truncate(self, step: int, evaluated: int, logged: int) -> None:
        """Drop the log rows after `step`, evaluations after `evaluated`, updates after `logged`."""
        last = {self.eval: evaluated, self.first_updates: logged}
        for log in self.logs:
            with reading(log.path, *LOST):
                log.truncate(last.get(log, step))

    def logged(self) -> int:
        """Return the last step that any log has a row of, 0 without rows."""
        last = 0
        for log in self.logs:
            with reading(log.path, *LOST):
                last = max([last, *(step for step, _ in log.steps())])
        return last

    def read_config(self) -> dict[str, Any]:
        """Return config.json.

        Raises:
            UsageError: it is missing or damaged.
            Unreadable: the system refuses.
        """
        path = self.path / "config.json"
        if not path.exists():
            raise UsageError(
                f"--run-dir {self.path} holds no run to resume: config.json is missing; start one "
                "without --resume"
            )
        with reading(path, "is damaged", "put its copy back, or start a new run elsewhere"):
            return load_json(path)


def is_export(path: Path) -> bool:
    """Whether a folder is an export, which has weights and no checkpoints."""
    return (path / MODEL).exists()


def check_out(path: Path) -> None:
    """Raise `UsageError` if --out, of what is no run, names a run's folder or its checkpoints."""
    place = path.resolve()
    checkpoints = [each for each in (place, *place.parents) if each.name == "checkpoints"]
    for folder in (place, *(each.parent for each in checkpoints)):
        if RunFolder(folder).exists:
            raise UsageError(
                f"--out {path} would write into {folder}, which holds the config.json of a run or "
                "an export; name another folder with --out"
            )


def lock(file: IO[str], kind: int) -> bool:
    """Take a lock, with patience for those who only look; return whether it could be had.

    A file system without locks gives it.
    """
    for attempt in range(LOOKS):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < LOOKS:
                time.sleep(LOOK_SECONDS)
        except OSError:
            return True
    return False


def is_held(path: Path) -> bool:
    """Whether a process writes to a run folder; its lock is looked at, not kept."""
    try:
        with open(path / LOCK) as file:
            return not lock(file, fcntl.LOCK_SH)
    except OSError:  # there is none, or it may not be read
        return False


def folder_name(name: str) -> str:
    """Return the name of an algorithm or a task in paths: ``MODULE.CLASS`` for one's own."""
    return name.replace(":", ".").replace("/", ".")
