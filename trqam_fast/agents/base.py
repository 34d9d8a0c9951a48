"""What every algorithm has: packed networks, noise, the flat optimiser, targets, acting, state.

Longer than 400 lines, as it is what a reader of one algorithm's file has to know besides.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from torch import Tensor

from trqam_fast.agents.acting import PolicyGraphs
from trqam_fast.agents.branches import Branches
from trqam_fast.agents.checks import (
    DrawnNoise,
    check_candidates,
    check_draws,
    check_networks,
    check_numbers,
    form_of,
    mistake,
)
from trqam_fast.agents.config import ByDomain, CloningConfig
from trqam_fast.agents.dual import DualController
from trqam_fast.data.batch import Batch
from trqam_fast.kernels import (
    AdamNorm,
    Backend,
    Draws,
    MLPWeights,
    Precision,
    adam_norm,
    adam_step,
    flow_matching_inputs,
    mlp,
    ode_rollout,
    squared_error,
)
from trqam_fast.kernels.cotangent import unit_cotangent
from trqam_fast.networks import MLPShape, ParameterBlock, ScalarShape
from trqam_fast.randomness import Randomness

MAX_GRAD_NORM = 1.0

BY_FLOW = ("act", "choose", "propose", "flow")
"""Methods of `Agent` that make the flow of `acting_field` act; a subclass may replace any."""
CHOOSING = ("act", "choose", "choose_candidate", "candidates")
"""Those that let the network ``critic`` choose among candidates."""

Metrics = dict[str, Tensor]
"""Scalars of each run by name, `[S]`, without gradients."""

Losses = dict[str, Tensor]
"""What an update descends, `[S]` each, by the branch that computes it and its gradient."""

Networks = dict[str, MLPWeights]
"""Weights by name, those of a Polyak target as ``target_NAME``."""

Noise = dict[str, Tensor]
"""Every random number of one update by name, as the algorithm's `draws` declare them."""

Shapes = dict[str, MLPShape | ScalarShape]
"""Architecture of the online networks by name."""


class Options(TypedDict):
    """How ops that pass through networks compute; what they all take."""

    backend: Backend
    precision: Precision


class Terms(NamedTuple):
    """Losses of one update and what led to them.

    Attributes:
        metrics: Scalars of each run by name, `[S]`.
        outputs: Intermediate results by name, for comparisons; what each is, its algorithm says.
    """

    metrics: Metrics
    outputs: dict[str, Tensor]


class Recorded(NamedTuple):
    """What the authors' code calls the parts of an algorithm, in recordings of it.

    Attributes:
        networks: Their name of a network by ours, where it differs.
        noise: Their name of a draw by ours, where it differs.
        outputs: Our name by theirs of what led to the losses.
        infos: Our metric by theirs.
        settings: Our name of a hyperparameter by theirs, where it differs.
        per_dimension: Those of their hyperparameters that are ours times D.
        one_more: Our draws of which they make one more, for a last step that uses none.
    """

    networks: dict[str, str] = {}
    noise: dict[str, str] = {}
    outputs: dict[str, str] = {}
    infos: dict[str, str] = {}
    settings: dict[str, str] = {}
    per_dimension: tuple[str, ...] = ()
    one_more: tuple[str, ...] = ()


def checked(found: Any, kind: type[Agent], runs: int) -> tuple[Losses, Terms]:
    """Return those losses of what `loss` of an algorithm returned that can be descended, and terms.

    Raises:
        UsageError: it returned something else, none that can, or one that is not one number of each
            run.
    """
    remedy = "return {MAIN: loss}, Terms(metrics, outputs)"
    match found:
        case (dict() as losses, Terms(metrics=dict()) as terms):
            check_numbers(kind, "loss", losses, runs)
        case _:
            raise mistake(kind, f"what its loss returned is {form_of(found)}", remedy)
    descended = {name: loss for name, loss in losses.items() if loss.requires_grad}
    if not descended:
        raise mistake(kind, "none of the losses it returned is differentiable", remedy)
    return descended, terms


def added(*gradients: Tensor | None) -> Tensor | None:
    """Return the sum of a tensor's gradients in several losses; None if it is in none of them."""
    found = [gradient for gradient in gradients if gradient is not None]
    return sum(found[1:], found[0]) if found else None


def repeat_rows(rows: Tensor, count: int) -> Tensor:
    """Return `[S, n * count, ...]` with every row of `[S, n, ...]` `count` times in a row."""
    return rows if count == 1 else rows.repeat_interleave(count, dim=1)


