"""A policy of one's own, in one's own loop: cloned and fine-tuned by TRQAM on a point's way.

    python own_policy.py

runs in a folder with the `reach.py` and `reach.npz` of docs/your_own_task.md, and says in how many
of 100 episodes the goal is reached. docs/your_own_policy.md has what to expect.
"""

from copy import deepcopy

import numpy as np
import torch
from reach import Reach
from torch import Tensor, nn

from trqam_fast.agents import DualController
from trqam_fast.experts import check_field, match_trqam
from trqam_fast.kernels import ode_rollout, td_target

SEED, CLONING, UPDATES, EVERY = 0, 1000, 3000, 500
BATCH, STEPS, LR, TAU, DISCOUNT, RHO = 128, 10, 2e-3, 0.05, 0.95, 0.5
BUDGET = 4.0  # nats an action: far from the data, which are bad
UNIT = 0.1  # the environment's largest action, which is 1 to the policy
torch.manual_seed(SEED)


class Field(nn.Module):
    """The velocity field: Linear and GELU, whatever you have."""

    def __init__(self) -> None:
        super().__init__()
        hidden = nn.Linear(7, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU()
        self.net = nn.Sequential(*hidden, nn.Linear(64, 2))

    def forward(self, s: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Return v, `[1, B, 2]`, at s `[1, B, 4]`, x `[1, B, 2]` and t `[1, B, 1]`."""
        return self.net(torch.cat([s, x, t], -1))


class Critics(nn.ModuleList):
    """An ensemble of two; without LayerNorm the policy learns to fail."""

    def __init__(self) -> None:
        def hidden(width: int) -> tuple[nn.Module, ...]:
            return nn.Linear(width, 64), nn.GELU("tanh"), nn.LayerNorm(64, 1e-6)

        layers = (nn.Sequential(*hidden(6), *hidden(64), nn.Linear(64, 1)) for _ in range(2))
        super().__init__(layers)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """Return Q_e, `[1, 2, B]`, of s `[1, B, 4]` and a `[1, B, 2]`."""
        return torch.cat([net(torch.cat([s, a], -1)) for net in self], -1).mT


def batch() -> list[Tensor]:
    """Return s, a, r, m and s' of random transitions, `[1, B, ...]` each."""
    rows = torch.randint(len(data["rewards"]), (1, BATCH))
    names = ("observations", "actions", "rewards", "masks", "next_observations")
    return [data[name][rows] for name in names]


@torch.no_grad()
def act(s: Tensor) -> Tensor:
    """Return the policy's actions in states `[1, B, 4]`."""
    return ode_rollout(field, s, torch.randn(*s.shape[:2], 2), STEPS).clamp(-1, 1)


def success(episodes: int = 100) -> float:
    """Return the share of episodes, the same each time, that reach the goal in 50 steps."""
    envs = [Reach() for _ in range(episodes)]
    s = np.stack([env.reset(seed=1000 + seed)[0] for seed, env in enumerate(envs)])
    done = np.zeros(episodes, bool)
    for _ in range(50):
        a = UNIT * act(torch.from_numpy(s)[None])[0].numpy()
        for i in np.flatnonzero(~done):
            s[i], _, done[i], _, _ = envs[i].step(a[i])
    return done.mean()


data = {name: torch.from_numpy(array).float() for name, array in np.load("reach.npz").items()}
data["actions"] /= UNIT
field = Field()
optimiser = torch.optim.Adam(field.parameters(), LR)
for _ in range(CLONING):
    s, a, *_ = batch()
    x0, t = torch.randn_like(a), torch.rand(1, BATCH, 1)
    optimiser.zero_grad()
    (field(s, (1 - t) * x0 + t * a, t) - (a - x0)).square().mean().backward()
    optimiser.step()
print(f"the field {check_field(field, s, a, flow_steps=STEPS).message}")
print(f"cloned: {success():.0%}", flush=True)

base, critics = deepcopy(field).requires_grad_(False), Critics()
targets = deepcopy(critics).requires_grad_(False)
learner, dual = torch.optim.Adam(critics.parameters(), LR), DualController(1, BUDGET)
for update in range(1, UPDATES + 1):
    s, a, r, m, following = batch()
    y = td_target(targets(following, act(following)), r, m, discount=DISCOUNT, rho=RHO)
    learner.zero_grad()
    (critics(s, a) - y.unsqueeze(1)).square().mean().backward()
    nn.utils.clip_grad_norm_(critics.parameters(), 1.0)
    for target, weight in zip(targets.parameters(), critics.parameters(), strict=True):
        target.lerp_(weight.detach(), TAU)
    learner.step()

    x0, noise = torch.randn(1, BATCH, 2), torch.randn(1, STEPS - 1, BATCH, 2)
    optimiser.zero_grad()
    match = match_trqam(
        field, base, s, lambda a, s=s: targets(s, a).mean(1), x0, noise, dual.temperature
    )  # fmt: skip
    nn.utils.clip_grad_norm_(field.parameters(), 1.0)
    optimiser.step()
    dual.update(match.path_kl)
    if update % EVERY == 0:
        kl, lam = match.path_kl.item(), dual.lam.item()
        print(f"{update}: {success():.0%}, path KL {kl:.2f}, lambda {lam:.3f}", flush=True)
