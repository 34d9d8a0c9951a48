"""Critics, as a part of the algorithms that have some: their networks, targets and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from trqam_fast.agents.checks import mistake
from trqam_fast.agents.config import Group
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import td_loss
from trqam_fast.kernels.td_target.reference import pessimistic
from trqam_fast.networks import MLPShape

if TYPE_CHECKING:
    from trqam_fast.agents.base import Agent, Metrics, Shapes

METRICS = ("q_mean", "q_min", "q_max")


@dataclass(frozen=True)
class ImplicitConfig(Group):
    """What the critics learn from."""

    critic: Literal["td", "implicit"] = "td"
    """td: from the value of the policy's next action; implicit: from a state value that is an
    expectile over the actions of the data (as in IQL), so that no target samples the policy."""
    expectile: float = 0.9
    """Expectile of the state value, of --critic implicit; 0.5 is the mean."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require("expectile", 0 < self.expectile < 1, "use a number between 0 and 1")


class TDCritic:
    """Temporal differences to the policy's next action, with the ensemble's pessimism."""

    samples_policy = True
    """Whether targets need next actions of the policy."""

    def shapes(self, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the networks: the ensemble on [s, a]."""
        return {"critic": critic_shape(config, obs_dim, act_dim)}

    @torch.no_grad()
    def next_values(self, agent: Agent, batch: Batch, next_actions: Tensor | None) -> Tensor:
        """Return what the critics' targets are made of, Q'_e(s', a'), `[S, E, B]`.

        Raises:
            UsageError: there are no next actions.
        """
        if next_actions is None:
            raise mistake(
                type(agent), "its critics learn from next actions, of which it draws no noise",
                'add "next_action" to what its draws returns',
            )  # fmt: skip
        critic = agent.target.networks["critic"]
        return agent.critic_values(critic, batch.next_observations, next_actions)

    def value_loss(self, agent: Agent, batch: Batch) -> tuple[Tensor | None, Metrics]:
        """Return the loss of a state value; there is none."""
        return None, {}


class ImplicitCritic(TDCritic):
    """Temporal differences to a state value, an expectile of Q' over the actions of the data.

        y = R + gamma^H m V(s')
        L_V = mean_b |tau - 1(u < 0)| u^2 valid,    u = mean_e Q'_e(s, a) - rho std_e Q'_e - V(s)

    Source: Implicit Q-Learning (arXiv 2110.06169), with this project's ensemble and its pessimism.
    """

    samples_policy = False

    def shapes(self, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the networks: V on [s], and the ensemble on [s, a]."""
        value = MLPShape(obs_dim, config.value_hidden_dims, 1, config.value_layer_norm)
        return {"value": value, **super().shapes(config, obs_dim, act_dim)}

    @torch.no_grad()
    def next_values(self, agent: Agent, batch: Batch, next_actions: Tensor | None) -> Tensor:
        """Return V(s'), `[S, 1, B]`; a single value has no deviation."""
        return agent.network("value", batch.next_observations).mT

    def value_loss(self, agent: Agent, batch: Batch) -> tuple[Tensor | None, Metrics]:
        """Return L_V, `[S]`, and the mean of V."""
        with torch.no_grad():
            critic = agent.target.networks["critic"]
            q = agent.critic_values(critic, batch.observations, agent.policy_actions(batch))
            q = pessimistic(q, agent.config.rho)
        value = agent.network("value", batch.observations).squeeze(-1)
        error = q - value
        weight = torch.where(error < 0, 1.0 - agent.config.expectile, agent.config.expectile)
        loss = (weight * error.square() * batch.valid).mean(-1)
        return loss, {"value_loss": loss.detach(), "v_mean": value.detach().mean(-1)}


CRITICS: dict[str, TDCritic] = {"td": TDCritic(), "implicit": ImplicitCritic()}


def critic_shape(config: Any, obs_dim: int, act_dim: int) -> MLPShape:
    """Architecture of the critic ensemble on [s, a]."""
    dim = act_dim * config.chunk_length
    return MLPShape(
        obs_dim + dim, config.value_hidden_dims, 1, config.value_layer_norm, config.num_qs
    )


def temporal_difference(
    agent: Agent,
    q: Tensor | None,
    next_values: Tensor,
    batch: Batch,
    policy_values: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return mean_{e,b} (Q_e(s, a) - y)^2 valid, `[S]`, and what is logged of the values.

    y = R + gamma^H m (mean_e Q'_e - rho std_e Q'_e), of rewards times `reward_scale`.

    Args:
        agent: The algorithm.
        q: Q_e(s, a) of the data, `[S, E, B]`.
        next_values: What `next_values` returned of a `TDCritic`.
        batch: The batch.
        policy_values: Values of the policy's actions, `[S, E, B]`, for the metric ``value_gap``.

    Raises:
        UsageError: there is no q.
    """
    if q is None:
        raise mistake(
            type(agent), "its data_values returned None, which its critic_loss needs",
            "return Q_e(s, a), or define critic_loss",
        )  # fmt: skip
    config, rewards = agent.config, batch.rewards
    if config.reward_scale != 1.0:
        rewards = config.reward_scale * rewards
    found = td_loss(
        q, next_values, rewards, batch.masks, batch.valid, policy_values=policy_values,
        discount=config.discount**config.horizon_length, rho=config.rho, backend=agent.small_ops,
    )  # fmt: skip
    metrics = {
        "critic_loss": found.loss.detach(), "q_mean": found.mean, "q_min": found.min,
        "q_max": found.max,
    }  # fmt: skip
    return found.loss, metrics if found.gap is None else metrics | {"value_gap": found.gap}
