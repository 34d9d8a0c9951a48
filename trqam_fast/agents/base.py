"""What every agent has: batches, noise, the flat optimiser, acting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trqam_fast.agents.config import AgentConfig
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import MLPWeights, adam_step, mlp, ode_rollout
from trqam_fast.networks import MLPShape, ParameterBlock

MAX_GRAD_NORM = 1.0


class Noise(NamedTuple):
    """Every random number of one update; standard normal but for `bc_t`, uniform on [0, 1].

    Attributes:
        bc_x0: `[S, B, D]`.
        bc_t: `[S, B, 1]`.
        next_action: `[S, B, N, D]`, N candidates; None for behaviour cloning.
        sde_x0: `[S, B, D]`; None for behaviour cloning.
        sde_eps: `[S, K - 1, B, D]`; None for behaviour cloning.
        edit_x0: Start of the flow whose action is edited, `[S, B, D]`; QAM-E only, as all below.
        edit_eps: Of the edit policy, `[S, B, D]`.
        next_edit: Of the edit policy at the next observations, `[S, B, N, D]`.
    """

    bc_x0: Tensor
    bc_t: Tensor
    next_action: Tensor | None = None
    sde_x0: Tensor | None = None
    sde_eps: Tensor | None = None
    edit_x0: Tensor | None = None
    edit_eps: Tensor | None = None
    next_edit: Tensor | None = None


class Terms(NamedTuple):
    """Losses of one update and what led to them.

    Attributes:
        metrics: Scalars of each run by name, `[S]`.
        path_kl: Path KL of each run, `[S]`, or None.
        trajectory: X_0..X_K, `[S, K + 1, B, D]`, or None.
        adjoint: a_0..a_{K-1}, `[S, K, B, D]`, or None.
        next_actions: a', `[S, B, D]`, or None.
    """

    metrics: dict[str, Tensor]
    path_kl: Tensor | None = None
    trajectory: Tensor | None = None
    adjoint: Tensor | None = None
    next_actions: Tensor | None = None


Networks = dict[str, MLPWeights]


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """Return `[S, n * count, ...]` with every row of `[S, n, ...]` `count` times in a row."""
    return rows if count == 1 else rows.repeat_interleave(count, dim=1)


class Agent:
    """S independent runs: packed parameters, one Adam, and the policy.

    Subclasses define `loss`, which returns the summed loss of each run, and `acting_field`.
    """

    acting_field = "actor_slow"
    """Network that acts."""

    def __init__(
        self,
        config: AgentConfig,
        obs_dim: int,
        act_dim: int,
        shapes: dict[str, MLPShape],
        seeds: list[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        precision: str = "ieee",
    ) -> None:
        self.config = config
        self.backend = backend
        self.options = {"backend": backend, "precision": precision}
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.dim = act_dim * config.chunk_length
        self.runs, self.dtype, self.device = len(seeds), dtype, torch.device(device)
        self.online = ParameterBlock(shapes, self.runs, dtype=dtype, device=device, trainable=True)
        self.online.initialise([torch.Generator().manual_seed(seed) for seed in seeds])
        self.exp_avg = torch.zeros_like(self.online.flat)
        self.exp_avg_sq = torch.zeros_like(self.online.flat)
        self.steps = torch.zeros((), device=device)

    @staticmethod
    def field_shape(config: AgentConfig, obs_dim: int, act_dim: int) -> MLPShape:
        """Architecture of a velocity field on [s, x, t]."""
        dim = act_dim * config.chunk_length
        return MLPShape(obs_dim + dim + 1, config.actor_hidden_dims, dim, config.actor_layer_norm)

    @staticmethod
    def critic_shape(config: AgentConfig, obs_dim: int, act_dim: int) -> MLPShape:
        """Architecture of the critic ensemble on [s, a]."""
        dim = act_dim * config.chunk_length
        return MLPShape(
            obs_dim + dim, config.value_hidden_dims, 1, config.value_layer_norm, config.num_qs
        )

    def loss(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Return the loss summed over runs, whose gradients are independent, and its terms."""
        raise NotImplementedError

    def gradients(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Return the unclipped gradient of every run, `[S, P]`, and the terms of the loss."""
        total, terms = self.loss(batch, noise)
        gradients = torch.autograd.grad(total, self.online.leaves, allow_unused=True)
        return self.online.flatten_gradients(gradients), terms

    @torch.no_grad()
    def apply(self, gradient: Tensor, terms: Terms) -> None:
        """Clip each run's gradient, move the targets, take the optimiser step, update the dual."""
        config = self.config
        terms.metrics["grad_norm"] = adam_step(
            self.online.flat, gradient, self.exp_avg, self.exp_avg_sq, self.steps, lr=config.lr,
            max_norm=MAX_GRAD_NORM if config.clip_grad else None, targets=self.polyak_targets,
            tau=config.tau, backend="reference" if self.backend == "reference" else "auto",
        )  # fmt: skip
        self.dual_update(terms)

    def update(self, batch: Batch, noise: Noise) -> Terms:
        """Do one update of every run; nothing is read back to the host."""
        gradient, terms = self.gradients(batch, noise)
        self.apply(gradient, terms)
        return terms

    @property
    def polyak_targets(self) -> Tensor | None:
        """Targets of the last networks of the block, laid out like them, `[S, Q]`, or None."""
        return None

    def dual_update(self, terms: Terms) -> None:
        """Update dual variables, if there are any."""

    def draw_noise(self, generators: list[torch.Generator]) -> Noise:
        """Draw the noise of one update; run s uses `generators[s]` alone."""
        raise NotImplementedError

    def _draw(self, generators: list[torch.Generator], normals: int) -> tuple[Tensor, Tensor]:
        """Return `[S, normals]` standard normals and `[S, B]` uniforms."""
        options = {"dtype": self.dtype, "device": self.device}
        normal = torch.empty(self.runs, normals, **options)
        uniform = torch.empty(self.runs, self.config.batch_size, **options)
        for run, generator in enumerate(generators):
            normal[run].normal_(generator=generator)
            uniform[run].uniform_(generator=generator)
        return normal, uniform

    def cloning_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow-matching loss of the cloned field for each run, `[S]`.

        mean_b [ mean_d (v_bc(s, x_t, t) - (a - x_0))^2 * valid ] with x_t = (1 - t) x_0 + t a.
        """
        actions = self.policy_actions(batch)
        x_t = torch.lerp(noise.bc_x0, actions, noise.bc_t)
        inputs = torch.cat([batch.observations, x_t, noise.bc_t], dim=-1)
        velocity = mlp(self.online.networks["actor_slow"], inputs, **self.options)
        error = F.mse_loss(velocity, actions - noise.bc_x0, reduction="none").mean(-1)
        return (error * batch.valid).mean(-1)

    def policy_actions(self, batch: Batch) -> Tensor:
        """Actions in the policy's layout, `[S, B, D]`: all H of a chunk, or the first."""
        if self.config.action_chunking:
            return batch.actions.flatten(-2)
        return batch.actions[..., 0, :]

    def critic_values(self, critic: MLPWeights, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_e(s, a) `[S, E, N]` for `[S, N, O]` and `[S, N, D]`."""
        inputs = torch.cat([observations, actions], dim=-1)
        return mlp(critic, inputs, **self.options).squeeze(-1)

    def choose_candidate(
        self, critic: MLPWeights | None, observations: Tensor, candidates: Tensor
    ) -> Tensor:
        """Clip candidates `[S, n, N, D]` and keep the one the critics like best, `[S, n, D]`."""
        candidates = candidates.clamp(-1.0, 1.0)
        runs, rows, count, dim = candidates.shape
        if count == 1 or critic is None:
            return candidates[:, :, 0]
        values = self.critic_values(
            critic, repeat_rows(observations, count), candidates.flatten(1, 2)
        )
        best = values.mean(1).view(runs, rows, count).argmax(-1)
        index = best.view(runs, rows, 1, 1).expand(-1, -1, 1, dim)
        return candidates.gather(2, index).squeeze(2)

    @property
    def noise_dim(self) -> int:
        """Standard normals that an action of the policy takes."""
        return self.dim

    def refine(
        self, networks: Networks, observations: Tensor, actions: Tensor, noise: Tensor | None
    ) -> Tensor:
        """Return what the policy makes of the flow's actions `[S, n, D]`; here they are its own."""
        return actions

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor, run: int | None = None) -> Tensor:
        """Sample actions: the flow's ODE, clip, best of N.

        Args:
            observations: `[S, n, O]`, or `[1, n, O]` with `run`.
            noise: `[S, n, N, noise_dim]`, standard normal; likewise.
            run: Act with the policy of this run alone.

        Returns:
            `[S, n, D]` or `[1, n, D]` in [-1, 1]; with chunking D holds H actions in order.
        """
        networks = {name: network.detach() for name, network in self.online.networks.items()}
        if run is not None:
            networks = {
                name: network.map(lambda tensor: tensor[run : run + 1])
                for name, network in networks.items()
            }
        count = noise.shape[2]
        repeated, noise = repeat_rows(observations, count), noise.flatten(1, 2)
        x = ode_rollout(
            networks[self.acting_field],
            repeated,
            noise[..., : self.dim].contiguous(),
            self.config.flow_steps,
            **self.options,
        )
        x = self.refine(networks, repeated, x, noise[..., self.dim :])
        candidates = x.unflatten(1, (-1, count))
        return self.choose_candidate(networks.get("critic"), observations, candidates)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that restore the agent, each with the run axis first."""
        state = {"online": self.online.flat.clone()}
        state["exp_avg"], state["exp_avg_sq"] = self.exp_avg.clone(), self.exp_avg_sq.clone()
        state["step"] = torch.full((self.runs,), float(self.steps), dtype=torch.float64)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.online.flat.copy_(state["online"])
        self.exp_avg.copy_(state["exp_avg"])
        self.exp_avg_sq.copy_(state["exp_avg_sq"])
        self.steps.fill_(float(state["step"].max()))
