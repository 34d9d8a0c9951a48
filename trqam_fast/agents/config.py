"""Groups of hyperparameters; an algorithm's configuration is made of those that it uses.

Defaults are those of the authors' code, but for QAM's `inv_temp` of 1 (theirs is 0.3) and QAM-E's
`edit_scale` of 0.1 (theirs is 0, plain QAM). A configuration is a dataclass that inherits its
groups: its values are attributes of one flat object, and its flags stand in one box of ``--help``
for each group.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_type_hints

import torch

from trqam_fast.errors import UsageError
from trqam_fast.kinds import check_kind

WIDEST = 65_536
"""Most units of a hidden layer."""
MOST = 1_000_000
"""Most of what an update's memory is a multiple of: rows of a batch, critics, steps, candidates."""
LARGEST = torch.finfo(torch.float32).max
"""Largest number that a run computes with."""


class Setting(NamedTuple):
    """A hyperparameter's value and who published it."""

    value: Any
    source: str


class ByDomain(NamedTuple):
    """A hyperparameter's published values.

    Attributes:
        values: By domain of OGBench, e.g. ``cube-double``.
        otherwise: For the domains without one.
    """

    values: dict[str, Setting]
    otherwise: Setting


class Group:
    """A group of hyperparameters: fields, and a check of their values in `check`."""

    def __post_init__(self) -> None:
        """Check the values of every group that this configuration inherits, their types first."""
        hints = get_type_hints(type(self))
        for name, value in vars(self).items():
            if name in hints and name != "agent":  # whose class follows from the algorithm
                check_kind(name, value, hints[name])
            if isinstance(value, float):
                self.require(name, math.isfinite(value), "use a finite number")
                fits = abs(value) <= LARGEST
                self.require(name, fits, f"use a number of {LARGEST:.2g} or less, as float32 holds")
        for kind in type(self).__mro__:
            if "check" in vars(kind):
                vars(kind)["check"](self)

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""

    def require(self, name: str, condition: bool, remedy: str) -> None:
        """Raise `UsageError` with the flag, its value and the remedy unless `condition` holds."""
        if not condition:
            value = getattr(self, name)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) and value else value
            raise UsageError(f"--{name.replace('_', '-')} is {shown}; {remedy}")

    def require_at_least(self, bound: int, *names: str) -> None:
        """Require whole numbers of `bound` or more, and below 2^63."""
        for name in names:
            value = getattr(self, name)
            self.require(name, value >= bound, f"use {bound} or more")
            self.require(name, value < 2**63, "use a number below 2^63")

    def require_counts(self, *names: str) -> None:
        """Require whole numbers from 1 to `MOST`."""
        self.require_at_least(1, *names)
        for name in names:
            self.require(name, getattr(self, name) <= MOST, f"use 1 to {MOST}")

    def require_positive(self, *names: str) -> None:
        """Require numbers above zero."""
        for name in names:
            value = getattr(self, name)
            self.require(name, value > 0, "use a positive number")

    def require_not_negative(self, *names: str) -> None:
        """Require numbers of zero or more."""
        for name in names:
            value = getattr(self, name)
            self.require(name, value >= 0, "use zero or more")

    def require_fraction(self, *names: str) -> None:
        """Require numbers above 0 and up to 1."""
        for name in names:
            self.require(name, 0 < getattr(self, name) <= 1, "use a number in (0, 1]")

    def require_widths(self, *names: str) -> None:
        """Require hidden layers, one or more."""
        for name in names:
            dims = getattr(self, name)
            fits = len(dims) >= 1 and min(dims) >= 1 and max(dims) <= WIDEST
            self.require(name, fits, f"use one or more widths from 1 to {WIDEST}")


def groups_of(config: type[Group]) -> dict[type, list[str]]:
    """Return the classes that a configuration is made of, each with the values that it adds.

    Its own values come first, then those of its groups in the order in which it names them.
    """
    groups: dict[type, list[str]] = {}
    seen: set[str] = set()
    for kind in config.__mro__:
        names = [n for n in inspect.get_annotations(kind) if n not in seen]
        seen.update(names)
        if names and dataclasses.is_dataclass(kind):
            groups[kind] = names
    return groups


def names_of(config: type[Group]) -> list[str]:
    """Return the names of a configuration's values, group by group."""
    return [name for names in groups_of(config).values() for name in names]


def lost_names(config: type[Group]) -> dict[str, type]:
    """Return what a configuration's classes set that is no value of it, with the class.

    They are the names in a class that is no dataclass itself, whatever it inherits, and those with
    which a class sets a value that it inherits, without a type: neither would be read.
    """
    values = names_of(config)
    lost: dict[str, type] = {}
    for kind in config.__mro__:
        typed = {n: t for n, t in inspect.get_annotations(kind).items() if "ClassVar" not in str(t)}
        kept = typed if "__dataclass_fields__" in vars(kind) else ()
        given = (*typed, *(name for name in vars(kind) if name in values))
        lost |= dict.fromkeys((name for name in given if name not in kept), kind)
    return lost


def select(config: type[Group], values: dict[str, Any]) -> dict[str, Any]:
    """Return those of `values` that a configuration has."""
    return {name: values[name] for name in names_of(config) if name in values}


