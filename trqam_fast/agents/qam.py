"""QAM: Q-learning with adjoint matching at a fixed temperature; what TRQAM and others extend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trqam_fast.agents import critics
from trqam_fast.agents.base import (
    Agent,
    Losses,
    Metrics,
    Noise,
    Recorded,
    Shapes,
    Terms,
    field_shape,
    repeat_rows,
)
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.config import (
    AdjointConfig,
    AnchorConfig,
    ByDomain,
    CloningConfig,
    CriticConfig,
    Setting,
)
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    AdjointSizes,
    BasePass,
    MLPWeights,
    NoiseSchedule,
    action_gradient,
    adjoint_matching,
    adjoint_sizes,
    both_with_operands,
    lean_adjoint,
    rollout_operands,
    sde_rollout,
    velocity_along,
)

QAM_AUTHORS = "QAM's authors"
INV_TEMPS = {
    "puzzle-3x3": 3.0, "scene": 1.0, "cube-double": 1.0, "antmaze-large": 10.0,
    "humanoidmaze-medium": 3.0, "cube-triple": 3.0, "cube-quadruple": 1.0, "antmaze-giant": 3.0,
    "humanoidmaze-large": 3.0, "puzzle-4x4": 30.0,
}  # fmt: skip

ADJOINT_METRICS = ("adjoint_mean", "adjoint_std", "adjoint_max", "adjoint_gain")


@dataclass(frozen=True)
class QAMConfig(CloningConfig, CriticConfig, AnchorConfig, AdjointConfig):
    """QAM's temperature."""

    inv_temp: float = 1.0
    """Inverse temperature that multiplies the terminal adjoint; 0 acts with the cloned field."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_not_negative("inv_temp")


class Path(NamedTuple):
    """States of the policy's generative process, at which it is matched to its adjoints.

    Attributes:
        trajectory: X_0..X_K, `[S, K + 1, B, D]`; the policy is matched at the first K of them.
        velocity: v_ft(s, X_k, t_k), `[S, K, B, D]`, differentiable in the field's weights.
        base: What the rollout found of the base field, if it did (`sde_rollout`).
    """

    trajectory: Tensor
    velocity: Tensor
    base: BasePass | None = None

    @property
    def points(self) -> Tensor:
        """X_0..X_{K-1}, `[S, K, B, D]`."""
        return self.trajectory[:, :-1]

    @property
    def end(self) -> Tensor:
        """X_K, the policy's action before it is clipped, `[S, B, D]`."""
        return self.trajectory[:, -1]


