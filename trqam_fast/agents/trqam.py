"""TRQAM: QAM under a path-KL budget, which a dual variable keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from trqam_fast.agents import critics
from trqam_fast.agents.base import Metrics
from trqam_fast.agents.config import (
    AdjointConfig,
    AnchorConfig,
    ByDomain,
    CloningConfig,
    CriticConfig,
    Setting,
    TrustRegionConfig,
)
from trqam_fast.agents.dual import DualController
from trqam_fast.agents.qam import ADJOINT_METRICS, Path, QAMAgent
from trqam_fast.data.batch import Batch


@dataclass(frozen=True)
class TRQAMConfig(
    CloningConfig, CriticConfig, critics.ImplicitConfig, AnchorConfig, AdjointConfig,
    TrustRegionConfig,
):  # fmt: skip
    """Hyperparameters of TRQAM."""


class TRQAMAgent(QAMAgent):
    """QAM whose temperature is the dual variable of the budget: sigma_k^2 = g_k^2 / (3 lambda).

    With `value_penalty` c the critics' loss has a further term,
    c mean_b [ mean_e Q_e(s, clip(X_K)) - mean_e Q_e(s, a) ], not masked.
    """

    label, colour = "TRQAM", "#0072b2"
    Config: ClassVar[type[CloningConfig]] = TRQAMConfig
    metrics = ("critic_loss", "bc_loss", "adjoint_loss", "path_kl", "lam", "kl_ema",
               *critics.METRICS, *ADJOINT_METRICS, "value_gap", "value_loss", "v_mean")  # fmt: skip
    published = {
        "kl_budget": ByDomain(
            {
                "cube-triple": Setting(0.5, "authors' example"),
                "puzzle-4x4": Setting(
                    2.0, "this project; the authors report that it prefers a loose one"
                ),
            },
            Setting(0.5, "this project; the authors report small ones as best nearly everywhere"),
        )
    }
    controller = DualController
    first_updates = ("critic_warmup", "budget_ramp", "init_lambda", "lambda_start")
    recorded = QAMAgent.recorded._replace(
        infos=QAMAgent.recorded.infos
        | {
            "lam_raw": "lam", "kl_ema_raw": "kl_ema", "dual/kl_ema": "kl_ema",
            "dual/kl_estimate": "path_kl",
        },
    )  # fmt: skip

    def __init__(
        self, config: Any, obs_dim: int, act_dim: int, seeds: list[int], **options: Any
    ) -> None:
        super().__init__(config, obs_dim, act_dim, seeds, **options)
        self.dual = self.controller(
            self.runs, config.budget_of(act_dim), scale=config.lam_scale, eta=config.eta_lambda,
            ema=config.kl_ema_coef, clip=config.kl_clip_coef,
            bracket=(config.lambda_min, config.lambda_max), lam=config.init_lambda,
            rule=config.dual, dtype=self.dtype, device=self.device, backend=self.small_ops,
        )  # fmt: skip

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return QAM's, and those of the critics at the policy's actions if they are penalised."""
        tapes = super().tapes(config)
        tapes["critic"] += config.value_penalty > 0
        return tapes | ({"value": 1} if config.critic == "implicit" else {})

    def temperature(self) -> Tensor:
        """lam_scale lambda as the previous update left it, `[S]`."""
        return self.dual.temperature

    @property
    def adjoint_scale(self) -> float:
        """-1: what adapts is the temperature of the loss."""
        return -1.0

    def budget_of(self, update: Tensor) -> Tensor | None:
        """Return the budget of an update, the first being 1, `[]`; None where it is constant."""
        ramp = self.config.budget_ramp
        return None if ramp == 0 else self.dual.budget * (update / ramp).clamp(max=1.0)

    def adjoint_loss(
        self, path: Path, base_velocity: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """QAM's, after lambda was set to its closed form if this is the update to do so."""
        if self.config.lambda_start == "closed-form":
            budget = self.budget_of(self.steps + 1.0)
            self.dual.start_from(
                self.matching_cost(adjoint),
                budget=self.dual.budget if budget is None else budget,
                active=self.steps == self.config.critic_warmup,
            )
        return super().adjoint_loss(path, base_velocity, adjoint)

    def matching_cost(self, adjoint: Tensor) -> Tensor:
        """A = 1/2 sum_k h g_k^2 mean_b |a_k|^2 / H, `[S]`."""
        h, g_squared = self.schedule.table(adjoint.dtype, adjoint.device)
        weights = h * g_squared / (2.0 * self.config.chunk_length)
        return (weights * adjoint.square().sum(-1).mean(-1)).sum(-1)

    def data_values(self, batch: Batch) -> Tensor | None:
        """QAM's, which the penalty evaluates together with those at the policy's actions."""
        return super().data_values(batch) if self.config.value_penalty == 0 else None

    def critic_loss(
        self,
        batch: Batch,
        q: Tensor | None,
        next_actions: Tensor | None,
        end: Tensor,
        policy_values: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """QAM's; the penalty of values at the policy's actions `end`; the state value's loss."""
        weight = self.config.value_penalty
        if weight == 0:
            loss, metrics = super().critic_loss(batch, q, next_actions, end, policy_values)
        else:
            loss, metrics = self.penalised_loss(batch, next_actions, end, weight)
        value_loss, more = self.critic.value_loss(self, batch)
        return (loss if value_loss is None else loss + value_loss), metrics | more

    def penalised_loss(
        self, batch: Batch, next_actions: Tensor | None, end: Tensor, weight: float
    ) -> tuple[Tensor, Metrics]:
        """Evaluate the critics once, at the actions of the data and at the policy's."""
        next_values = self.critic.next_values(self, batch, next_actions)
        actions = torch.cat([self.policy_actions(batch), end.clamp(-1.0, 1.0)], dim=1)
        observations = torch.cat([batch.observations] * 2, dim=1)
        values = self.critic_values(self.online.networks["critic"], observations, actions)
        q, q_policy = values.chunk(2, dim=-1)
        loss, metrics = critics.temporal_difference(self, q, next_values, batch)
        gap = q_policy.mean((1, 2)) - q.mean((1, 2))
        return loss + weight * gap, metrics | {"value_gap": gap.detach()}

    def after_step(self, metrics: Metrics) -> None:
        """Projected dual descent on lambda, unless the critics are still warming up."""
        warmup = self.config.critic_warmup
        metrics["lam"], metrics["kl_ema"] = self.dual.update(
            metrics["path_kl"], budget=self.budget_of(self.steps),
            active=None if warmup == 0 else self.steps > warmup,
        )  # fmt: skip

    def recorded_scalars(self, metrics: Metrics) -> dict[str, Tensor | float]:
        """Return what the authors log of lambda, the budget and a penalised critic."""
        effective = self.config.lam_scale * metrics["lam"]
        limit = self.config.kl_clip_coef * self.config.kl_budget
        found = {
            "dual/lambda": effective,
            "dual/sigma_scale": effective.clamp(min=1e-8).rsqrt(),
            "dual/kl_budget": self.config.kl_budget,
            "dual/kl_estimate_clipped": metrics["path_kl"].clamp(max=limit),
            "dual/kl_clipped": (metrics["path_kl"] > limit).double(),
        }
        if "value_gap" in metrics:
            penalty = self.config.value_penalty * metrics["value_gap"]
            found["critic/critic_loss_total"] = metrics["critic_loss"] + penalty
        return found

    def begin_stage(self, stage: str) -> None:
        """Take the budget of the online stage, if it has one of its own."""
        online = self.config.kl_budget_online
        if stage == "online" and online is not None:
            self.dual.budget = online

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that make up the agent's state, each with the run axis first."""
        return super().state() | {"lam": self.dual.lam, "kl_ema": self.dual.kl_ema}
