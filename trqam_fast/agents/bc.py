"""Behaviour cloning by flow matching: the pretraining stage."""

from __future__ import annotations

import torch
from torch import Tensor

from trqam_fast.agents.base import Agent, Noise, Terms
from trqam_fast.agents.config import AgentConfig
from trqam_fast.data.batch import Batch


class BCAgent(Agent):
    """The cloned field alone: no critic, no targets, no dual variable."""

    def __init__(
        self, config: AgentConfig, obs_dim: int, act_dim: int, seeds: list[int], **options
    ) -> None:
        shapes = {"actor_slow": self.field_shape(config, obs_dim, act_dim)}
        super().__init__(config, obs_dim, act_dim, shapes, seeds, **options)

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Flow-matching loss."""
        loss = self.cloning_loss(batch, noise)
        return loss.sum(), Terms({"bc_loss": loss.detach()})

    def draw_noise(self, generators: list[torch.Generator]) -> Noise:
        """Draw x_0 and t."""
        batch = self.config.batch_size
        normal, uniform = self._draw(generators, batch * self.dim)
        return Noise(normal.view(self.runs, batch, self.dim), uniform.unsqueeze(-1))
