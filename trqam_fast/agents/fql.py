"""FQL: a one-step policy, distilled from the cloned flow and pulled toward high values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.agents import critics
from trqam_fast.agents.base import (
    Agent,
    Losses,
    Networks,
    Noise,
    Recorded,
    Shapes,
    Terms,
    field_shape,
)
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.config import ByDomain, CloningConfig, CriticConfig, Setting
from trqam_fast.agents.qam import QAM_AUTHORS
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import mlp
from trqam_fast.networks import MLPShape

ALPHAS = {
    "puzzle-3x3": 300.0, "scene": 300.0, "cube-double": 300.0, "antmaze-large": 3.0,
    "antmaze-giant": 3.0, "humanoidmaze-medium": 30.0, "humanoidmaze-large": 30.0,
    "cube-triple": 30.0, "cube-quadruple": 100.0, "puzzle-4x4": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class FQLConfig(CloningConfig, CriticConfig):
    """FQL's distillation; its gradients are not clipped unless --clip-grad says so."""

    clip_grad: bool = False
    """Clip the gradient of each run to global norm 1."""
    alpha: float = 100.0
    """Weight of the distillation from the cloned flow."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_not_negative("alpha")


class FQLAgent(Agent):
    """Critics Q, cloned field v_bc and one-step policy mu(s, z); only Q has a target.

    With z ~ N(0, I) and f = clip(ODE of v_bc from z), a constant, the policy's loss is
    alpha mean_{b,d} (mu(s, z) - f)^2 - mean_{e,b} Q_e(s, clip(mu(s, z))), the critics constants.
    It acts with mu. Source: Flow Q-Learning (arXiv 2502.02538), as in QAM's authors' code.
    """

    label, colour = "FQL", "#cc79a7"
    Config = FQLConfig
    metrics = ("critic_loss", "bc_loss", "distill_loss", "actor_loss", *critics.METRICS)
    published = {
        "alpha": ByDomain(
            {domain: Setting(value, QAM_AUTHORS) for domain, value in ALPHAS.items()},
            Setting(100.0, "QAM's authors' default"),
        )
    }
    targets = ("critic",)
    recorded = Recorded(
        networks={"actor_slow": "actor_bc_flow", "actor_onestep": "actor_onestep_flow"},
        outputs={
            name: name for name in ("next_actions", "flow_actions", "onestep_actions")
        },
        infos={
            "critic/critic_loss": "critic_loss", "critic/q_mean": "q_mean",
            "critic/q_max": "q_max", "critic/q_min": "q_min", "actor/bc_flow_loss": "bc_loss",
            "actor/distill_loss": "distill_loss", "actor/actor_loss": "actor_loss",
        },
    )  # fmt: skip

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the cloned field, the one-step policy, which is not told a time, the critics."""
        field = field_shape(config, obs_dim, act_dim)
        onestep = MLPShape(
            field.in_features - 1, field.hidden_dims, field.out_features, field.layer_norm
        )
        parts = critics.CRITICS["td"].shapes(config, obs_dim, act_dim)
        return {"actor_slow": field, "actor_onestep": onestep, **parts}

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return one pass each, and a second one of the critics at the policy's actions."""
        return {"actor_slow": 1, "actor_onestep": 1, "critic": 2}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the cloning loss, z of the next actions and of the distillation."""
        rows = (self.config.batch_size, self.dim)
        candidates = (self.config.batch_size, self.config.best_of_n, self.dim)
        return {"bc_x0": rows, "next_action": candidates, "distill_z": rows}

    def propose(self, networks: Networks, observations: Tensor, noise: Tensor) -> Tensor:
        """Return mu(s, z)."""
        inputs = torch.cat([observations, noise], dim=-1)
        return mlp(networks["actor_onestep"], inputs, **self.options)

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Critic, behaviour-cloning, distillation and policy losses, each on its branch."""
        networks, critic = self.online.networks, self.online.networks["critic"]
        with self.branches.on("critic"):
            next_actions = self.act(batch.next_observations, noise["next_action"])
            next_values = critics.CRITICS["td"].next_values(self, batch, next_actions)
            q = self.critic_values(critic, batch.observations, self.policy_actions(batch))
            critic_loss, critic_metrics = critics.temporal_difference(self, q, next_values, batch)
        with self.branches.on("cloning"):
            cloning_loss = self.cloning_loss(batch, noise)

        z = noise["distill_z"]
        flow_actions = self.flow(networks["actor_slow"], batch.observations, z).clamp(-1.0, 1.0)
        actions = self.network("actor_onestep", batch.observations, z)
        distill_loss = F.mse_loss(actions, flow_actions, reduction="none").mean((1, 2))
        values = self.critic_values(critic.detach(), batch.observations, actions.clamp(-1.0, 1.0))
        policy_loss = self.config.alpha * distill_loss - values.mean((1, 2))

        with self.branches.on(MAIN, after=("cloning",)):
            actor_loss = cloning_loss.detach() + policy_loss.detach()
        metrics = {
            "bc_loss": cloning_loss, "distill_loss": distill_loss, "actor_loss": actor_loss,
        }  # fmt: skip
        metrics = {name: loss.detach() for name, loss in metrics.items()}
        outputs = {
            "next_actions": next_actions, "flow_actions": flow_actions,
            "onestep_actions": actions.detach(),
        }  # fmt: skip
        losses = {"critic": critic_loss, "cloning": cloning_loss, MAIN: policy_loss}
        return losses, Terms(critic_metrics | metrics, outputs)
