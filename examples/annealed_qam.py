"""An algorithm of one's own: QAM whose inverse temperature grows while it trains.

    python -m trqam_fast.train --algo examples.annealed_qam:AnnealedQAM --inv-temp-end 2

docs/your_own_algorithm.md explains every line.
"""

from dataclasses import dataclass

from torch import Tensor

from trqam_fast.agents import (
    AdjointConfig,
    AnchorConfig,
    CloningConfig,
    CriticConfig,
    Metrics,
    QAMAgent,
)


@dataclass(frozen=True)
class AnnealedConfig(CloningConfig, CriticConfig, AnchorConfig, AdjointConfig):
    """How the inverse temperature grows."""

    inv_temp_start: float = 0.1
    """Inverse temperature of the first update."""
    inv_temp_end: float = 1.0
    """Inverse temperature after --anneal-steps updates, and from then on."""
    anneal_steps: int = 5_000
    """Updates in which it grows, geometrically."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_positive("inv_temp_start", "inv_temp_end")
        self.require_at_least(1, "anneal_steps")


class AnnealedQAM(QAMAgent):
    """QAM with inv_temp_start (inv_temp_end / inv_temp_start)^min(1, u / anneal_steps)."""

    label = "QAM annealed"
    Config = AnnealedConfig
    metrics = (*QAMAgent.metrics, "inv_temp")

    def inv_temp(self) -> Tensor:
        """Inverse temperature of this update; a tensor, so that a GPU can replay the update."""
        c = self.config
        progress = (self.steps / c.anneal_steps).clamp(max=1.0)
        return c.inv_temp_start * (c.inv_temp_end / c.inv_temp_start) ** progress

    def terminal_adjoint(self, observations: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale the critics' action gradient, `[S, B, D]`; return their values, too."""
        gradient, values = self.action_gradient(observations, x)
        return -self.inv_temp() * gradient, values

    def after_step(self, metrics: Metrics) -> None:
        """Log it."""
        metrics["inv_temp"] = self.inv_temp().expand(self.runs)
