"""TRQAM's and QAM's update in plain PyTorch written for speed: opponents of our kernels.

No op of `trqam_fast.kernels` runs in an update here. The agents share with ours the parameter
block, the batches and the dual update, so that one can replace the other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adam import adam

from benchmarks.baselines.layers import (
    Layers,
    Tape,
    add_product,
    by_group,
    dense,
    forward,
    hidden,
    pull_back,
    split,
)
from trqam_fast.agents import Noise, Terms, TRQAMAgent
from trqam_fast.agents.base import MAX_GRAD_NORM, Losses, Metrics, repeat_rows
from trqam_fast.agents.branches import MAIN
from trqam_fast.agents.qam import adjoint_metrics
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import AdjointSizes, MLPWeights
from trqam_fast.kernels.adjoint_sizes.reference import adjoint_sizes

MIN_LAM = 1e-8
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8
WARMUP = 3
"""Updates before the capture of a graph."""


def along(observations: Tensor, points: Tensor, times: Tensor) -> Tensor:
    """Inputs of a field at all steps: `[..., K B, O + D + 1]` for points `[..., K, B, D]`."""
    lead = points.shape[:-1]
    observations = observations.unsqueeze(-3).expand(*lead, -1)
    return torch.cat([observations, points, times.expand(*lead, 1)], dim=-1).flatten(-3, -2)


class EagerPath(NamedTuple):
    """`Path` with the base field's velocities at X_0..X_{K-1}, `[S, K, B, D]`."""

    trajectory: Tensor
    velocity: Tensor
    base_velocity: Tensor

    @property
    def points(self) -> Tensor:
        """X_0..X_{K-1}, `[S, K, B, D]`."""
        return self.trajectory[:, :-1]

    @property
    def end(self) -> Tensor:
        """X_K, `[S, B, D]`."""
        return self.trajectory[:, -1]


