"""QAM-E: QAM whose flow's actions are refined by an edit policy."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.agents.base import Networks, Noise, Terms
from trqam_fast.agents.config import AgentConfig
from trqam_fast.agents.trqam import TRQAMAgent
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, mlp, ode_rollout
from trqam_fast.networks import MLPShape, ScalarShape

LOG_STD_RANGE = (-20.0, 2.0)


class QAMEAgent(TRQAMAgent):
    """QAM with an edit policy e(s, a), a tanh-Gaussian, that acts as clip(a + edit_scale e).

    Its loss is -mean_e Q_e(s, clip(a + edit_scale e)) + alpha log pi(e | s, a), where a is the
    clipped action of the fine-tuned flow and the critics are constants. The entropy coefficient
    alpha = exp(log_alpha) falls where the entropy is above `edit_target_entropy` times D, and rises
    where it is below. One optimiser and one gradient norm cover all networks and log_alpha.
    """

    def __init__(
        self, config: AgentConfig, obs_dim: int, act_dim: int, seeds: list[int], **options
    ) -> None:
        super().__init__(config, obs_dim, act_dim, seeds, algo="qam", **options)
        # Mean and deviation are two layers of D outputs, in one kernel here.
        kernel = self.online.networks["edit_actor"].kernels[-1].detach()
        inputs = kernel.shape[-2]
        kernel.mul_(math.sqrt((inputs + 2 * self.dim) / (inputs + self.dim)))

    @classmethod
    def network_shapes(cls, config: AgentConfig, obs_dim: int, act_dim: int) -> dict[str, Any]:
        """Architecture of all networks by name, in storage order."""
        dim = act_dim * config.chunk_length
        edit = MLPShape(obs_dim + dim, config.actor_hidden_dims, 2 * dim)
        others = super().network_shapes(config, obs_dim, act_dim)
        return {"edit_alpha": ScalarShape(), "edit_actor": edit, **others}

    @property
    def noise_dim(self) -> int:
        """Normals that an action takes: the flow's, then the edit policy's."""
        return 2 * self.dim

    def edit(
        self, network: MLPWeights, observations: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample edits `[S, n, D]` and their log-densities `[S, n]`, differentiable in the network.

        Args:
            network: The edit policy.
            observations: `[S, n, O]`.
            actions: `[S, n, D]`, what is edited.
            noise: `[S, n, D]`, standard normal.
        """
        outputs = mlp(network, torch.cat([observations, actions], dim=-1), **self.options)
        mean, log_std = outputs.chunk(2, dim=-1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        before = mean + log_std.exp() * noise
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        # log(1 - tanh(x)^2), without cancellation.
        slope = 2.0 * (math.log(2.0) - before - F.softplus(-2.0 * before))
        return before.tanh(), (normal - slope).sum(-1)

    def refine(
        self, networks: Networks, observations: Tensor, actions: Tensor, noise: Tensor
    ) -> Tensor:
        """Add an edit to clipped actions `[S, n, D]`."""
        actions = actions.clamp(-1.0, 1.0)
        edit, _ = self.edit(networks["edit_actor"], observations, actions, noise)
        return actions + self.config.edit_scale * edit

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """QAM's losses and those of the edit policy and its entropy coefficient."""
        total, terms = super().loss(batch, noise)
        config, networks = self.config, self.online.networks
        with torch.no_grad():
            field = networks["actor_fast"].detach()
            actions = ode_rollout(
                field, batch.observations, noise.edit_x0, config.flow_steps, **self.options
            ).clamp(-1.0, 1.0)
        edit, log_prob = self.edit(
            networks["edit_actor"], batch.observations, actions, noise.edit_eps
        )
        edited = (actions + config.edit_scale * edit).clamp(-1.0, 1.0)
        critic = networks["critic"].detach()
        q_loss = -self.critic_values(critic, batch.observations, edited).mean((1, 2))
        (log_alpha,) = networks["edit_alpha"].tensors
        alpha, entropy = log_alpha.exp().squeeze(-1), -log_prob.mean(-1)
        entropy_loss = -alpha.detach() * entropy
        target = config.edit_target_entropy * self.dim
        alpha_loss = alpha * (entropy.detach() - target)
        terms.metrics.update(
            edit_q_loss=q_loss.detach(), edit_entropy=entropy.detach(), edit_alpha=alpha.detach()
        )
        return total + (q_loss + entropy_loss + alpha_loss).sum(), terms

    def draw_noise(self, generators: list[torch.Generator]) -> Noise:
        """Draw QAM's noise, then that of the edit policy."""
        noise = super().draw_noise(generators)
        candidates, shape = self.config.best_of_n, noise.sde_x0.shape
        extra = noise.sde_x0.new_empty(self.runs, 2 + candidates, *shape[1:])
        for run, generator in enumerate(generators):
            extra[run].normal_(generator=generator)
        return noise._replace(
            edit_x0=extra[:, 0].contiguous(),
            edit_eps=extra[:, 1].contiguous(),
            next_edit=extra[:, 2:].transpose(1, 2).contiguous(),
        )
