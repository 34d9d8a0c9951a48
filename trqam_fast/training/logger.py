"""What a run tells while it runs: lines on the terminal, CSV logs, trackers."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
from tqdm import tqdm

from trqam_fast.agents import ALGORITHMS, algorithm
from trqam_fast.damage import reason_of
from trqam_fast.evaluation import EpisodeResult
from trqam_fast.runs.csv_log import CsvLog
from trqam_fast.runs.folder import RunFolder
from trqam_fast.streams import say
from trqam_fast.text import duration
from trqam_fast.training.config import TrainConfig
from trqam_fast.training.history import History
from trqam_fast.training.trackers import Kind, Trackers

FIRST_UPDATES, EVERY = 1000, 25
"""Of the first updates of offline fine-tuning, one in so many has a row of its own."""

SHOWN = ("critic_loss", "path_kl", "lam")
"""Metrics of fine-tuning that the terminal shows, as many of the last ones as fit."""
MOST_ADDED = 3
"""Of the metrics that an algorithm of one's own adds, so many follow them."""
COLUMNS = 80
"""Of the terminal that rows must fit."""


def shown_metrics(algo: str, stage: str) -> list[str]:
    """Return the metrics that the terminal shows of a stage, the most important ones last."""
    if stage == "pretrain":
        return ["bc_loss"]
    kind = algorithm(algo)
    bases = [base for base in ALGORITHMS.values() if issubclass(kind, base)]
    known = {*SHOWN, *(name for base in bases for name in base.metrics)}
    return [*SHOWN, *[name for name in kind.metrics if name not in known][:MOST_ADDED]]


class Logger:
    """Logs of one run. A disk that refuses a row is reported, and the row is tried again."""

    def __init__(self, config: TrainConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.trackers: Trackers | None = None
        self._place: str = ""
        self._shown: list[str] = []

    def start_trackers(self) -> None:
        """Start what --tensorboard and --wandb ask for, once the run folder is there."""
        config = self.config
        self.trackers = Trackers(
            self.folder.path,
            config.to_dict(),
            tensorboard=config.tensorboard,
            wandb=config.wandb,
        )

    def say(self, text: str, error: bool = False) -> None:
        """Print a line without tearing a progress bar, as long as there is who takes it."""
        say(text, "stderr" if error else "stdout", tqdm.write)

    def metrics(self, stage: str, step: int, history: History, failures: Container[int]) -> None:
        """Append the means over an interval to metrics.csv, a row for each live seed."""
        self._place, self._shown = f"{stage} {step}", []
        if len(history.values) == 0:
            return
        means = history.values.mean(0)
        history.clear()
        rows: list[dict[str, Any]] = []
        for run, seed in enumerate(self.config.seeds):
            if run in failures:
                continue
            values = dict(zip(history.names, means[run].tolist(), strict=True))
            rows.append(
                {"stage": stage, "step": step, "seed": seed}
                | {name: f"{value:.6g}" for name, value in values.items()}
            )
        self._write(self.folder.metrics, rows)
        for name in shown_metrics(self.config.algo, stage):
            shown = [float(row[name]) for row in rows if name in row]
            if shown:
                self._shown.append(f"{name} {np.mean(shown):.3g}")
        self._track("metrics", rows)

    def first_updates(
        self, begin: int, step: int, history: History, failures: Container[int]
    ) -> None:
        """Append single updates to first_updates.csv, where means over an interval would hide them.

        Args:
            begin: Step at which offline fine-tuning begins.
            step: Step of the newest update in `history`.
            history: Metrics since the last log row.
            failures: Seeds that diverged.
        """
        first = step - len(history.values) + 1
        rows = []
        for index, values in enumerate(history.values):
            number = first + index - begin
            if number > FIRST_UPDATES or (number - 1) % EVERY:
                continue
            for run, seed in enumerate(self.config.seeds):
                if run not in failures:
                    numbers = dict(zip(history.names, values[run].tolist(), strict=True))
                    row = {"stage": "offline", "step": begin + number, "seed": seed}
                    rows.append(row | {name: f"{value:.6g}" for name, value in numbers.items()})
        self._write(self.folder.first_updates, rows)

    def timing(self, stage: str, step: int, rate: float, seconds: float) -> None:
        """Append the speed of an interval to timing.csv, which differs from run to run."""
        row = {"stage": stage, "step": step, "updates_per_second": f"{rate:.2f}"}
        self._write(self.folder.timing, [row | {"seconds": f"{seconds:.1f}"}])

    def progress(self, bar: tqdm, rate: float) -> None:
        """Print the last row of metrics, means over the seeds, the speed and the time left."""
        left = [f"{rate:.1f}/s"]
        if not bar.disable and bar.format_dict["rate"]:
            left.append(f"{duration((bar.total - bar.n) / bar.format_dict['rate'])} left")
        shown = list(self._shown)
        while len("  ".join([self._place, *shown, *left])) > COLUMNS and shown:
            del shown[0]
        self.say("  ".join([self._place, *shown, *left]))

    def episode(
        self, steps: int, run: int, outcome: dict[str, float], failures: Container[int]
    ) -> None:
        """Append an online episode of a live seed to episodes.csv."""
        if run in failures:
            return
        step = self.config.stage_ends["offline"] + steps
        row = {"step": step, "seed": self.config.seeds[run]}
        values = {name: f"{value:.6g}" for name, value in outcome.items()}
        self._write(self.folder.episodes, [row | values])

    def evaluation(self, stage: str, step: int, seed: int, results: list[EpisodeResult]) -> float:
        """Append an evaluation of one seed to eval.csv; return its success rate."""
        success, total, length = np.mean([tuple(result) for result in results], axis=0)
        row = {"stage": stage, "step": step, "seed": seed, "episodes": len(results)}
        row |= {"success": f"{success:.4g}", "return": f"{total:.6g}", "length": f"{length:.6g}"}
        self._write(self.folder.eval, [row])
        self._track("eval", [row])
        self.say(
            f"step {step}, seed {seed}: success {100 * success:.1f} %, return {total:.6g} over "
            f"{len(results)} episodes, mean length {length:.0f}"
        )
        return float(success)

    def flush(self) -> bool:
        """Try once more to write the rows that the disk refused; return whether none are left."""
        return all([self._write(log, []) for log in self.folder.logs])

    def close(self) -> None:
        """Finish the trackers."""
        if self.trackers is not None:
            self.trackers.close()

    def _track(self, kind: Kind, rows: list[dict[str, Any]]) -> None:
        if self.trackers is not None:
            for row in rows:
                self.trackers.log(kind, row)

    def _write(self, log: CsvLog, rows: list[dict[str, Any]]) -> bool:
        try:
            log.write(rows)
            return True
        except OSError as error:
            self.say(
                f"warning: cannot write {log.path} ({reason_of(error)}); the run goes on and tries "
                "again",
                error=True,
            )
            return False
