"""When a stage logs, evaluates and saves."""

from __future__ import annotations

from typing import NamedTuple

from trqam_fast.training.config import TrainConfig


class Intervals(NamedTuple):
    """Steps, from the beginning of a stage, between events of a kind; 0 is never."""

    log: int
    save: int
    evaluate: int

    @classmethod
    def of(cls, config: TrainConfig, stage: str) -> Intervals:
        """Return the intervals of a stage; pretraining is evaluated at its end alone."""
        evaluate = 0 if stage == "pretrain" else config.eval_interval
        return cls(config.log_interval, config.save_interval, evaluate)

    def until_event(self, progress: int) -> int:
        """Return the steps from `progress` to the next log row, checkpoint or evaluation."""
        return min(interval - progress % interval for interval in self if interval > 0)

    def evaluates(self, progress: int) -> bool:
        """Return whether an evaluation is due at `progress`."""
        return self.evaluate > 0 and progress % self.evaluate == 0
