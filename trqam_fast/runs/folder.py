"""A run's folder: configuration, versions, CSV logs, checkpoints, summary, curves."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trqam_fast.errors import RunError, UsageError
from trqam_fast.files import write_json, write_text
from trqam_fast.kernels.dispatch import load_extension

RUNS_DIR = Path("runs")
LOCK = "run.lock"
PACKAGES = ("torch", "triton", "numpy", "ogbench", "mujoco", "gymnasium")


class CsvLog:
    """A CSV file with fixed columns, written row by row.

    Rows that the disk does not take are kept and tried again with the next ones.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns
        self.waiting: list[dict[str, Any]] = []

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows; a column that a row lacks stays empty.

        Raises:
            OSError: the disk refuses; the file is as before, and the rows wait.
        """
        self.waiting += rows
        if not self.waiting:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if size == 0:
            writer.writeheader()
        writer.writerows(self.waiting)
        try:
            with open(self.path, "a", newline="") as file:
                file.write(text.getvalue())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)
            raise
        self.waiting = []

    def read(self) -> list[dict[str, str]]:
        """Return all rows; none if the file is not there yet."""
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return list(csv.DictReader(file))

    def truncate(self, step: int) -> None:
        """Drop a half-written row and the rows after `step`: a resumed run writes them again."""
        rows = [
            row
            for row in self.read()
            if tuple(row) == self.columns and None not in row.values()
            if row["step"].isdigit() and int(row["step"]) <= step
        ]
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


class RunFolder:
    """Paths and files of one run."""

    METRICS = (
        "stage", "step", "seed", "critic_loss", "bc_loss", "adjoint_loss", "path_kl", "lam",
        "kl_ema", "q_mean", "q_min", "q_max", "adjoint_mean", "adjoint_std", "adjoint_max",
        "grad_norm", "edit_q_loss", "edit_entropy", "edit_alpha",
    )  # fmt: skip
    EVAL = ("step", "success", "stage", "seed", "episodes", "return", "length")
    EPISODES = ("step", "seed", "episode", "success", "return", "length")
    TIMING = ("stage", "step", "updates_per_second", "seconds")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = CsvLog(path / "metrics.csv", self.METRICS)
        self.eval = CsvLog(path / "eval.csv", self.EVAL)
        self.episodes = CsvLog(path / "episodes.csv", self.EPISODES)
        self.timing = CsvLog(path / "timing.csv", self.TIMING)
        self.logs = (self.metrics, self.eval, self.episodes, self.timing)

    @staticmethod
    def default_path(env_name: str, algo: str) -> Path:
        """Return runs/<env>/<algo>/<time>, a folder that does not exist yet."""
        return RUNS_DIR / env_name / algo / time.strftime("%Y%m%d-%H%M%S")

    @staticmethod
    def newest(env_name: str, algo: str) -> Path | None:
        """Return the newest run of a task and algorithm, None if there is none."""
        runs = (RUNS_DIR / env_name / algo).glob("*/config.json")
        return max((path.parent for path in runs), default=None)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return (self.path / "config.json").exists()

    def check_free(self, overwrite: bool) -> None:
        """Raise `UsageError` unless a new run may be put here."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run-dir {self.path} is a file; name a folder")
        if self.exists and not overwrite:
            raise UsageError(
                f"--run-dir {self.path} already holds a run; continue it with --resume, replace "
                "it with --overwrite, or name another folder"
            )
        others = self.path.iterdir() if self.path.exists() and not self.exists else ()
        if any(path.suffix != ".partial" and path.name != LOCK for path in others):
            raise UsageError(
                f"--run-dir {self.path} holds other files; name an empty or new folder"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other processes from writing to it, as far as its disk can.

        Raises:
            UsageError: another process has it.
            RunError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "w")
        except OSError as error:
            raise RunError(f"cannot write to --run-dir {self.path}: {error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"--run-dir {self.path} is being written by another process; wait for its end "
                    "or name another folder"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder, empty it of an older run, write config.json and versions.json.

        Raises:
            RunError: it cannot be written.
        """
        try:
            for log in self.logs:
                log.path.unlink(missing_ok=True)
            for name in ("summary.json", "curves.png"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoints", "evaluation", "trackers"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", config)
            write_json(self.path / "versions.json", versions())
            self.checkpoints.mkdir()
        except OSError as error:
            raise RunError(f"cannot write to --run-dir {self.path}: {error}") from None

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step lies."""
        return self.checkpoints / f"step_{step:09d}.pt"

    def truncate(self, step: int, evaluated: int) -> None:
        """Drop the log rows after `step`, and evaluations after `evaluated`."""
        for log in self.logs:
            log.truncate(evaluated if log is self.eval else step)

    def read_config(self) -> dict[str, Any]:
        """Return config.json.

        Raises:
            UsageError: it is missing or damaged.
        """
        try:
            config = json.loads((self.path / "config.json").read_text())
            if not isinstance(config, dict):
                raise ValueError("config.json holds no flags")
            return config
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--run-dir {self.path} holds no run to resume: config.json is "
                f"{'missing' if isinstance(error, FileNotFoundError) else 'damaged'}; start one "
                "without --resume"
            ) from None


def versions() -> dict[str, str]:
    """Versions of everything that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("trqam_fast", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    module, _ = load_extension()
    found["extension"] = (
        "not built" if module is None else ("CPU and CUDA" if module.with_cuda else "CPU")
    )
    found["platform"] = platform.platform()
    found["cpu"] = cpu_model()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["threads"] = str(torch.get_num_threads())
    return found


def cpu_model() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        return platform.processor()
    return platform.processor()
