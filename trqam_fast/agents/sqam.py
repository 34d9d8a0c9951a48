"""SQAM: TRQAM whose adjoint is a scalar times one critic gradient, at states of a bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trqam_fast.agents import critics
from trqam_fast.agents.base import Metrics, Noise, repeat_rows
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.config import (
    AnchorConfig,
    ByDomain,
    CloningConfig,
    CriticConfig,
    Setting,
    TrustRegionConfig,
)
from trqam_fast.agents.qam import adjoint_metrics
from trqam_fast.agents.trqam import TRQAMAgent
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import NoiseSchedule, adjoint_sizes, mlp


@dataclass(frozen=True)
class SQAMConfig(
    CloningConfig, CriticConfig, critics.ImplicitConfig, AnchorConfig, TrustRegionConfig
):  # fmt: skip
    """SQAM's bridge; its budget and value penalty have defaults of their own."""

    n_bridge: int = 10
    """States of the bridge from noise to the policy's action, J."""
    kl_budget: float = 0.5
    """Path-KL budget eps_KL in nats per action step."""
    value_penalty: float = 0.3
    """Weight of the critics' penalty mean Q(s, policy's action) - mean Q(s, action of the data)."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_counts("n_bridge")


class Bridge(NamedTuple):
    """States between noise and the policy's action, at which it is matched to its adjoints.

    Attributes:
        points: x_1..x_J, `[S, J, B, D]`; the last one is the policy's action.
        inputs: [s, x_j, tau_j], `[S, J B, O + D + 1]`.
        velocity: v_ft(s, x_j, tau_j), `[S, J, B, D]`, differentiable in the field's weights.
    """

    points: Tensor
    inputs: Tensor
    velocity: Tensor

    @property
    def end(self) -> Tensor:
        """The policy's action before it is clipped, `[S, B, D]`."""
        return self.points[:, -1]


class SQAMAgent(TRQAMAgent):
    """TRQAM without an SDE and without a sweep through the base field.

    With a^ the end of the policy's ODE,

    x_j = (1 - tau_j) eps_j + tau_j a^,   b_j = -tau_j d/dx mean_e Q'_e(s, clip(x)) at a^,

    tau_j = j / J, and the loss, path KL and dual update of TRQAM on these states. Source: SQAM
    (arXiv 2610.10437).
    """

    label, colour = "SQAM", "#009e73"
    Config = SQAMConfig
    published = {
        "kl_budget": ByDomain({}, Setting(0.5, "SQAM's authors' default")),
        "value_penalty": ByDomain({}, Setting(0.3, "SQAM's authors' default")),
    }
    recorded = TRQAMAgent.recorded._replace(
        outputs=TRQAMAgent.recorded.outputs | {"a_hat": "end"},
        infos=TRQAMAgent.recorded.infos | {"critic/gap_reg_term": "value_gap"},
        settings={"gap_reg_coef": "value_penalty"},
        one_more=("bridge_eps",),
    )

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return TRQAM's, with the states of the bridge in the place of the SDE's."""
        return super().tapes(config) | {"actor_fast": config.n_bridge}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of cloning and of the policy's ODE, the next actions', eps of the bridge."""
        batch, dim, config = self.config.batch_size, self.dim, self.config
        candidates = {"next_action": (batch, config.best_of_n, self.noise_dim)}
        return {
            "bc_x0": (batch, dim),
            "policy_x0": (batch, dim),
            **(candidates if self.critic.samples_policy else {}),
            "bridge_eps": (config.n_bridge - 1, batch, dim),
        }

    @property
    def schedule(self) -> NoiseSchedule:
        """tau_j and g_j^2 of the bridge."""
        return NoiseSchedule.bridge(self.config.n_bridge)

    def taus(self, like: Tensor) -> Tensor:
        """Return tau_1..tau_J, `[J, 1, 1]`."""
        steps = self.config.n_bridge
        return (
            torch.arange(1, steps + 1, dtype=like.dtype, device=like.device).view(-1, 1, 1) / steps
        )

    def sample(  # type: ignore[override]  # a class's hooks agree on its states
        self, batch: Batch, noise: Noise
    ) -> tuple[Bridge, Tensor | None]:
        """Integrate the ODEs of a^ and of the next actions in one call; draw the bridge."""
        self.branches.begin_deferred()
        s, x0, policy_noise = batch.observations, noise["policy_x0"], self.policy_noise(noise)
        field, rows, starts = self.online.networks["actor_fast"], s, x0
        if policy_noise is not None and self.flow_acts:
            rows = torch.cat([s, repeat_rows(batch.next_observations, policy_noise.shape[2])], 1)
            starts = torch.cat([x0, policy_noise[..., : self.dim].flatten(1, 2)], dim=1)
        x = self.flow(field, rows, starts)
        end, ode_x = x[:, : s.shape[1]], x[:, s.shape[1] :] if self.flow_acts else None

        tau = self.taus(x)
        points = tau * end.unsqueeze(1)
        points[:, :-1].addcmul_(1.0 - tau[:-1], noise["bridge_eps"])
        lead = points.shape[:-1]
        parts = [s.unsqueeze(1).expand(*lead, -1), points, tau.expand(*lead, 1)]
        inputs = torch.cat(parts, dim=-1).flatten(1, 2)
        velocity = mlp(field, inputs, **self.options).view_as(points)
        bridge = Bridge(points, inputs, velocity)
        return bridge, self.next_actions(batch.next_observations, policy_noise, ode_x)

    def adjoint(  # type: ignore[override]  # a class's hooks agree on its states
        self, observations: Tensor, path: Bridge, terminal: Tensor
    ) -> tuple[Tensor, Metrics]:
        """b_j = tau_j a, `[S, J, B, D]`, with a = -G, G the critics' gradient at the action."""
        adjoint = self.taus(terminal) * terminal.unsqueeze(1)
        with self.branches.on("log", after=(MAIN,)):
            sizes = adjoint_sizes(adjoint.flatten(1, 2), backend=self.small_ops)
            return adjoint, adjoint_metrics(sizes)

    def base_velocity(  # type: ignore[override]  # a class's hooks agree on its states
        self, observations: Tensor, path: Bridge
    ) -> Tensor:
        """Return v_base at the states of the bridge, `[S, J, B, D]`, without gradients."""
        with torch.no_grad():
            return mlp(self.base, path.inputs, **self.options).view_as(path.points)
