"""Behaviour cloning by flow matching: the pretraining stage, and an algorithm of its own."""

from __future__ import annotations

from typing import Any

from trqam_fast.agents.base import Agent, Losses, Noise, Recorded, Shapes, Terms, field_shape
from trqam_fast.agents.branches import MAIN
from trqam_fast.data.batch import Batch


class BCAgent(Agent):
    """The cloned field alone: no critic, no targets, no dual variable."""

    label, colour = "BC", "#999999"
    metrics = ("bc_loss",)
    fine_tunes = False
    recorded = Recorded(infos={"actor/flow_loss": "bc_loss"})

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the cloned field."""
        return {"actor_slow": field_shape(config, obs_dim, act_dim)}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the flow-matching loss."""
        return {"bc_x0": (self.config.batch_size, self.dim)}

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Flow-matching loss."""
        loss = self.cloning_loss(batch, noise)
        return {MAIN: loss}, Terms({"bc_loss": loss.detach()}, {})
