"""DSRL: a latent policy chooses the noise from which the cloned flow makes an action."""

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
    Metrics,
    Networks,
    Noise,
    Recorded,
    Shapes,
    Terms,
    field_shape,
)
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.config import ByDomain, CloningConfig, CriticConfig, Setting
from trqam_fast.agents.gaussian import held_entropy, tanh_gaussian
from trqam_fast.agents.qam import QAM_AUTHORS
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, mlp
from trqam_fast.networks import MLPShape, ScalarShape

NOISE_SCALES = {
    "puzzle-3x3": 1.0, "puzzle-4x4": 1.0, "cube-double": 1.0, "scene": 0.4, "antmaze-large": 0.8,
    "humanoidmaze-large": 0.8, "humanoidmaze-medium": 0.6, "cube-triple": 1.4,
    "cube-quadruple": 1.4, "antmaze-giant": 1.2,
}  # fmt: skip


@dataclass(frozen=True)
class DSRLConfig(CloningConfig, CriticConfig):
    """DSRL's latent policy; its gradients are not clipped unless --clip-grad says so."""

    clip_grad: bool = False
    """Clip the gradient of each run to global norm 1."""
    noise_scale: float = 1.0
    """Size nu of the latents: the flow starts from nu tanh(u)."""
    target_entropy: float = -0.5
    """Entropy that the latent policy is held to, for each dimension of an action."""
    use_target_latent: bool = True
    """Decode latents with the Polyak target of the cloned field instead of the field itself."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_positive("noise_scale")


class DSRLAgent(Agent):
    """Critics Q, latent critics Z, cloned field v_bc, a latent tanh-Gaussian policy, its entropy.

    dec(s, w) = clip(ODE of the decoding field from w). Z learns mean_{e,b} (Z_e(s, w) -
    Q_e(s, dec(s, w)))^2 at w ~ N(0, I), member by member; the policy maximises mean_e Z_e(s, nu e)
    with entropy; nothing is differentiated through the flow. It acts with dec(s, nu e), e sampled.
    Source: DSRL (arXiv 2506.15799), as in QAM's authors' code.
    """

    label, colour = "DSRL", "#56b4e9"
    Config = DSRLConfig
    metrics = ("critic_loss", "bc_loss", "distill_loss", "actor_loss", "latent_q",
               "latent_entropy", "latent_alpha", "latent_std", *critics.METRICS)  # fmt: skip
    published = {
        "noise_scale": ByDomain(
            {domain: Setting(value, QAM_AUTHORS) for domain, value in NOISE_SCALES.items()},
            Setting(1.0, "QAM's authors' default"),
        )
    }
    targets = ("actor_slow", "critic")
    recorded = Recorded(
        networks={
            "actor_slow": "actor_bc_flow", "latent_critic": "z_critic", "latent_actor": "actor",
            "latent_alpha": "alpha",
        },
        noise={"latent_eps": "actor_eps", "next_latent_eps": "next_action_eps"},
        outputs={
            name: name
            for name in ("next_actions", "distill_actions", "distill_target_qs", "latent",
                         "log_probs")
        },
        infos={
            "critic/critic_loss": "critic_loss", "critic/distill_loss": "distill_loss",
            "critic/q_mean": "q_mean", "critic/q_max": "q_max", "critic/q_min": "q_min",
            "actor/flow_loss": "bc_loss", "actor/actor_loss": "actor_loss",
            "actor/q": "latent_q", "actor/entropy": "latent_entropy",
            "actor/alpha": "latent_alpha", "actor/action_std": "latent_std",
        },
        per_dimension=("target_entropy",),
    )  # fmt: skip

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the latent parts, the cloned field and the critics."""
        field = field_shape(config, obs_dim, act_dim)
        parts = critics.CRITICS["td"].shapes(config, obs_dim, act_dim)
        latent = MLPShape(obs_dim, config.actor_hidden_dims, 2 * field.out_features, heads=2)
        return {
            "latent_alpha": ScalarShape(), "latent_actor": latent,
            "latent_critic": parts["critic"], "actor_slow": field, **parts,
        }  # fmt: skip

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return one pass each, and a second one of the latent critics at the policy's latents."""
        return {"actor_slow": 1, "latent_actor": 1, "latent_critic": 2, "critic": 1}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the cloning loss, noise of the latents, w of the distillation."""
        rows = (self.config.batch_size, self.dim)
        candidates = (self.config.batch_size, self.config.best_of_n, self.dim)
        return {
            "bc_x0": rows, "next_latent_eps": candidates, "distill_z": rows, "latent_eps": rows,
        }  # fmt: skip

    def propose(self, networks: Networks, observations: Tensor, noise: Tensor) -> Tensor:
        """Return dec(s, nu e), e sampled from the latent policy with `noise`."""
        outputs = mlp(networks["latent_actor"], observations, **self.options)
        latent, _, _ = tanh_gaussian(outputs, noise)
        target = "target_" if self.config.use_target_latent else ""
        field = networks[f"{target}actor_slow"]
        return self.decode(field, observations, self.config.noise_scale * latent)

    def decode(self, field: MLPWeights, observations: Tensor, latent: Tensor) -> Tensor:
        """Return dec(s, w) for w `[S, n, D]`."""
        return self.flow(field, observations, latent).clamp(-1.0, 1.0)

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Critic, latent-critic, behaviour-cloning, policy and entropy losses, on branches."""
        s, critic = batch.observations, self.online.networks["critic"]
        with self.branches.on("critic"):
            next_actions = self.act(batch.next_observations, noise["next_latent_eps"])
            next_values = critics.CRITICS["td"].next_values(self, batch, next_actions)
            q = self.critic_values(critic, s, self.policy_actions(batch))
            critic_loss, critic_metrics = critics.temporal_difference(self, q, next_values, batch)
        with self.branches.on("cloning"):
            cloning_loss = self.cloning_loss(batch, noise)

        w = noise["distill_z"]
        field = (self.target if self.config.use_target_latent else self.online).networks
        with torch.no_grad():
            decoded = self.decode(field["actor_slow"], s, w)
            decoded_q = self.critic_values(critic.detach(), s, decoded)
        latent_critic = self.online.networks["latent_critic"]
        latent_q = self.critic_values(latent_critic, s, w)
        distill_loss = F.mse_loss(latent_q, decoded_q, reduction="none").mean((1, 2))

        with self.branches.on("actor"):
            latent, log_prob, log_std = tanh_gaussian(
                self.network("latent_actor", s), noise["latent_eps"]
            )
            values = self.critic_values(
                latent_critic.detach(), s, self.config.noise_scale * latent
            ).mean((1, 2))
            target = self.config.target_entropy * self.dim
            entropy = held_entropy(self.online.scalars["latent_alpha"], log_prob, target)
            actor_loss = entropy.policy_loss - values
            policy_loss = actor_loss + entropy.alpha_loss
            latent_std = log_std.detach().exp().mean((1, 2))

        metrics = {
            "bc_loss": cloning_loss, "distill_loss": distill_loss,
            "actor_loss": actor_loss, "latent_q": values, "latent_entropy": entropy.value,
            "latent_alpha": entropy.alpha, "latent_std": latent_std,
        }  # fmt: skip
        metrics = {name: value.detach() for name, value in metrics.items()}
        outputs = {
            "next_actions": next_actions, "distill_actions": decoded,
            "distill_target_qs": decoded_q, "latent": latent.detach(),
            "log_probs": log_prob.detach(),
        }  # fmt: skip
        losses = {
            "critic": critic_loss, "cloning": cloning_loss, MAIN: distill_loss,
            "actor": policy_loss,
        }  # fmt: skip
        return losses, Terms(critic_metrics | metrics, outputs)

    def recorded_scalars(self, metrics: Metrics) -> dict[str, Tensor | float]:
        """Return the authors' loss of the entropy's coefficient, and their sums."""
        excess = metrics["latent_entropy"] - self.config.target_entropy * self.dim
        alpha_loss = metrics["latent_alpha"] * excess
        return {
            "actor/alpha_loss": alpha_loss,
            "actor/total_loss": metrics["bc_loss"] + metrics["actor_loss"] + alpha_loss,
            "critic/total_loss": metrics["critic_loss"] + metrics["distill_loss"],
        }
