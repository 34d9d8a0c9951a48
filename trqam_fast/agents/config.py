"""Hyperparameters of the agents; defaults are those of the authors' TRQAM code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from trqam_fast.errors import UsageError

Algorithm = Literal["trqam", "qam", "qam-e", "bc"]


@dataclass(frozen=True)
class AgentConfig:
    """Hyperparameters of TRQAM, QAM and behaviour cloning."""

    lr: float = 3e-4
    """Learning rate of Adam, one optimiser for all networks."""
    batch_size: int = 256
    """Transitions per update, B."""
    actor_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden widths of the velocity fields."""
    actor_layer_norm: bool = False
    """LayerNorm in the velocity fields."""
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
    horizon_length: int = 1
    """Environment steps per backup, H; with chunking also the length of a chunk."""
    action_chunking: bool = False
    """The policy outputs H actions at once and executes them open loop."""
    flow_steps: int = 10
    """Euler steps of the flow, K."""
    best_of_n: int = 1
    """Candidate actions per state; the critic picks the best."""
    kl_budget: float = 1.0
    """Path-KL budget eps_KL in nats per action step (TRQAM)."""
    lam_scale: float = 3.0
    """Fixed factor on lambda wherever it is used (TRQAM)."""
    eta_lambda: float = 0.01
    """Step size of the dual descent on lambda (TRQAM)."""
    kl_ema_coef: float = 0.1
    """Weight of the newest path-KL estimate in its moving average (TRQAM)."""
    lambda_min: float = 0.01
    """Lower end of the bracket on lambda (TRQAM)."""
    lambda_max: float = 100.0
    """Upper end of the bracket on lambda (TRQAM)."""
    kl_clip_coef: float = 2.0
    """Path-KL estimates are clipped at this multiple of the budget (TRQAM)."""
    inv_temp: float = 1.0
    """Inverse temperature that multiplies the terminal adjoint (QAM)."""
    edit_scale: float = 0.1
    """Size of the edit policy's changes to an action (QAM-E); 0 is QAM."""
    edit_target_entropy: float = -0.5
    """Entropy that the edit policy is held to, for each dimension of an action (QAM-E)."""
    clip_grad: bool = True
    """Clip the gradient of each run to global norm 1."""
    clip_adj: bool = True
    """Take the critic's action gradient through the clip of the action to [-1, 1]."""
    target_actor: bool = True
    """Anchor to the Polyak target of the cloned field instead of the cloned field itself."""
    use_target_grad: bool = True
    """Take the action gradient of the target critics instead of the online ones."""

    def __post_init__(self) -> None:
        at_least = {
            "batch_size": 1,
            "num_qs": 1,
            "horizon_length": 1,
            "flow_steps": 2,
            "best_of_n": 1,
        }
        for name, bound in at_least.items():
            self._require(name, getattr(self, name) >= bound, f"use {bound} or more")
        for name in ("lr", "kl_budget", "lam_scale", "inv_temp", "kl_clip_coef"):
            value = getattr(self, name)
            self._require(name, value > 0 and math.isfinite(value), "use a positive number")
        for name in ("discount", "tau", "kl_ema_coef"):
            self._require(name, 0 < getattr(self, name) <= 1, "use a number in (0, 1]")
        for name in ("rho", "eta_lambda", "lambda_min", "edit_scale"):
            value = getattr(self, name)
            self._require(name, value >= 0 and math.isfinite(value), "use zero or more")
        self._require("lambda_max", self.lambda_max >= self.lambda_min, "use --lambda-min or more")
        for name in ("actor_hidden_dims", "value_hidden_dims"):
            dims = getattr(self, name)
            self._require(
                name, len(dims) >= 1 and min(dims) >= 1, "use one or more positive widths"
            )

    def _require(self, name: str, condition: bool, remedy: str) -> None:
        if not condition:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is {getattr(self, name)}; {remedy}")

    @property
    def chunk_length(self) -> int:
        """Actions that one policy output holds."""
        return self.horizon_length if self.action_chunking else 1