class Agent:
    """S independent runs of one algorithm: packed parameters, one Adam, the policy.

    An algorithm is a subclass. It declares what is its own in the class attributes below, defines
    `network_shapes`, `draws` and `loss`, and has one line in the registry; whatever else there is
    - run folders, sweeps, status, reports, replays of recordings - reads the declaration.

    Args:
        config: Hyperparameters; an object of `Config`, or one that has the same values and more.
        obs_dim: Width of an observation, O.
        act_dim: Width of an action, A.
        seeds: One run for each.
        dtype: float32, or float64 for comparisons.
        device: Torch device.
        backend: Implementation of the ops.
        precision: Operands of matrix products.
    """

    label: ClassVar[str]
    """The algorithm's name in tables and pictures."""

    colour: ClassVar[str | None] = None
    """Its colour in every picture, e.g. ``#0072b2``; None takes one that is free."""

    Config: ClassVar[type[CloningConfig]] = CloningConfig
    """Its hyperparameters: a dataclass that inherits the groups it uses."""

    metrics: ClassVar[tuple[str, ...]] = ()
    """What it logs, in the order of the columns; ``grad_norm`` is added."""

    published: ClassVar[dict[str, ByDomain]] = {}
    """Published values, by domain, of hyperparameters that no other algorithm shares."""

    fine_tunes: ClassVar[bool] = True
    """Whether it has stages after pretraining."""

    controller: ClassVar[type[DualController] | None] = None
    """What keeps the path KL to the configuration's ``kl_budget``; None without a budget."""

    acting_field: str = "actor_slow"
    """Network whose flow acts; an object may have another than its class."""

    targets: ClassVar[tuple[str, ...]] = ()
    """Networks that have a Polyak target, in the order in which those are stored."""

    late: ClassVar[str | None] = None
    """The last of `targets`, if an update does not begin with that network: its optimiser's step
    may go on beside the next update, on the branch of its name. Elsewhere `loss` reads it and its
    target through `critic_values` and `network` alone, which wait for that step."""

    cloned: ClassVar[tuple[str, ...]] = ("actor_slow",)
    """Networks that start from a pretrained velocity field, and their targets with them."""

    first_updates: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters of the first updates of fine-tuning alone, which a run that starts from
    fine-tuned weights is past: with those it takes none but their defaults."""

    recorded: ClassVar[Recorded] = Recorded()
    """What the authors' recordings call its parts."""

    def __init__(
        self,
        config: Any,
        obs_dim: int,
        act_dim: int,
        seeds: list[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: Backend = "auto",
        precision: Precision = "ieee",
    ) -> None:
        self.config = config
        self.backend = backend
        self.options: Options = {"backend": backend, "precision": precision}
        self.branches = Branches()
        # What is not worth C++ code is PyTorch's there.
        self.small_ops: Backend = "auto" if backend == "cpp" else backend
        self.obs_dim, self.act_dim = obs_dim, act_dim
        self.dim = act_dim * config.chunk_length
        self.runs, self.dtype, self.device = len(seeds), dtype, torch.device(device)
        # How `trqam_fast.agents.acting.act` replays the policy; None does not.
        self.policy_graphs = PolicyGraphs(self.device) if self.device.type == "cuda" else None
        shapes = self.stored_shapes(config, obs_dim, act_dim)
        self.online = ParameterBlock(shapes, self.runs, dtype=dtype, device=device, trainable=True)
        self.online.initialise([torch.Generator().manual_seed(seed) for seed in seeds])
        followed = {name: shapes[name] for name in self.targets}
        self.target = ParameterBlock(followed, self.runs, dtype=dtype, device=device)
        self.copy_targets()
        self.exp_avg = torch.zeros_like(self.online.flat)
        self.exp_avg_sq = torch.zeros_like(self.online.flat)
        self.steps = torch.zeros((), dtype=torch.float32, device=device)
        self.ones = unit_cotangent(self.runs, dtype=dtype, device=device)

    @classmethod
    def network_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return the architecture of all online networks by name."""
        raise NotImplementedError

    @classmethod
    def stored_shapes(cls, config: Any, obs_dim: int, act_dim: int) -> Shapes:
        """Return `network_shapes` in storage order: those with targets last, in their order.

        One operation then moves all targets.

        Raises:
            UsageError: the class names a network that is none of them, or acts by one that cannot.
        """
        shapes = dict(cls.network_shapes(config, obs_dim, act_dim))
        field = field_shape(config, obs_dim, act_dim)
        check_networks(cls, shapes, field, by_flow=inherits(cls, *BY_FLOW))
        if inherits(cls, *CHOOSING):
            check_candidates(cls, config, shapes)
        last = {name: shapes.pop(name) for name in cls.targets}
        return {**shapes, **last}

    @classmethod
    def tapes(cls, config: Any) -> dict[str, int]:
        """Return, by network, how many batches an update keeps the activations of at a time."""
        return {"actor_slow": 1}

    def draws(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes, without the run axis, of all standard normals of one update."""
        raise NotImplementedError

    def loss(self, batch: Batch, noise: Noise) -> tuple[Losses, Terms]:
        """Return the losses, of which the sum is descended, and their terms.

        All may be one loss on the branch `MAIN`. Of several each is differentiated on its own, so
        they share no differentiable part; those that do are added up on one branch.
        """
        raise NotImplementedError

    def gradients(self, batch: Batch, noise: Noise) -> tuple[Tensor, Terms]:
        """Return the unclipped gradient of every run, `[S, P]`, and the terms of the loss."""
        gradients, terms = self.differentiate(batch, noise, self.online.leaves)
        return self.online.flatten_gradients(gradients), terms

    def differentiate(
        self, batch: Batch, noise: Noise, leaves: list[Tensor]
    ) -> tuple[tuple[Tensor | None, ...], Terms]:
        """Return the gradients of `leaves`, None of those in no loss, and the terms of the loss.

        Raises:
            UsageError: `loss` does not return losses of every run by branch, and terms.
        """
        parts = []
        with self.branches.side_by_side():
            losses, terms = checked(self.loss(batch, noise), type(self), self.runs)
            for branch, loss in losses.items():
                with self.branches.on(branch):
                    # Runs are independent: the gradient of their sum is that of each.
                    parts.append(torch.autograd.grad(loss, leaves, self.ones, allow_unused=True))
        return tuple(map(added, *parts)), terms

    @torch.no_grad()
    def apply(self, gradient: Tensor, terms: Terms) -> None:
        """Clip each run's gradient, move the targets, take the optimiser step, update the dual."""
        terms.metrics["grad_norm"] = self.optimise(gradient)
        self.after_step(terms.metrics)

    def optimise(self, gradient: Tensor) -> Tensor:
        """Take the optimiser's step, that of `late` later if it can; return norms, `[S]`."""
        state = (self.online.flat, gradient, self.exp_avg, self.exp_avg_sq)
        targets = self.target.flat
        norm = None
        if self.late is not None and self.branches.joined:
            norm = adam_norm(gradient, self.steps, backend=self.backend)
        if self.late is None or norm is None:
            return self.step(*state, targets=targets if self.targets else None)
        begin, followed = self.online.spans[self.late][0], self.target.spans[self.late][0]
        first, last = [t[:, :begin] for t in state], [t[:, begin:] for t in state]
        found = self.step(*first, targets=targets[:, :followed], norm=norm)
        self.branches.keep(gradient, norm)
        rest = targets[:, followed:]
        self.branches.defer(self.late, lambda: self.step(*last, targets=rest, norm=norm))
        return found

    def step(
        self,
        params: Tensor,
        gradient: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        targets: Tensor | None,
        norm: AdamNorm | None = None,
    ) -> Tensor:
        """Take the optimiser's step, of some columns with `norm`; return norms, `[S]`."""
        config = self.config
        return adam_step(
            params, gradient, exp_avg, exp_avg_sq, self.steps, lr=config.lr, norm=norm,
            max_norm=MAX_GRAD_NORM if config.clip_grad else None, targets=targets,
            tau=None if targets is None else config.tau, backend=self.backend,
        )  # fmt: skip

    def update(self, batch: Batch, noise: Noise) -> Terms:
        """Do one update of every run; nothing is read back to the host.

        Raises:
            UsageError: losses or metrics are not what they must be.
        """
        gradient, terms = self.gradients(batch, noise)
        self.apply(gradient, terms)
        check_numbers(type(self), "metric", terms.metrics, self.runs)
        return terms

    def after_step(self, metrics: Metrics) -> None:
        """Do what follows the optimiser's step, such as a dual update."""

    def recorded_scalars(self, metrics: Metrics) -> dict[str, Tensor | float]:
        """Return what the authors log and we have in other terms, under their names.

        Args:
            metrics: Those of one run, `[]` each.
        """
        return {}

    def begin_stage(self, stage: str) -> None:
        """Take what the configuration has for a stage, e.g. another budget online."""

    def draw_noise(self, randomness: Randomness) -> Noise:
        """Draw the noise of one update; see `noise_of`."""
        return self.noise_of(randomness.draw(**self.noise_counts()))

    def noise_counts(self) -> dict[str, Any]:
        """Return what `draw_noise` draws, as `Randomness.draw` takes it.

        Raises:
            UsageError: what the algorithm draws is no shapes by name.
        """
        shapes = self.draws()
        check_draws(type(self), shapes)
        normals = sum(math.prod(shape) for shape in shapes.values())
        return {"normals": normals, "uniforms": self.config.batch_size, "dtype": self.dtype}

    def noise_of(self, drawn: Draws) -> Noise:
        """Return the noise of one update by name, of what was drawn for it.

        It is standard normal but for `bc_t` `[S, B, 1]`, which is uniform on [0, 1).
        """
        shapes = self.draws()
        sizes = [math.prod(shape) for shape in shapes.values()]
        parts = zip(shapes.items(), drawn.normals.split(sizes, dim=1), strict=True)
        noise = {name: part.reshape(self.runs, *shape) for (name, shape), part in parts}
        return DrawnNoise(type(self), noise | {"bc_t": drawn.uniforms.unsqueeze(-1)})

    def cloning_loss(self, batch: Batch, noise: Noise) -> Tensor:
        """Flow-matching loss of the cloned field for each run, `[S]`.

        mean_b [ mean_d (v_bc(s, x_t, t) - (a - x_0))^2 * valid ] with x_t = (1 - t) x_0 + t a.

        Raises:
            UsageError: the algorithm does not draw x_0.
        """
        if "bc_x0" not in noise:
            drawn = ", ".join(self.draws())
            raise mistake(
                type(self), f"its draws are {drawn}, while cloning_loss reads bc_x0",
                'add "bc_x0": (self.config.batch_size, self.dim)',
            )  # fmt: skip
        inputs, target = flow_matching_inputs(
            batch.observations, self.policy_actions(batch), noise["bc_x0"], noise["bc_t"],
            backend=self.small_ops,
        )  # fmt: skip
        velocity = self.network("actor_slow", inputs).unsqueeze(1)
        return squared_error(velocity, target, batch.valid, backend=self.small_ops)

    def policy_actions(self, batch: Batch) -> Tensor:
        """Actions in the policy's layout, `[S, B, D]`: all H of a chunk, or the first."""
        if self.config.action_chunking:
            return batch.actions.flatten(-2)
        return batch.actions[..., 0, :]

    def network(self, name: str, *inputs: Tensor) -> Tensor:
        """Apply an online network to inputs `[S, n, ...]`, side by side; `late` once it has moved.

        Raises:
            UsageError: the algorithm has no network of that name.
        """
        if name not in self.online.networks:
            raise mistake(
                type(self), f"it applies {name!r}, which is no network it has",
                f"name one of {', '.join(self.online.networks)}, or add it in network_shapes",
            )  # fmt: skip
        if name == self.late:
            self.branches.catch_up()
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        return mlp(self.online.networks[name], joined, **self.options)

    def critic_values(self, critic: MLPWeights, observations: Tensor, actions: Tensor) -> Tensor:
        """Q_e(s, a) `[S, E, N]` for `[S, N, O]` and `[S, N, D]`."""
        self.branches.catch_up()
        return mlp(critic, (observations, actions), **self.options).squeeze(-1)

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
    def candidates(self) -> int:
        """Actions that the policy chooses among, N."""
        return getattr(self.config, "best_of_n", 1)

    @property
    def discount(self) -> float:
        """Discount of the rewards in its batches; 1 where it has no use for rewards."""
        return getattr(self.config, "discount", 1.0)

    @property
    def noise_dim(self) -> int:
        """Standard normals that an action of the policy takes."""
        return self.dim

    def propose(self, networks: Networks, observations: Tensor, noise: Tensor) -> Tensor:
        """Return candidate actions `[S, n, D]`, not clipped, without gradients.

        Args:
            networks: Online networks, and their targets as ``target_NAME``.
            observations: `[S, n, O]`.
            noise: `[S, n, noise_dim]`, standard normal.
        """
        x = self.flow(networks[self.acting_field], observations, noise[..., : self.dim])
        return self.refine(networks, observations, x, noise[..., self.dim :])

    def refine(
        self, networks: Networks, observations: Tensor, actions: Tensor, noise: Tensor
    ) -> Tensor:
        """Return what the policy makes of the flow's X_K `[S, n, D]`; here they are its own.

        An update calls it too, for the next actions: what reads the network `late` there, or its
        target, calls `self.branches.catch_up()` first.

        Args:
            networks: As of `propose`.
            observations: `[S, n, O]`.
            actions: X_K, not clipped.
            noise: What the flow has left of it, `[S, n, noise_dim - D]`.
        """
        return actions

    def flow(self, field: MLPWeights, observations: Tensor, x0: Tensor) -> Tensor:
        """Integrate a field's ODE from x0 `[S, n, D]`; X_K is not clipped."""
        return ode_rollout(
            field.detach(), observations, x0.contiguous(), self.config.flow_steps, **self.options
        )

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor, run: int | None = None) -> Tensor:
        """Sample actions: propose, clip, best of N.

        On a GPU it is captured as a graph (`trqam_fast.agents.acting`): a number that Python has
        read from something that changes would stay what it was.

        Args:
            observations: `[S, n, O]`, or `[1, n, O]` with `run`.
            noise: `[S, n, N, noise_dim]`, standard normal; likewise.
            run: Act with the policy of this run alone.

        Returns:
            `[S, n, D]` or `[1, n, D]` in [-1, 1]; with chunking D holds H actions in order.

        Raises:
            ValueError: the noise is not that of `noise_dim` numbers.
        """
        if noise.shape[-1] != self.noise_dim:
            raise ValueError(
                f"act: noise has shape {list(noise.shape)}; expected [..., {self.noise_dim}], "
                "noise_dim"
            )
        return self.choose(self.acting_networks(run), observations, noise)

    def all_networks(self) -> Networks:
        """Return the online networks, and their targets as ``target_NAME``."""
        targets = {f"target_{name}": net for name, net in self.target.networks.items()}
        return self.online.networks | targets

    def acting_networks(self, run: int | None = None) -> Networks:
        """Return what `propose` takes, without gradients: of one run alone, or of all."""
        networks = {name: network.detach() for name, network in self.all_networks().items()}
        if run is None:
            return networks
        return {
            name: network.map(lambda tensor: tensor[run : run + 1])
            for name, network in networks.items()
        }

    def choose(self, networks: Networks, observations: Tensor, noise: Tensor) -> Tensor:
        """Propose candidates with `acting_networks` and keep the best; the rest is as of `act`."""
        count = noise.shape[2]
        actions = self.propose(networks, repeat_rows(observations, count), noise.flatten(1, 2))
        candidates = actions.unflatten(1, (-1, count))
        return self.choose_candidate(networks.get("critic"), observations, candidates)

    @torch.no_grad()
    def copy_targets(self) -> None:
        """Set the targets equal to their online networks."""
        for name in self.targets:
            self.target.span(name).copy_(self.online.span(name))

    @torch.no_grad()
    def load_pretrained(self, field: Tensor) -> None:
        """Start the networks `cloned` and their targets from packed weights `[S, p]` of a field."""
        for name in self.cloned:
            self.online.span(name).copy_(field)
        self.copy_targets()

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that make up the agent's state, each with the run axis first."""
        tensors = {
            "online": self.online.flat, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq,
        }  # fmt: skip
        return tensors | ({"target": self.target.flat} if self.targets else {})

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the state in the host's memory, and each run's number of updates."""
        step = torch.full((self.runs,), float(self.steps), dtype=torch.float64)
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in self.state().items()}
        return copies | {"step": step}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; what else is in `state` is left alone.

        Raises:
            KeyError: a tensor is missing.
            ValueError: one has another shape, or holds other things than real numbers.
        """
        steps = float(state["step"].max())
        for name, tensor in self.state().items():
            saved = state[name]
            if saved.shape != tensor.shape or not saved.is_floating_point():
                raise ValueError(
                    f"{name} has shape {list(saved.shape)} and {saved.dtype}, where this agent has "
                    f"{list(tensor.shape)}"
                )
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps.fill_(steps)


def inherits(kind: type[Agent], *names: str) -> bool:
    """Whether all methods of these names are `Agent`'s own in a subclass."""
    return all(getattr(kind, name) is getattr(Agent, name) for name in names)


def field_shape(config: CloningConfig, obs_dim: int, act_dim: int) -> MLPShape:
    """Architecture of a velocity field on [s, x, t]."""
    dim = act_dim * config.chunk_length
    return MLPShape(obs_dim + dim + 1, config.actor_hidden_dims, dim, config.actor_layer_norm)
