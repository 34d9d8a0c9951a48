"""Optional copies of a run's logs for TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import functools
import importlib
import netrc
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol
from urllib.parse import urlparse

from tqdm import tqdm

from trqam_fast.damage import reason_of
from trqam_fast.errors import UsageError
from trqam_fast.files import read_text, write_text
from trqam_fast.runs.folder import KEYS
from trqam_fast.streams import say

PROJECT = "trqam_fast"
MEAN = "mean"
"""Last part of the tag of what is over all seeds."""
INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 60

Kind = Literal["metrics", "eval"]
"""The log that a row is of."""


class Tracker(Protocol):
    """What is asked of a tracker; whatever it raises is caught by `Trackers`."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values by tag."""

    def close(self) -> None:
        """Write everything out."""


class TensorBoardTracker:
    """Event files in `folder`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        new = not folder.exists()
        self.writer = SummaryWriter(str(folder))
        if new:
            rows = [f"| {name} | {value} |" for name, value in config.items()]
            self.writer.add_text("config", "\n".join(["| flag | value |", "|---|---|", *rows]), 0)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values; they are on the disk when this returns."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self.writer.close()


class WandbTracker:
    """A run of Weights & Biases for each seed, continued under its id.

    The runs of one process are a group, so that curves over seeds can be drawn from it. Their keys
    have no seed; the mean over the seeds of the process is in each of them, under ``mean/``. They
    are offline unless somebody is logged in.
    """

    def __init__(self, folder: Path, config: dict[str, Any], run_id: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S)
        if hasattr(settings, "finish_timeout"):  # of newer releases: older ones may wait longer
            settings.finish_timeout = FINISH_TIMEOUT_S
        mode = "online" if logged_in(settings.base_url) else "offline"
        mode = os.environ.get("WANDB_MODE", mode)
        algo, task = config.get("algo", "run"), config.get("env_name", "task")
        name = config.get("wandb_name") or f"{algo} {task}"
        self.runs: dict[str, Any] = {}
        for number, seed in enumerate(config["seeds"]):
            self.runs[f"seed{seed}"] = wandb.init(
                project=config.get("wandb_project") or os.environ.get("WANDB_PROJECT", PROJECT),
                group=config.get("wandb_group") or os.environ.get("WANDB_RUN_GROUP", run_id),
                name=f"{name} seed {seed}", tags=[algo, task, *config.get("wandb_tags", ())],
                id=f"{run_id}-{seed}" if number else run_id, resume="allow", mode=mode,
                dir=str(folder), config=dict(config) | {"seed": seed}, settings=settings,
                reinit="create_new",
            )  # fmt: skip
        for run in self.runs.values():
            # The step is a value like any other, so that evaluations and metrics may share one.
            run.define_metric("*", step_metric="step")
        self.offline = folder / "wandb" if mode == "offline" else None

    def log(self, values: dict[str, float], step: int) -> None:
        """Record values."""
        for which, run in self.runs.items():
            tags = (tag.rpartition("/") for tag in values)
            found = {
                (name if last == which else f"mean/{name}"): values[f"{name}/{last}"]
                for name, _, last in tags
                if last in (which, MEAN)
            }
            if found:
                run.log({**found, "step": step})

    def close(self) -> None:
        """Finish the runs; say how to send those that are offline."""
        for run in self.runs.values():
            run.finish()
        if self.offline is not None:
            say(
                f"wandb was offline; send the runs with: wandb sync {self.offline}/offline-*",
                write=tqdm.write,
            )


def logged_in(server: str) -> bool:
    """Whether there is a key for `server`, in the environment or in ~/.netrc; nobody is asked."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    # Logins of earlier years are under the service's former name.
    hosts = [urlparse(server).netloc, "api.wandb.ai"]
    return any(keys.authenticators(host) is not None for host in hosts)


