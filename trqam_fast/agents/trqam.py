"""TRQAM and QAM: one update, written in the order of docs/algorithm.md."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.agents.base import Agent, Noise, Terms, repeat_rows
from trqam_fast.agents.config import AgentConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import adjoint_matching, lean_adjoint, sde_rollout, velocity_along
from trqam_fast.networks import ParameterBlock

INITIAL_LAM, INITIAL_KL_EMA = 1.0, 0.0


class TRQAMAgent(Agent):
    """Fine-tuned field, cloned field, critics, their targets, and the dual variable of each run.

    QAM is the same update with the terminal adjoint scaled by `inv_temp`, sigma_k = g_k and no
    dual update.
    """

    acting_field = "actor_fast"

    def __init__(
        self,
        config: AgentConfig,
        obs_dim: int,
        act_dim: int,
        seeds: list[int],
        *,
        algo: Literal["trqam", "qam"] = "trqam",
        **options,
    ) -> None:
        shapes = self.network_shapes(config, obs_dim, act_dim)
        super().__init__(config, obs_dim, act_dim, shapes, seeds, **options)
        self.algo = algo
        # The targets hold the last two networks of the online block in the same order, so that
        # one operation moves both.
        self.target = ParameterBlock(
            {name: shapes[name] for name in ("actor_slow", "critic")},
            self.runs,
            dtype=self.dtype,
            device=self.device,
        )
        self.copy_targets()
        self.lam = torch.full((self.runs,), INITIAL_LAM, dtype=self.dtype, device=self.device)
        self.kl_ema = torch.full_like(self.lam, INITIAL_KL_EMA)

    @classmethod
    def network_shapes(cls, config: AgentConfig, obs_dim: int, act_dim: int) -> dict[str, Any]:
        """Architecture of all networks by name, in storage order."""
        field = cls.field_shape(config, obs_dim, act_dim)
        critic = cls.critic_shape(config, obs_dim, act_dim)
        return {"actor_fast": field, "actor_slow": field, "critic": critic}

    @property
    def _online_of_target(self) -> Tensor:
        return self.online.flat[:, self.online.spans["actor_slow"][0] :]

    @torch.no_grad()
    def copy_targets(self) -> None:
        """Set the targets equal to their online networks."""
        self.target.flat.copy_(self._online_of_target)

    @torch.no_grad()
    def load_pretrained(self, field: Tensor) -> None:
        """Start both fields and the base field from packed weights `[S, p]` of a cloned field."""
        self.online.span("actor_fast").copy_(field)
        self.online.span("actor_slow").copy_(field)
        self.copy_targets()

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Critic, behaviour-cloning and adjoint-matching losses, summed."""
        config, networks = self.config, self.online.networks
        base = self.target.networks["actor_slow"]
        if not config.target_actor:
            base = networks["actor_slow"].detach()
        effective_lam = config.lam_scale * self.lam
        if self.algo == "qam":
            effective_lam = torch.ones_like(self.lam)

        # Rollout of the SDE and, in the same call, of the next actions' ODE.
        candidates = noise.next_action
        next_rows = repeat_rows(batch.next_observations, candidates.shape[2])
        rollout = sde_rollout(
            networks["actor_fast"],
            base,
            batch.observations,
            noise.sde_x0,
            noise.sde_eps,
            ode_observations=next_rows,
            ode_x0=candidates.flatten(1, 2),
            **self.options,
        )
        with torch.no_grad():
            edit = None if noise.next_edit is None else noise.next_edit.flatten(1, 2)
            actions = self.refine(networks, next_rows, rollout.ode_x, edit)
            next_actions = self.choose_candidate(
                networks["critic"], batch.next_observations, actions.view_as(candidates)
            )
            target_q = self.target_values(batch, next_actions)
        q = self.critic_values(networks["critic"], batch.observations, self.policy_actions(batch))
        error = F.mse_loss(q, target_q.unsqueeze(1).expand_as(q), reduction="none")
        critic_loss = (error * batch.valid.unsqueeze(1)).mean((1, 2))
        cloning_loss = self.cloning_loss(batch, noise)

        terminal = self.terminal_adjoint(batch.observations, rollout.trajectory[:, -1])
        adjoint = lean_adjoint(
            base, batch.observations, rollout.trajectory, terminal, **self.options
        )
        base_velocity = velocity_along(
            base, batch.observations, rollout.trajectory[:, :-1], **self.options
        )
        adjoint_loss, path_kl = adjoint_matching(
            rollout.velocity,
            base_velocity,
            adjoint,
            effective_lam,
            horizon=config.chunk_length,
            backend=self.backend,
        )

        total = (critic_loss + cloning_loss + adjoint_loss).sum()
        q, size = q.detach().flatten(1), terminal.abs().flatten(1)
        q_min, q_max = q.aminmax(dim=1)
        size_std, size_mean = torch.std_mean(size, 1, correction=0)
        metrics = {
            "critic_loss": critic_loss.detach(),
            "bc_loss": cloning_loss.detach(),
            "adjoint_loss": adjoint_loss.detach(),
            "path_kl": path_kl,
            "q_mean": q.mean(1),
            "q_max": q_max,
            "q_min": q_min,
            "adjoint_mean": size_mean,
            "adjoint_std": size_std,
            "adjoint_max": size.amax(1),
        }
        return total, Terms(metrics, path_kl, rollout.trajectory, adjoint, next_actions)

    def target_values(self, batch: Batch, next_actions: Tensor) -> Tensor:
        """Targets y = R + gamma^H m (mean_e Q'_e(s', a') - rho std_e Q'_e(s', a')), `[S, B]`."""
        config = self.config
        next_q = self.critic_values(
            self.target.networks["critic"], batch.next_observations, next_actions
        )
        value = next_q.mean(1)
        if config.rho > 0:
            value = value - config.rho * next_q.std(1, correction=0)
        return batch.rewards + config.discount**config.horizon_length * batch.masks * value

    def terminal_adjoint(self, observations: Tensor, x: Tensor) -> Tensor:
        """a_K = -d/dX mean_e Q'_e(s, clip(X, -1, 1)), `[S, B, D]`, times `inv_temp` for QAM."""
        config = self.config
        critic = (
            self.target.networks["critic"]
            if config.use_target_grad
            else self.online.networks["critic"].detach()
        )
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            actions = x.clamp(-1.0, 1.0) if config.clip_adj else x
            values = self.critic_values(critic, observations, actions).mean(1)
            (gradient,) = torch.autograd.grad(values.sum(), x)
        return -gradient if self.algo == "trqam" else -config.inv_temp * gradient

    @property
    def polyak_targets(self) -> Tensor:
        """Targets of the cloned field and the critics."""
        return self.target.flat

    def dual_update(self, terms: Terms) -> None:
        """Projected dual descent on lambda from the smoothed, clipped path KL."""
        config = self.config
        if self.algo == "trqam":
            clipped = terms.path_kl.clamp(max=config.kl_clip_coef * config.kl_budget)
            self.kl_ema.lerp_(clipped, config.kl_ema_coef)
            self.lam.add_(self.kl_ema - config.kl_budget, alpha=config.eta_lambda)
            self.lam.clamp_(config.lambda_min, config.lambda_max)
        terms.metrics["lam"] = self.lam.clone()
        terms.metrics["kl_ema"] = self.kl_ema.clone()

    def draw_noise(self, generators: list[torch.Generator]) -> Noise:
        """Draw all noise of one update."""
        config, runs, dim = self.config, self.runs, self.dim
        batch, candidates, steps = config.batch_size, config.best_of_n, config.flow_steps - 1
        normal, uniform = self._draw(generators, batch * dim * (2 + candidates + steps))
        bc_x0, sde_x0, next_action, sde_eps = normal.split(
            [batch * dim * count for count in (1, 1, candidates, steps)], dim=1
        )
        return Noise(
            bc_x0.reshape(runs, batch, dim),
            uniform.unsqueeze(-1),
            next_action.reshape(runs, batch, candidates, dim),
            sde_x0.reshape(runs, batch, dim),
            sde_eps.reshape(runs, steps, batch, dim),
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors that restore the agent, each with the run axis first."""
        return {
            **super().state_dict(),
            "target": self.target.flat.clone(),
            "lam": self.lam.clone(),
            "kl_ema": self.kl_ema.clone(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.target.flat.copy_(state["target"])
        self.lam.copy_(state["lam"])
        self.kl_ema.copy_(state["kl_ema"])
