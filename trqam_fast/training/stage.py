"""One stage of a run: an agent, what does its steps, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from trqam_fast.agents import Agent
from trqam_fast.randomness import Randomness
from trqam_fast.runs.checkpoint import plain_shapes
from trqam_fast.training.history import History
from trqam_fast.training.intervals import Intervals
from trqam_fast.training.online import OnlineDriver
from trqam_fast.training.updater import GoOn, Updater


@dataclass
class Stage:
    """A stage that is being trained.

    Attributes:
        name: One of `STAGES`.
        agent: What learns.
        driver: What does the steps: updates alone, or environment steps with their updates.
        randomness: Random numbers of the updates.
        history: Metrics since the last log row.
        intervals: When it logs, saves and evaluates.
        begin: Step of the run at which it begins.
        end: Step at which it ends.
        step: Step that it has come to.
        updates_per_step: Updates for each step.
        last_good: State of the agent at the last checkpoint; diverged seeds keep theirs.
    """

    name: str
    agent: Agent
    driver: Updater | OnlineDriver
    randomness: Randomness
    history: History
    intervals: Intervals
    begin: int
    end: int
    step: int
    updates_per_step: int = 1
    last_good: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last_good = self.agent.state_dict()

    @property
    def done(self) -> bool:
        """Whether it is at its end."""
        return self.step >= self.end

    def advance(self, go_on: GoOn) -> int:
        """Run until the next log row, checkpoint or evaluation is due; return the steps done."""
        until = self.intervals.until_event(self.step - self.begin)
        count = self.driver.run(min(until, self.end - self.step), go_on)
        self.step += count
        return count

    def due(self, interval: int) -> bool:
        """Whether what comes in intervals is due: at their ends, and at the end of the stage."""
        return self.done or (self.step - self.begin) % interval == 0

    def keep_good(self, failed: dict[int, str]) -> dict[str, Tensor]:
        """Return the agent's state, that of each failed seed as it last was good; remember it."""
        if not failed:
            self.last_good = {}  # nothing of it is needed, and both would be in memory
        state = self.agent.state_dict()
        for run in failed:
            for name, tensor in state.items():
                tensor[run] = self.last_good[name][run]
        self.last_good = state
        return state

    def values(self, failed: dict[int, str]) -> dict[str, Any]:
        """Return the stage for a checkpoint."""
        online = self.driver.state_dict() if isinstance(self.driver, OnlineDriver) else None
        return {
            "stage": self.name,
            "step": self.step,
            "agent": self.keep_good(failed),
            "shapes": plain_shapes(self.agent.online.shapes),
            "drawn": self.randomness.position(),
            "history": self.history.values,
            "metrics": self.history.names,
            "online": online,
        }
