"""What the examples of action experts share: a toy task, fine-tuning, and what an update costs.

`examples.smolvla` and `examples.pi0` make a model of LeRobot's at a tiny size with random weights,
so that nothing is downloaded and a laptop will do. It is first cloned on made-up demonstrations, by
LeRobot's own loss. Then:

1. its field is held against this project's conventions, and our integrator against its own;
2. a copy that nothing has changed is shown to have a path KL of 0;
3. TRQAM and SQAM raise a toy critic's value under a budget; update times and memory are printed.

docs/your_own_policy.md explains every step; docs/results.md has the versions that were tried.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trqam_fast.agents import DualController
from trqam_fast.experts import FlowField, LowRank, check_field, match_sqam, match_trqam
from trqam_fast.kernels import Velocity, ode_rollout, sde_rollout

BATCH, CHUNK, WIDTH, REAL, STEPS = 32, 4, 8, 3, 10
"""Rows, actions in a chunk, numbers of an action, how many of them are no padding, flow steps."""

BUDGET = 0.5
"""Path KL that is allowed, in nats per action step."""


class ActionExpert(NamedTuple):
    """A flow-matching model as it is fine-tuned here.

    Attributes:
        model: The model; to be cloned and compared with, LeRobot's.
        field: Its velocity field.
        chosen: Whether a linear layer, by its name, belongs to the field and gets an update.
    """

    model: nn.Module
    field: FlowField
    chosen: Callable[[str], bool]


@contextlib.contextmanager
def replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    """Have a module's names mean something else for a while, e.g. what would be downloaded."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def observations(rows: int = BATCH) -> dict:
    """Return a batch as `embed_prefix` takes it, without images."""
    return {
        "images": [], "img_masks": [], "lang_tokens": torch.ones(rows, 3, dtype=torch.int64),
        "lang_masks": torch.ones(rows, 3, dtype=torch.bool),
        "state": torch.linspace(-1, 1, rows).view(-1, 1).expand(-1, 4),
    }  # fmt: skip


def demonstrations(batch: dict, generator: torch.Generator) -> Tensor:
    """Actions `[B, H, A]` around 0.3 times the state; the padded numbers are 0."""
    rows = batch["state"].shape[0]
    actions = torch.zeros(rows, CHUNK, WIDTH)
    centre = 0.3 * batch["state"][:, None, :1]
    actions[..., :REAL] = centre + 0.3 * torch.randn(rows, CHUNK, REAL, generator=generator)
    return actions


def clone(model: nn.Module, updates: int, generator: torch.Generator) -> None:
    """Train the model by LeRobot's own flow-matching loss."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    batch = observations()
    for _ in range(updates):
        actions = demonstrations(batch, generator)
        noise, time = model.sample_noise(actions.shape, "cpu"), model.sample_time(BATCH, "cpu")
        loss = model(**batch, actions=actions, noise=noise, time=time).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def critic(actions: Tensor) -> Tensor:
    """A toy Q of `[S, B, D]`: every real number of an action wants to be 0.8."""
    real = actions.unflatten(-1, (CHUNK, WIDTH))[..., :REAL]
    return -2.0 * (real - 0.8).square().sum((-1, -2))


class GraphBytes:
    """The most bytes that autograd's graphs keep at any time, tensors of the model left out."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.now = self.peak = 0

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Return the context that counts."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)

    def pack(self, tensor: Tensor) -> Kept:
        """Count a tensor until its graph lets it go."""
        mine = tensor.untyped_storage().data_ptr() in self.own
        return Kept(self, tensor.detach(), 0 if mine else tensor.nbytes)


class Kept:
    """A tensor that a graph keeps."""

    def __init__(self, counter: GraphBytes, tensor: Tensor, size: int) -> None:
        self.counter, self.tensor, self.size = counter, tensor, size
        counter.now += size
        counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.size


class Tuning:
    """A low-rank copy of the expert that is being fine-tuned by TRQAM or SQAM."""

    def __init__(self, algo: str, expert: ActionExpert, seed: int = 0) -> None:
        self.algo, self.field = algo, expert.field
        self.generator = torch.Generator().manual_seed(seed)
        self.copy = LowRank(expert.model, 8, generator=self.generator, choose=expert.chosen)
        self.base = self.copy.base(self.field)
        self.context = self.field.context(observations())
        mask = torch.zeros(CHUNK, WIDTH, dtype=torch.bool)
        mask[:, :REAL] = True
        self.mask = mask.flatten()
        self.dual = DualController(1, BUDGET, eta=0.05, rule="log")
        self.optimiser = torch.optim.Adam(self.copy.parameters(), 1e-3)

    def update(self) -> float:
        """Take one step of the policy and of lambda; return the path KL."""
        starts = torch.randn(1, BATCH, CHUNK * WIDTH, generator=self.generator)
        noise = torch.randn(1, STEPS - 1, BATCH, CHUNK * WIDTH, generator=self.generator)
        given = (self.field, self.base, self.context, critic, starts, noise, self.dual.temperature)
        self.optimiser.zero_grad()
        if self.algo == "trqam":
            match = match_trqam(*given, action_mask=self.mask, horizon=CHUNK)
        else:
            match = match_sqam(*given, flow_steps=STEPS, action_mask=self.mask, horizon=CHUNK)
        nn.utils.clip_grad_norm_(self.copy.parameters(), 1.0)
        self.optimiser.step()
        self.dual.update(match.path_kl)
        return float(match.path_kl)