@dataclass(frozen=True)
class CommonConfig(Group):
    """The optimiser and its batches."""

    lr: float = 3e-4
    """Learning rate of Adam, one optimiser for all networks."""
    batch_size: int = 256
    """Transitions per update, B."""
    clip_grad: bool = True
    """Clip the gradient of each run to global norm 1."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_positive("lr")
        self.require_counts("batch_size")


@dataclass(frozen=True)
class FlowConfig(Group):
    """Velocity fields, the flow, and what an action is."""

    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden widths of the velocity fields."""
    actor_layer_norm: bool = False
    """LayerNorm in the velocity fields."""
    flow_steps: int = 10
    """Euler steps of the flow, K."""
    horizon_length: int = 1
    """Environment steps per backup, H; with chunking also the length of a chunk."""
    action_chunking: bool = False
    """The policy outputs H actions at once and executes them open loop."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_counts("horizon_length", "flow_steps")
        self.require_widths("actor_hidden_dims")

    @property
    def chunk_length(self) -> int:
        """Actions that one policy output holds."""
        return self.horizon_length if self.action_chunking else 1


@dataclass(frozen=True)
class CriticConfig(Group):
    """Critics, their targets, and the choice among candidate actions."""

    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden widths of the critics."""
    value_layer_norm: bool = True
    """LayerNorm in the critics."""
    num_qs: int = 10
    """Critics in the ensemble, E."""
    rho: float = 0.5
    """Pessimism: standard deviations subtracted from the mean target value."""
    discount: float = 0.995
    """Discount factor gamma of one environment step."""
    tau: float = 0.005
    """Step of the Polyak targets toward the online networks."""
    best_of_n: int = 1
    """Candidate actions per state; the critic picks the best."""
    reward_scale: float = 1.0
    """Factor on all rewards."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_counts("num_qs", "best_of_n")
        self.require_not_negative("rho")
        self.require_fraction("discount", "tau")
        self.require_positive("reward_scale")
        self.require_widths("value_hidden_dims")


@dataclass(frozen=True)
class AnchorConfig(Group):
    """The field that a fine-tuned policy is anchored to, and when it begins to leave it."""

    target_actor: bool = True
    """Anchor to the Polyak target of the cloned field instead of the cloned field itself."""
    freeze_base: bool = False
    """Leave the cloned field as fine-tuning finds it, and anchor to it: its loss is only logged."""
    critic_warmup: int = 0
    """First updates of fine-tuning that train the critics alone: both fields and lambda rest."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_at_least(0, "critic_warmup")


@dataclass(frozen=True)
class AdjointConfig(Group):
    """The critic's action gradient at the end of the flow."""

    clip_adj: bool = True
    """Take the critic's action gradient through the clip of the action to [-1, 1]."""
    use_target_grad: bool = True
    """Take the action gradient of the target critics instead of the online ones."""


@dataclass(frozen=True)
class TrustRegionConfig(Group):
    """The path-KL budget and the dual variable that keeps it."""

    kl_budget: float = 1.0
    """Path-KL budget eps_KL in nats per action step."""
    kl_budget_online: float | None = None
    """Path-KL budget of the online stage; none keeps --kl-budget."""
    kl_budget_per_dim: float | None = None
    """The budget stated for each number of an action instead, which sets --kl-budget."""
    budget_ramp: int = 0
    """Updates in which the budget grows linearly from zero."""
    init_lambda: float = 1.0
    """Lambda of the first update."""
    lambda_start: Literal["value", "closed-form"] = "value"
    """value: --init-lambda; closed-form: the lambda at which the loss, at the adjoints of the first
    batch, is least where the path KL equals the budget."""
    dual: Literal["additive", "log"] = "additive"
    """Dual descent on lambda, as in the paper, or on its logarithm, with relative errors."""
    lam_scale: float = 3.0
    """Fixed factor on lambda wherever it is used."""
    eta_lambda: float = 0.01
    """Step size of the dual descent on lambda."""
    kl_ema_coef: float = 0.1
    """Weight of the newest path-KL estimate in its moving average."""
    lambda_min: float = 0.01
    """Lower end of the bracket on lambda."""
    lambda_max: float = 100.0
    """Upper end of the bracket on lambda."""
    kl_clip_coef: float = 2.0
    """Path-KL estimates are clipped at this multiple of the budget."""
    value_penalty: float = 0.0
    """Weight of the critics' penalty mean Q(s, policy's action) - mean Q(s, action of the data)."""

    def check(self) -> None:
        """Raise `UsageError` if a value is impossible."""
        self.require_positive("kl_budget", "lam_scale", "kl_clip_coef")
        for name in ("kl_budget_online", "kl_budget_per_dim"):
            if getattr(self, name) is not None:
                self.require_positive(name)
        self.require_at_least(0, "budget_ramp")
        self.require_positive("init_lambda")
        self.require_fraction("kl_ema_coef")
        self.require_not_negative("eta_lambda", "lambda_min", "value_penalty")
        self.require("lambda_max", self.lambda_max >= self.lambda_min, "use --lambda-min or more")

    def budget_of(self, act_dim: int) -> float:
        """Return the budget of an action of so many numbers."""
        per_dim = self.kl_budget_per_dim
        return self.kl_budget if per_dim is None else per_dim * act_dim


@dataclass(frozen=True)
class CloningConfig(CommonConfig, FlowConfig):
    """Hyperparameters of behaviour cloning, which every algorithm has: it begins with it."""