class QAMAgent(Agent):
    """Fine-tuned field v_ft, cloned field v_bc, critics Q, and the targets of the last two.

    One update is `loss`, in the order of docs/algorithm.md; each of its paragraphs is a method
    that an algorithm may replace. sigma_k = g_k, and the terminal adjoint is scaled by `inv_temp`.
    """

    label, colour = "QAM", "#d55e00"
    Config: ClassVar[type[CloningConfig]] = QAMConfig
    metrics: ClassVar[tuple[str, ...]] = ("critic_loss", "bc_loss", "adjoint_loss", "path_kl",
               *critics.METRICS, *ADJOINT_METRICS, "value_gap")  # fmt: skip
    published = {
        "inv_temp": ByDomain(
            {domain: Setting(value, QAM_AUTHORS) for domain, value in INV_TEMPS.items()},
            Setting(1.0, "this project"),
        )
    }
    acting_field = "actor_fast"
    targets = ("actor_slow", "critic")
    late = "critic"
    cloned = ("actor_fast", "actor_slow")
    first_updates: ClassVar[tuple[str, ...]] = ("critic_warmup",)
    recorded = Recorded(
        outputs={"xs": "points", "adjs": "adjoint", "next_actions": "next_actions"},
        infos={
            "critic/critic_loss": "critic_loss", "critic/q_mean": "q_mean",
            "critic/q_max": "q_max", "critic/q_min": "q_min", "actor/flow_loss": "bc_loss",
            "actor/adj_loss": "adjoint_loss", "actor/fast_loss": "adjoint_loss",
            "actor/path_kl": "path_kl", "actor/adj_mean": "adjoint_mean",
            "actor/adj_std": "adjoint_std", "actor/adj_max": "adjoint_max",
        },
        one_more=("sde_eps",),
    )  # fmt: skip

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        if getattr(config, "inv_temp", None) == 0:
            self.acting_field = "actor_slow"

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return both fields and the critics."""
        field = field_shape(config, obs_dim, act_dim)
        parts = cls.critic_of(config).shapes(config, obs_dim, act_dim)
        return {"actor_fast": field, "actor_slow": field, **parts}

    @staticmethod
    def critic_of(config: Any) -> critics.TDCritic:
        """Return what the critics learn from."""
        return critics.CRITICS[getattr(config, "critic", "td")]

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return the cloning loss's, the rollout's, and the critics' at the data and at X_K."""
        return {"actor_slow": 1, "actor_fast": config.flow_steps, "critic": 2}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return x_0 of the cloning loss, x_0 and eps of the SDE, x_0 of the next actions."""
        batch, dim, config = self.config.batch_size, self.dim, self.config
        candidates = {"next_action": (batch, config.best_of_n, self.noise_dim)}
        return {
            "bc_x0": (batch, dim), "sde_x0": (batch, dim),
            **(candidates if self.critic.samples_policy else {}),
            "sde_eps": (config.flow_steps - 1, batch, dim),
        }  # fmt: skip

    @property
    def critic(self) -> critics.TDCritic:
        """What the critics learn from."""
        return self.critic_of(self.config)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; a frozen field starts without momentum."""
        super().load_state_dict(state)
        if self.config.freeze_base:
            start, end = self.online.spans["actor_slow"]
            for moments in (self.exp_avg, self.exp_avg_sq):
                moments[:, start:end].zero_()

    @property
    def base(self) -> MLPWeights:
        """v_base, the field that the SDE is anchored to."""
        if self.config.target_actor and not self.config.freeze_base:
            return self.target.networks["actor_slow"]
        return self.online.networks["actor_slow"].detach()

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Critic, behaviour-cloning and adjoint-matching losses, each on its branch.

        Rollout, gradient of the values and sweep are the longest path. Rollout and sweep leave most
        of a GPU free, so what is not on that path goes beside those two.
        """
        path, next_actions = self.sample(batch, noise)
        with self.prepared_critics():
            with self.branches.on("critic", after=("operands",)):
                q = self.data_values(batch)
            with self.branches.on("cloning"), torch.set_grad_enabled(not self.config.freeze_base):
                cloning_loss = self.cloning_loss(batch, noise)
            with self.branches.on(MAIN, after=("operands",)):
                terminal, values = self.terminal_adjoint(batch.observations, path.end)
            with self.branches.on("critic", after=(MAIN,)):
                critic_loss, critic_metrics = self.critic_loss(
                    batch, q, next_actions, path.end, values
                )
        with self.branches.on("anchor", after=(MAIN,)):
            base_velocity = self.base_velocity(batch.observations, path)
        adjoint, adjoint_metrics = self.adjoint(batch.observations, path, terminal)
        with self.branches.on(MAIN, after=("anchor",)):
            adjoint_loss, path_kl = self.adjoint_loss(path, base_velocity, adjoint)

        metrics = {
            "bc_loss": cloning_loss.detach(), "adjoint_loss": adjoint_loss.detach(),
            "path_kl": path_kl,
        }  # fmt: skip
        outputs = {"points": path.points, "end": path.end, "adjoint": adjoint}
        if next_actions is not None:
            outputs["next_actions"] = next_actions
        metrics |= critic_metrics | adjoint_metrics
        self.branches.keep(path, terminal, values, base_velocity)
        with self.branches.on("cloning"):
            cloning_loss = self.warmed_up(cloning_loss)
        losses = {
            "critic": critic_loss, "cloning": cloning_loss, MAIN: self.warmed_up(adjoint_loss),
        }  # fmt: skip
        return losses, Terms(metrics, outputs)

    def warmed_up(self, loss: Tensor) -> Tensor:
        """Return a policy's loss, which is 0 while the critics warm up."""
        return loss * self.warm if self.config.critic_warmup > 0 else loss

    @property
    def warm(self) -> Tensor:
        """Whether the critics' warm-up is over for the update that is being computed, `[]`."""
        return self.steps >= self.config.critic_warmup

    @contextmanager
    def prepared_critics(self) -> Iterator[None]:
        """Within it critics and their targets have operands, which one launch makes of all."""
        online, target = self.online.networks, self.target.networks
        plain = online["critic"], target["critic"]
        with self.branches.on("operands"):
            self.branches.catch_up()
            prepared = both_with_operands(*plain, self.obs_dim, **self.options)
        self.branches.keep(prepared)
        online["critic"], target["critic"] = prepared
        try:
            yield
        finally:
            online["critic"], target["critic"] = plain

    def sample(self, batch: Batch, noise: Noise) -> tuple[Path, Tensor | None]:
        """Roll out the SDE and, in the same call, the ODE of the next actions a' `[S, B, D]`.

        What that reads of the fields' weights is made first: beside the last update's step of the
        critics, which fills a GPU, it would take several times as long.
        """
        fields = (self.online.networks["actor_fast"], self.base)
        operands = rollout_operands(*fields, **self.options)
        self.branches.begin_deferred()
        policy_noise = self.policy_noise(noise)
        rows = x0 = None
        if policy_noise is not None and self.flow_acts:
            rows = repeat_rows(batch.next_observations, policy_noise.shape[2])
            x0 = policy_noise[..., : self.dim].flatten(1, 2)
        rollout = sde_rollout(
            *fields, batch.observations, noise["sde_x0"], noise["sde_eps"], ode_observations=rows,
            ode_x0=x0, with_base=True, operands=operands, **self.options,
        )  # fmt: skip
        path = Path(rollout.trajectory, rollout.velocity, rollout.base)
        return path, self.next_actions(batch.next_observations, policy_noise, rollout.ode_x)

    @property
    def flow_acts(self) -> bool:
        """Whether the policy acts by the flow of the field that is fine-tuned, and `refine`."""
        return self.acting_field == "actor_fast" and type(self).propose is Agent.propose

    @torch.no_grad()
    def next_actions(
        self, observations: Tensor, policy_noise: Tensor | None, ode_x: Tensor | None
    ) -> Tensor | None:
        """Return a' `[S, B, D]`: the rest of `act` if `flow_acts`, else all of it; None for none.

        Args:
            observations: s', `[S, B, O]`.
            policy_noise: What `policy_noise` returned; the flow has taken the first D of each.
            ode_x: X_K of the fine-tuned field, `[S, B N, D]`, if `flow_acts`.
        """
        if policy_noise is None:
            return None
        if ode_x is None:
            return self.act(observations, policy_noise)
        rows = repeat_rows(observations, policy_noise.shape[2])
        rest = policy_noise.flatten(1, 2)[..., self.dim :]
        candidates = self.refine(self.all_networks(), rows, ode_x, rest)
        candidates = candidates.unflatten(1, policy_noise.shape[1:3])
        return self.choose_candidate(self.online.networks["critic"], observations, candidates)

    def policy_noise(self, noise: Noise) -> Tensor | None:
        """Return the noise of the next actions, `[S, B, N, noise_dim]`; None if there are none."""
        return noise.get("next_action")

    def data_values(self, batch: Batch) -> Tensor | None:
        """Q_e(s, a) `[S, E, B]`, before the rollout; None where `critic_loss` evaluates them."""
        critic = self.online.networks["critic"]
        return self.critic_values(critic, batch.observations, self.policy_actions(batch))

    def critic_loss(
        self,
        batch: Batch,
        q: Tensor | None,
        next_actions: Tensor | None,
        end: Tensor,
        policy_values: Tensor,
    ) -> tuple[Tensor, Metrics]:
        """mean_{e,b} (Q_e(s, a) - y)^2 valid, `[S]`, and what is logged of the critics.

        Args:
            batch: The batch.
            q: What `data_values` returned.
            next_actions: a', `[S, B, D]`; None where `critic` samples none.
            end: X_K, which others penalise.
            policy_values: Q' of `terminal_adjoint` at X_K, `[S, E, B]`.
        """
        next_values = self.critic.next_values(self, batch, next_actions)
        return critics.temporal_difference(self, q, next_values, batch, policy_values)

    def adjoint(self, observations: Tensor, path: Path, terminal: Tensor) -> tuple[Tensor, Metrics]:
        """Carry the terminal adjoint back through the base field: a_0..a_{K-1} `[S, K, B, D]`.

        Args:
            observations: `[S, B, O]`.
            path: The states.
            terminal: a_K, `[S, B, D]`.
        """
        tape = None if path.base is None else path.base.tape
        adjoint = lean_adjoint(
            self.base, observations, path.trajectory, terminal, tape=tape, **self.options
        )
        with self.branches.on("log", after=(MAIN,)):
            sizes = adjoint_sizes(terminal, adjoint, backend=self.small_ops)
            return adjoint, adjoint_metrics(sizes)

    @property
    def adjoint_scale(self) -> float:
        """What the gradient of the values is multiplied by to be the terminal adjoint.

        A number: what changes from update to update goes into `terminal_adjoint`.
        """
        return -self.config.inv_temp

    def terminal_adjoint(self, observations: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a_K = `adjoint_scale` d/dX mean_e Q'_e(s, clip(X, -1, 1)), and Q' `[S, E, B]`.

        Args:
            observations: `[S, B, O]`.
            x: X_K, `[S, B, D]`.
        """
        return self.action_gradient(observations, x, self.adjoint_scale)

    def action_gradient(
        self, observations: Tensor, x: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return mean_e Q'_e(s, clip(X, -1, 1))'s gradient in X `[S, B, D]`, and Q' `[S, E, B]`.

        The gradient, times `scale`, is zero where X lies outside [-1, 1].
        """
        self.branches.catch_up()
        targets = getattr(self.config, "use_target_grad", True)
        critic = (self.target if targets else self.online).networks["critic"]
        return action_gradient(
            critic, observations, x, clip=getattr(self.config, "clip_adj", True), scale=scale,
            **self.options,
        )  # fmt: skip

    def temperature(self) -> Tensor:
        """lam_scale lambda, `[S]`: what sigma_k^2 = g_k^2 / (lam_scale lambda) is divided by."""
        return torch.ones(self.runs, dtype=self.dtype, device=self.device)

    def adjoint_loss(
        self, path: Path, base_velocity: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean_b sum_k |2 Delta_k / sigma_k + sigma_k a_k|^2 and the path KL, `[S]` each."""
        return adjoint_matching(
            path.velocity, base_velocity, adjoint, self.temperature(),
            horizon=self.config.chunk_length, schedule=self.schedule, backend=self.backend,
        )  # fmt: skip

    def base_velocity(self, observations: Tensor, path: Path) -> Tensor:
        """Return v_base at the points of the path, `[S, K, B, D]`, without gradients."""
        if path.base is not None:
            return path.base.velocity
        return velocity_along(self.base, observations, path.points, **self.options)

    @property
    def schedule(self) -> NoiseSchedule:
        """h_k and g_k^2 of the points of the path."""
        return NoiseSchedule.flow(self.config.flow_steps)


def adjoint_metrics(sizes: AdjointSizes) -> Metrics:
    """Return sizes of adjoints under the names by which they are logged."""
    return {f"adjoint_{name}": size for name, size in sizes._asdict().items() if size is not None}