class EagerUpdate:
    """Replaces the update of QAM or TRQAM by eager PyTorch; `backend` concerns acting alone.

    Matrix products are as precise as `torch.set_float32_matmul_precision` says.

    Attributes:
        batched: Evaluate critics, and the fields of several runs, in batched products instead of
            one by one. None does so on a GPU, where fewer calls pay. At paper size on one core
            one by one saves 4 % of an update: activations stay in the cache.
        stepwise: Take the gradient of the fine-tuned field through the rollout's own calls,
            instead of calling it once more for all steps, as the authors' code does. None does so
            on the CPU, where it saves 4 % of an update; it is ten times the calls.
    """

    batched: bool | None = None
    stepwise: bool | None = None

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        if self.options["precision"] != "ieee":
            raise ValueError(f"precision is {self.options['precision']!r}; use 'ieee'")
        if self.batched is None:
            self.batched = self.device.type != "cpu"
        if self.stepwise is None:
            self.stepwise = self.device.type == "cpu"
        # On the device beforehand: a copy from the host cannot be captured.
        steps = self.config.flow_steps
        times, h = torch.arange(steps, dtype=torch.float64) / steps, 1.0 / steps
        g_squared = 2.0 * (1.0 - times + h) / (times + h)
        self.times, self.next_times = self._column(times), self._column(times + h)
        self.g_squared = self._column(g_squared)
        self.kl_weights = self._column(2.0 * h / (self.config.chunk_length * g_squared))
        self.noise_scale = self._column((h * g_squared[:-1]).sqrt())
        self.keep = self._column(1.0 - h / (times + h))
        # Leaves of their own, members of an ensemble apart: no gradient is put together twice.
        self.online_layers, self.target_layers = {}, {}
        for name, weights in self.online.networks.items():
            leaves = weights.map(Tensor.detach)
            self.online_layers[name] = split(leaves, self.batched)
        for name, weights in self.target.networks.items():
            self.target_layers[name] = split(weights, self.batched)
        self.leaves = self._tensors(self.online_layers)
        for leaf in self.leaves:
            leaf.requires_grad_()
        self.flat_gradient = torch.zeros_like(self.online.flat)
        parts = iter(self.online.unflatten(self.flat_gradient))
        slots = {
            name: split(shape.group([next(parts) for _ in shape.tensor_shapes]), self.batched)
            for name, shape in self.online.shapes.items()
        }
        self.slots = self._tensors(slots)

    def _column(self, values: Tensor) -> Tensor:
        """One number for each flow step, `[steps, 1, 1]`."""
        return values.view(-1, 1, 1).to(self.device, self.dtype)

    @staticmethod
    def _tensors(networks: dict[str, list[Layers]]) -> list[Tensor]:
        return [t for groups in networks.values() for g in groups for ts in g for t in ts]

    def field(self, groups: list[Layers], observations: Tensor, x: Tensor, k: int) -> Tensor:
        """Velocities `[S, N, D]` at t_k."""
        time = self.times[k].expand(*x.shape[:2], 1)
        inputs = torch.cat([observations, x, time], dim=-1)
        return forward(groups, (self.runs,), inputs)

    def field_along(self, groups: list[Layers], observations: Tensor, points: Tensor) -> Tensor:
        """Velocities at X_k and t_k, `[S, K, B, D]`."""
        inputs = along(observations, points, self.times)
        return forward(groups, (self.runs,), inputs).view_as(points)

    def critic_values(self, critic: MLPWeights, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_e(s, a) `[S, E, N]` for `[S, N, O]` and `[S, N, D]`."""
        ours = critic is self.online.networks["critic"]
        layers = self.online_layers["critic"] if ours else split(critic, self.batched)
        inputs = torch.cat([observations, actions], dim=-1)
        return forward(layers, critic.lead, inputs).squeeze(-1)

    @torch.no_grad()
    def action_gradient(
        self, observations: Tensor, x: Tensor, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the scaled gradient of mean_e Q'_e(s, clip(X)) `[S, B, D]`, and Q' `[S, E, B]`."""
        config = self.config
        critic = (self.target_layers if config.use_target_grad else self.online_layers)["critic"]
        actions = x.clamp(-1.0, 1.0) if config.clip_adj else x
        seed = torch.full_like(x[..., :1], 1.0 / config.num_qs)
        pulled, values = [], []
        inputs = torch.cat([observations, actions], dim=-1)
        for layers, y, cotangent in by_group(critic, inputs, seed):
            tape: Tape = []
            values.append(dense(layers, len(layers.kernels) - 1, hidden(layers, y, tape)))
            first = layers.kernels[0][..., observations.shape[-1] :, :]
            pulled.append(pull_back(layers, tape, cotangent) @ first.mT)
        lead = (self.runs, config.num_qs, x.shape[1])
        gradient = scale * torch.stack(pulled).view(*lead, -1).sum(1)
        values = torch.stack(values).view(lead)
        return gradient * (x.abs() <= 1.0) if config.clip_adj else gradient, values

    def cloning_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow-matching loss of the cloned field for each run, `[S]`."""
        actions = self.policy_actions(batch)
        x_t = torch.lerp(noise["bc_x0"], actions, noise["bc_t"])
        inputs = torch.cat([batch.observations, x_t, noise["bc_t"]], dim=-1)
        velocity = forward(self.online_layers["actor_slow"], (self.runs,), inputs)
        error = F.mse_loss(velocity, actions - noise["bc_x0"], reduction="none").mean(-1)
        return (error * batch.valid).mean(-1)

    def rollout_together(
        self, field: list[Layers], batch: Batch, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `rollout`, with one call of the field for both at each step.

        X <- keep_k X + gain_k v + noise_k; keep is 1, gain h and the noise zero in the ODE's rows.
        The gradient is that of a second forward pass, batched over the steps.
        """
        steps, candidates = self.config.flow_steps, noise["next_action"]
        next_observations = repeat_rows(batch.next_observations, candidates.shape[2])
        observations = torch.cat([batch.observations, next_observations], dim=1)
        x = torch.cat([noise["sde_x0"], candidates.flatten(1, 2)], dim=1)
        rows, extra = noise["sde_x0"].shape[1], next_observations.shape[1]
        with torch.no_grad():
            ones = torch.ones_like(x[:1, :, :1]).expand(steps, -1, -1)
            keep = torch.cat([self.keep.expand(-1, rows, -1), ones[:, rows:]], dim=1)
            gain = torch.cat([2.0 * ones[:, :rows], ones[:, rows:]], dim=1) / steps
            added = F.pad(noise["sde_eps"] * self.noise_scale, (0, 0, 0, extra))
            points = [x[:, :rows]]
            for k in range(steps - 1):
                x = torch.addcmul(
                    torch.addcmul(added[:, k], x, keep[k]),
                    self.field(field, observations, x, k),
                    gain[k],
                )
                points.append(x[:, :rows])
            x = x[:, rows:]
            velocity = self.field(field, next_observations, x, steps - 1)
            x = torch.add(x, velocity, alpha=1.0 / steps)
            points = torch.stack(points, dim=1)
        return points, self.field_along(field, batch.observations, points), x

    def rollout(
        self, field: list[Layers], batch: Batch, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X_0..X_{K-1} and v_ft along them, `[S, K, B, D]`, and X_K of the ODE, `[S, B N, D]`."""
        if not self.stepwise:
            return self.rollout_together(field, batch, noise)
        steps, x, points, velocities = self.config.flow_steps, noise["sde_x0"], [], []
        added = noise["sde_eps"] * self.noise_scale
        for k in range(steps):
            points.append(x)
            velocities.append(self.field(field, batch.observations, x, k))
            if k < steps - 1:
                x = torch.addcmul(added[:, k], x, self.keep[k])
                x = torch.add(x, velocities[k].detach(), alpha=2.0 / steps)
        observations = repeat_rows(batch.next_observations, noise["next_action"].shape[2])
        x = noise["next_action"].flatten(1, 2)
        with torch.no_grad():
            for k in range(steps):
                x = torch.add(x, self.field(field, observations, x, k), alpha=1.0 / steps)
        return torch.stack(points, dim=1), torch.stack(velocities, dim=1), x

    def sweep(
        self, base: list[Layers], observations: Tensor, points: Tensor, terminal: Tensor
    ) -> Tensor:
        """Return a_0..a_{K-1}, `[S, K, B, D]`, for X_0..X_{K-1} and a_K.

        One forward pass for all steps, then a backward pass by hand for each. At paper size on
        one core a graph and `torch.autograd.grad` for each step took as long, within 1 % of an
        update, but they are twice the calls.
        """
        steps, rows, dim = points.shape[1:]
        columns = slice(observations.shape[-1], observations.shape[-1] + dim)
        inputs = along(observations, points, self.next_times)
        sweeps = []
        for layers, y, adjoint in by_group(base, inputs, terminal):
            tape: Tape = []
            hidden(layers, y, tape)
            tape = [tuple(t.unflatten(-2, (steps, rows)) for t in kept) for kept in tape]
            adjoints, first = [], layers.kernels[0][..., columns, :].mT
            for k in range(steps - 1, -1, -1):
                at_step = [tuple(t.select(-3, k) for t in kept) for kept in tape]
                pulled = pull_back(layers, at_step, adjoint)
                # 1 - h / (t_k + h) is k / (k + 1).
                adjoint = add_product(adjoint, pulled, first, beta=k / (k + 1), alpha=2.0 / steps)
                adjoints.append(adjoint)
            sweeps.append(torch.stack(adjoints[::-1], dim=-3))
        return torch.stack(sweeps).view_as(points)

    @property
    def base_layers(self) -> list[Layers]:
        """The field that the SDE is anchored to."""
        return (self.target_layers if self.config.target_actor else self.online_layers)[
            "actor_slow"
        ]

    def sample(self, batch: Batch, noise: Noise) -> tuple[EagerPath, Tensor]:
        """Roll out the SDE and the ODE of the next actions, which is chosen from."""
        points, velocity, ode_x = self.rollout(self.online_layers["actor_fast"], batch, noise)
        with torch.no_grad():
            base_velocity = self.field_along(self.base_layers, batch.observations, points)
            end = torch.add(points[:, -1], base_velocity[:, -1], alpha=1.0 / points.shape[1])
            next_actions = self.choose_candidate(
                self.online.networks["critic"], batch.next_observations,
                ode_x.view_as(noise["next_action"]),
            )  # fmt: skip
        trajectory = torch.cat([points, end.unsqueeze(1)], dim=1)
        return EagerPath(trajectory, velocity, base_velocity), next_actions

    @torch.no_grad()
    def adjoint(
        self, observations: Tensor, path: EagerPath, terminal: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Carry the terminal adjoint back through the base field."""
        adjoint = self.sweep(self.base_layers, observations, path.points, terminal)
        sizes = AdjointSizes(*adjoint_sizes(terminal, adjoint))
        return adjoint, adjoint_metrics(sizes)

    def base_velocity(self, observations: Tensor, path: EagerPath) -> Tensor:
        """Return v_base at the points of the path, which the rollout has computed."""
        return path.base_velocity

    def adjoint_loss(
        self, path: EagerPath, base_velocity: Tensor, adjoint: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the adjoint-matching loss and the path KL of each run, `[S]`."""
        lam = self.temperature().clamp(min=MIN_LAM).view(-1, 1, 1, 1)
        delta = path.velocity - base_velocity
        sigma = torch.sqrt(self.g_squared / lam)
        residual = torch.addcmul(sigma * adjoint, delta, 2.0 / sigma)
        loss = residual.square().sum((1, 3)).mean(-1)
        path_kl = (self.kl_weights * delta.detach().square()).sum((1, 3)).mean(-1)
        return loss, path_kl

    def gradients(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Return the unclipped gradient `[S, P]`, valid until the next call, and the terms."""
        gradients, terms = self.differentiate(batch, noise, self.leaves)
        torch._foreach_copy_(self.slots, gradients)
        return self.flat_gradient, terms

    @torch.no_grad()
    def apply(self, gradient: Tensor, terms: Terms) -> None:
        """Clip each run's gradient in place, move the targets, take the step, update the dual."""
        terms.metrics["grad_norm"] = self.step(gradient)
        self.after_step(terms.metrics)

    def step(self, gradient: Tensor) -> Tensor:
        """Do what `apply` does to the parameters; return each run's unclipped norm, `[S]`."""
        config = self.config
        norm = torch.linalg.vector_norm(gradient, dim=1)
        if config.clip_grad:
            gradient.mul_((MAX_GRAD_NORM / norm.clamp(min=MAX_GRAD_NORM)).unsqueeze(1))
        followed = self.online.flat[:, -self.target.flat.shape[1] :]
        self.target.flat.lerp_(followed, config.tau)
        adam(
            [self.online.flat], [gradient], [self.exp_avg], [self.exp_avg_sq], [], [self.steps],
            fused=True, capturable=gradient.is_cuda, amsgrad=False, beta1=BETA1, beta2=BETA2,
            lr=config.lr, weight_decay=0.0, eps=ADAM_EPS, maximize=False,
        )  # fmt: skip
        return norm


class EagerAgent(EagerUpdate, TRQAMAgent):
    """TRQAM in eager PyTorch."""


class CompiledAgent(EagerAgent):
    """The same with the losses and their backward pass as one compiled graph.

    Everything before the optimiser is in it, rollout and sweep unrolled; Adam's fused kernel is
    left as it is. Compiling for paper size takes minutes on a CPU. There `max-autotune`, tried with
    batched products, gained nothing.
    """

    compiler = "inductor"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        # fullgraph: a break, or one recompilation too many, is an error and no slow result.
        options = {"backend": self.compiler, "fullgraph": True, "dynamic": False}
        self.loss = torch.compile(self.summed, **options)

    def summed(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Return the sum of all losses, as one graph has one backward pass, and their terms."""
        losses, terms = super().loss(batch, noise)
        return {MAIN: sum(losses.values())}, terms


class GraphedAgent(EagerAgent):
    """The same, captured as a CUDA graph after `WARMUP` updates and replayed from then on.

    Batches and noise must keep their shapes. The terms that `update` returns live in the graph's
    memory: the next update overwrites them.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        if self.device.type != "cuda":
            raise ValueError(f"device is {self.device}; a captured graph needs a GPU")
        self.warm_ups = 0
        self.stream = torch.cuda.Stream(self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.terms: Terms | None = None

    def update(self, batch: Batch, noise: Noise) -> Terms:
        """Do one update of every run; nothing is read back to the host."""
        if self.warm_ups < WARMUP:
            self.warm_ups += 1
            return self.warm_up(batch, noise)
        if self.graph is None:
            self.capture(batch, noise)
        # The current stream orders the copies before this replay and after the previous one.
        torch._foreach_copy_(self.inputs, [*batch, *noise.values()])
        self.graph.replay()
        return self.terms

    def warm_up(self, batch: Batch, noise: Noise) -> Terms:
        """Do one update on another stream, as capture requires of what precedes it."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            terms = super().update(batch, noise)
        current.wait_stream(self.stream)
        return terms

    def capture(self, batch: Batch, noise: Noise) -> None:
        """Capture one update, which does not execute it."""
        batch = Batch(*map(torch.clone, batch))
        noise = {name: tensor.clone() for name, tensor in noise.items()}
        self.inputs = [*batch, *noise.values()]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph):
            self.terms = super().update(batch, noise)
        self.graph = graph