def fine_tune(algo: str, expert: ActionExpert, updates: int) -> dict:
    """Fine-tune a low-rank copy; return values, path KL and bytes."""
    tuning, counter = Tuning(algo, expert), GraphBytes(expert.model)
    x0 = torch.randn(1, BATCH, CHUNK * WIDTH, generator=tuning.generator)

    @torch.no_grad()
    def value(v: Velocity) -> float:
        return float(critic(ode_rollout(v, tuning.context, x0, STEPS).clamp(-1, 1)).mean())

    before = value(expert.field)
    with counter.hooks():
        kls = [tuning.update()]
    kls += [tuning.update() for _ in range(updates - 1)]
    after, base_after = value(expert.field), value(tuning.base)
    tuning.copy.remove()
    late = kls[-updates // 3 :]
    return {
        "before": before, "after": after, "base_after": base_after, "first_kl": kls[0],
        "late_kl": sum(late) / len(late), "lam": float(tuning.dual.lam),
        "graph_bytes": counter.peak,
    }  # fmt: skip


def time_updates(expert: ActionExpert, rounds: int = 20) -> dict[str, list[float]]:
    """Return milliseconds of processor time of updates by algorithm, sorted; in turns.

    What else the machine does counts little so; with several threads it is the sum of theirs.
    """
    milliseconds = {"trqam": [], "sqam": []}
    for _ in range(rounds):
        for algo, times in milliseconds.items():
            tuning = Tuning(algo, expert)
            start = time.process_time()
            tuning.update()
            times.append(1e3 * (time.process_time() - start))
            tuning.copy.remove()
    return {algo: sorted(times) for algo, times in milliseconds.items()}


def prove(make: Callable[[], ActionExpert], clone_updates: int = 300, updates: int = 300) -> dict:
    """Make a model of LeRobot's, clone, compare and fine-tune it; return what was measured."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    expert, batch = make(), observations()
    model, field = expert.model, expert.field
    clone(model, clone_updates, generator)

    context = field.context(batch)
    actions = demonstrations(batch, generator).flatten(1).unsqueeze(0)
    raw = FlowField(field.module, action_shape=field.action_shape)
    found = {
        "field": check_field(field, context, actions).message,
        "raw": check_field(raw, context, actions).message,
    }
    print(f"the field {found['field']}\nthe module alone {found['raw']}")

    x0 = torch.randn(BATCH, CHUNK, WIDTH, generator=generator)
    with torch.no_grad():
        own = model.sample_actions(**batch, noise=x0)
        ours = ode_rollout(field, context, x0.view(1, BATCH, -1), STEPS)
    found["deviation"] = float((ours.view_as(own) - own).abs().max())
    print(f"our ODE deviates from sample_actions by {found['deviation']:.1e}")

    counter = GraphBytes(model)
    with counter.hooks():
        noise = torch.randn(1, STEPS - 1, BATCH, CHUNK * WIDTH, generator=generator)
        sde_rollout(field, field, context, x0.view(1, BATCH, -1), noise)
    found["rollout_bytes"] = counter.peak
    print(f"a rollout with all of its graph would keep {counter.peak / 2**20:.2f} MiB")

    for algo in ("trqam", "sqam"):
        done = found[algo] = fine_tune(algo, expert, updates)
        print(
            f"{algo}: path KL of the unmodified copy {done['first_kl']:g}; value "
            f"{done['before']:.2f} -> {done['after']:.2f} (base still {done['base_after']:.2f}); "
            f"path KL {done['late_kl']:.3f} of a budget of {BUDGET}; lambda {done['lam']:.2f}; "
            f"graphs keep {done['graph_bytes'] / 2**20:.2f} MiB at most"
        )
    for algo, times in time_updates(expert).items():
        found[algo]["milliseconds"] = times[len(times) // 2]
        print(
            f"{algo}: {times[len(times) // 2]:.0f} ms of processor time an update (median of "
            f"{len(times)}, {times[0]:.0f} to {times[-1]:.0f}, in turns)"
        )
    return found


def main(description: str, make: Callable[[], ActionExpert]) -> None:
    """Run an example's command."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--clone-updates", type=int, default=300)
    parser.add_argument("--updates", type=int, default=300)
    given = parser.parse_args()
    names = ("lerobot", "transformers", "torch")
    for name in names:
        if importlib.util.find_spec(name) is None:
            parser.error(
                f"{name} is not installed; see the first lines of this example for what installs "
                "it, with Python 3.12 and a torch below 2.12"
            )
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    prove(make, given.clone_updates, given.updates)