class Trackers:
    """The trackers of one run.

    They copy what the CSV logs hold, under tags like ``pretrain/bc_loss/seed0``; an evaluation's
    are ``offline/eval_success/seed0``. Of several seeds there is also ``.../mean``, over those
    that have a row of the step. A tracker that fails is reported once and left out from
    then on: it never stops or changes a run. Rows that a tracker has from before the run was
    resumed are not logged to it again, which a journal next to them tells: TensorBoard's purge_step
    would drop the metrics of a step whose evaluation alone is repeated, and an offline run that
    wandb resumes holds repeated rows twice.

    Args:
        folder: The run folder; everything goes to its subfolder ``trackers``.
        config: Flags and their values.
        tensorboard: Write event files.
        wandb: Log to Weights & Biases.

    Raises:
        UsageError: a package is not installed.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        *,
        tensorboard: bool,
        wandb: bool,
    ) -> None:
        self.folder = folder / "trackers"
        self.trackers: dict[str, Tracker] = {}
        self.logged: set[str] = set()
        self.rows: dict[Kind, tuple[str, int, dict[str, list[float]]]] = {}
        journal = self.folder / "logged.csv"
        self.journal: Path | None = journal
        check_packages(tensorboard, wandb)
        if tensorboard:
            path = self.folder / "tensorboard"
            self._start("tensorboard", lambda: TensorBoardTracker(path, config))
        if wandb:
            self._start("wandb", lambda: self._start_wandb(config))
        read = functools.partial(self._read_journal, journal)
        if self.trackers and not self._guard("the journal of trackers", read):
            self.journal = None

    def _start_wandb(self, config: dict[str, Any]) -> WandbTracker:
        kept = self.folder / "wandb_id"
        run_id = read_text(kept).strip() if kept.exists() else ""
        if re.fullmatch("[0-9a-f]{12}", run_id) is None:  # none yet, or none that is whole
            run_id = uuid.uuid4().hex[:12]
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(kept, run_id + "\n")
        return WandbTracker(self.folder, config, run_id)

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        tracker = self._guard(f"--{name}", make)
        if tracker is not None:
            self.trackers[name] = tracker

    def _guard(self, name: str, action: Callable[[], Any]) -> Any:
        """Do something that must not stop the run; report a failure and return None."""
        try:
            return action()
        except Exception as error:  # whatever a tracker raises, training goes on
            said = f"warning: {name} failed ({reason_of(error)}); the run goes on without it"
            say(said, "stderr", tqdm.write)
            self.trackers.pop(name.removeprefix("--"), None)
            return None

    def _read_journal(self, journal: Path) -> bool:
        if journal.exists():
            self.logged = set(read_text(journal).splitlines())
        return True

    def log(self, kind: Kind, row: dict[str, Any]) -> None:
        """Copy one row of the CSV log `kind`; cells that are empty or no numbers are left out."""
        if not self.trackers:
            return
        prefix = "eval_" if kind == "eval" else ""
        values = {
            f"{row['stage']}/{prefix}{name}": number
            for name, cell in row.items()
            if name not in KEYS and (number := as_number(cell)) is not None
        }
        step = int(row["step"])
        if kind in self.rows and self.rows[kind][:2] != (row["stage"], step):
            self._log_mean(kind)
        together = self.rows.setdefault(kind, (row["stage"], step, {}))[2]
        for name, number in values.items():
            together.setdefault(name, []).append(number)
        seed = f"seed{row['seed']}"
        identity = ",".join([kind, *(str(row[key]) for key in KEYS)])
        self._log({f"{name}/{seed}": number for name, number in values.items()}, step, identity)

    def _log_mean(self, kind: Kind) -> None:
        """Log the means over the seeds of the rows that came together, if there are several."""
        stage, step, values = self.rows.pop(kind)
        means = {f"{name}/{MEAN}": fmean(found) for name, found in values.items() if found[1:]}
        if means:
            self._log(means, step, f"{kind},{stage},{step},{MEAN}")

    def _log(self, values: dict[str, float], step: int, identity: str) -> None:
        for name, tracker in list(self.trackers.items()):
            line = f"{name},{identity}"
            if line in self.logged:
                continue
            self._guard(f"--{name}", functools.partial(tracker.log, values, step))
            if name in self.trackers:
                self._remember(line)

    def _remember(self, line: str) -> None:
        """Note in the journal that a tracker has a row."""
        self.logged.add(line)
        if self.journal is None:
            return
        # Without a journal, rows are logged twice after a resume, which is all that is lost.
        with contextlib.suppress(OSError), open(self.journal, "a") as file:
            file.write(line + "\n")

    def close(self) -> None:
        """Write everything out."""
        for kind in list(self.rows):
            self._log_mean(kind)
        for name, tracker in list(self.trackers.items()):
            self._guard(f"--{name}", tracker.close)
        self.trackers.clear()


def check_packages(tensorboard: bool, wandb: bool) -> None:
    """Raise `UsageError` unless what is asked for can be imported."""
    asked = {"tensorboard": tensorboard, "wandb": wandb}
    modules = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
    for extra in (name for name, wanted in asked.items() if wanted):
        try:
            importlib.import_module(modules[extra])
        except ImportError:
            raise UsageError(
                f"--{extra} needs a package that is not installed; pip install "
                f"'trqam_fast[{extra}]' or leave the flag out"
            ) from None


def as_number(cell: Any) -> float | None:
    """The number in a cell, or None."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
