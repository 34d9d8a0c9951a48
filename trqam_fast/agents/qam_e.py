"""QAM-E: QAM whose flow's actions are refined by an edit policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trqam_fast.agents.base import Losses, Metrics, Networks, Noise, Shapes, Terms
from trqam_fast.agents.config import ByDomain, Setting
from trqam_fast.agents.gaussian import held_entropy, tanh_gaussian
from trqam_fast.agents.qam import QAM_AUTHORS, QAMAgent, QAMConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, mlp
from trqam_fast.networks import MLPShape, ScalarShape

# Inverse temperature and size of the edits.
PUBLISHED = {
    "puzzle-3x3": (1.0, 0.1), "scene": (1.0, 0.0), "cube-double": (1.0, 0.0),
    "antmaze-large": (1.0, 0.1), "humanoidmaze-medium": (3.0, 0.1), "cube-triple": (3.0, 0.1),
    "cube-quadruple": (3.0, 0.1), "puzzle-4x4": (0.1, 0.9), "antmaze-giant": (10.0, 0.1),
    "humanoidmaze-large": (3.0, 0.1),
}  # fmt: skip


@dataclass(frozen=True)
class QAMEConfig(QAMConfig):
    """QAM-E's edit policy."""

    edit_scale: float = 0.1
    """Size of the edit policy's changes to an action; 0 is QAM."""
    edit_target_entropy: float = -0.5
    """Entropy that the edit policy is held to, for each dimension of an action."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_not_negative("edit_scale")


class QAMEAgent(QAMAgent):
    """QAM with an edit policy e(s, a), a tanh-Gaussian, that acts as clip(a + edit_scale e).

    Its loss is -mean_e Q_e(s, clip(a + edit_scale e)) + alpha log pi(e | s, a), where a is the
    clipped action of the fine-tuned flow and the critics are constants. The entropy coefficient
    alpha = exp(log_alpha) falls where the entropy is above `edit_target_entropy` times D, and rises
    where it is below. One optimiser and one gradient norm cover all networks and log_alpha.
    Without edits (`edit_scale` 0) it is QAM.
    """

    label, colour = "QAM-E", "#e69f00"
    Config = QAMEConfig
    published = {
        name: ByDomain(
            {domain: Setting(pair[index], QAM_AUTHORS) for domain, pair in PUBLISHED.items()},
            Setting(otherwise, "this project"),
        )
        for index, (name, otherwise) in enumerate({"inv_temp": 1.0, "edit_scale": 0.1}.items())
    }
    metrics = (*QAMAgent.metrics, "edit_q_loss", "edit_entropy", "edit_alpha")
    recorded = QAMAgent.recorded._replace(
        outputs=QAMAgent.recorded.outputs
        | {
            name: name for name in ("edit_flow_actions", "edit", "edited_actions", "edit_log_probs")
        },
        infos=QAMAgent.recorded.infos
        | {f"actor/{name}": name for name in ("edit_q_loss", "edit_entropy", "edit_alpha")},
        per_dimension=("edit_target_entropy",),
    )

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return QAM's networks after log_alpha and the edit policy."""
        others = super().network_shapes(config, obs_dim, act_dim)
        if config.edit_scale == 0:
            return others
        dim = act_dim * config.chunk_length
        edit = MLPShape(obs_dim + dim, config.actor_hidden_dims, 2 * dim, heads=2)
        return {"edit_alpha": ScalarShape(), "edit_actor": edit, **others}

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return QAM's, the edit policy's, and the critics' at the edited actions."""
        tapes = super().tapes(config)
        if config.edit_scale == 0:
            return tapes
        return tapes | {"edit_actor": 1, "critic": tapes["critic"] + 1}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return QAM's, and those of the edit policy here and at the next observations."""
        draws = super().draws()
        if self.config.edit_scale == 0:
            return draws
        rows, of_next = (self.config.batch_size, self.dim), (*draws["next_action"][:-1], self.dim)
        return draws | {
            "next_action": of_next, "edit_x0": rows, "edit_eps": rows, "next_edit_eps": of_next,
        }  # fmt: skip

    @property
    def noise_dim(self) -> int:
        """Normals that an action takes: the flow's, then the edit policy's."""
        return self.dim if self.config.edit_scale == 0 else 2 * self.dim

    def policy_noise(self, noise: Noise) -> Tensor:
        """Return the flow's noise of the next actions and the edits', side by side."""
        if self.config.edit_scale == 0:
            return noise["next_action"]
        return torch.cat([noise["next_action"], noise["next_edit_eps"]], dim=-1)

    def refine(
        self, networks: Networks, observations: Tensor, actions: Tensor, noise: Tensor
    ) -> Tensor:
        """Clip the flow's actions `[S, n, D]` and add an edit to each, if there are edits."""
        if self.config.edit_scale == 0:
            return actions
        actions = actions.clamp(-1.0, 1.0)
        edit, _ = self.edit(networks["edit_actor"], observations, actions, noise)
        return actions + self.config.edit_scale * edit

    def edit(
        self, network: MLPWeights, observations: Tensor, actions: Tensor, eps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample edits `[S, n, D]` and their log-densities `[S, n]`, differentiable in the network.

        Args:
            network: The edit policy.
            observations: `[S, n, O]`.
            actions: `[S, n, D]`, what is edited.
            eps: `[S, n, D]`, standard normal.
        """
        outputs = mlp(network, torch.cat([observations, actions], dim=-1), **self.options)
        edit, log_prob, _ = tanh_gaussian(outputs, eps)
        return edit, log_prob

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """QAM's losses and those of the edit policy and its entropy coefficient."""
        losses, terms = super().loss(batch, noise)
        if self.config.edit_scale > 0:
            with self.branches.on("edit"):
                losses["edit"] = self.edit_loss(batch, noise, terms)
        return losses, terms

    def edit_loss(self, batch: Batch, noise: Noise, terms: Terms) -> Tensor:
        """Return the losses of the edit policy and its entropy coefficient, `[S]`; add to terms."""
        config, networks = self.config, self.online.networks
        field = networks["actor_fast"]
        actions = self.flow(field, batch.observations, noise["edit_x0"]).clamp(-1.0, 1.0)
        edit, log_prob = self.edit(
            networks["edit_actor"], batch.observations, actions, noise["edit_eps"]
        )
        edited = (actions + config.edit_scale * edit).clamp(-1.0, 1.0)
        critic = networks["critic"].detach()
        q_loss = -self.critic_values(critic, batch.observations, edited).mean((1, 2))
        target = config.edit_target_entropy * self.dim
        entropy = held_entropy(self.online.scalars["edit_alpha"], log_prob, target)
        terms.metrics.update(
            edit_q_loss=q_loss.detach(), edit_entropy=entropy.value.detach(),
            edit_alpha=entropy.alpha.detach(),
        )  # fmt: skip
        terms.outputs.update(
            edit_flow_actions=actions, edit=edit.detach(), edited_actions=edited.detach(),
            edit_log_probs=log_prob.detach(),
        )  # fmt: skip
        return self.warmed_up(q_loss + entropy.policy_loss + entropy.alpha_loss)

    def recorded_scalars(self, metrics: Metrics) -> dict[str, Tensor | float]:
        """Return the authors' losses of the edit policy's entropy and its coefficient."""
        if "edit_alpha" not in metrics:
            return {}
        alpha, entropy = metrics["edit_alpha"], metrics["edit_entropy"]
        return {
            "actor/edit_entropy_loss": -alpha * entropy,
            "actor/edit_alpha_loss": alpha * (entropy - self.config.edit_target_entropy * self.dim),
        }
