"""What the examples of action experts share: a toy task, fine-tuning, and what an update costs."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from trqam_fast.agents import DualController
from trqam_fast.experts import FlowField, LowRank, match_sqam, match_trqam
from trqam_fast.kernels import Velocity, ode_rollout

BATCH, CHUNK, WIDTH, REAL, STEPS = 32, 4, 8, 3, 10
"""Rows, actions in a chunk, numbers of an action, how many of them are no padding, flow steps."""

BUDGET = 0.5
"""Path KL that is allowed, in nats per action step."""


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
        loss = model(**batch, actions=demonstrations(batch, generator)).mean()
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

    def __init__(self, algo: str, field: FlowField, model: nn.Module, seed: int = 0) -> None:
        self.algo, self.field = algo, field
        self.generator = torch.Generator().manual_seed(seed)
        self.copy = LowRank(
            model,
            8,
            generator=self.generator,
            choose=lambda name: "expert" in name or "action" in name,
        )
        self.base = self.copy.base(field)
        self.context = field.context(observations())
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


def fine_tune(algo: str, field: FlowField, model: nn.Module, updates: int) -> dict:
    """Fine-tune a low-rank copy; return values, path KL and bytes."""
    tuning, counter = Tuning(algo, field, model), GraphBytes(model)
    x0 = torch.randn(1, BATCH, CHUNK * WIDTH, generator=tuning.generator)

    @torch.no_grad()
    def value(v: Velocity) -> float:
        return float(critic(ode_rollout(v, tuning.context, x0, STEPS).clamp(-1, 1)).mean())

    before = value(field)
    with counter.hooks():
        kls = [tuning.update()]
    kls += [tuning.update() for _ in range(updates - 1)]
    after, base_after = value(field), value(tuning.base)
    tuning.copy.remove()
    late = kls[-updates // 3 :]
    return {
        "before": before, "after": after, "base_after": base_after, "first_kl": kls[0],
        "late_kl": sum(late) / len(late), "lam": float(tuning.dual.lam),
        "graph_bytes": counter.peak,
    }  # fmt: skip


def time_updates(field: FlowField, model: nn.Module, rounds: int = 20) -> dict[str, list[float]]:
    """Return milliseconds of updates by algorithm, sorted; the two take turns."""
    milliseconds = {"trqam": [], "sqam": []}
    for _ in range(rounds):
        for algo, times in milliseconds.items():
            tuning = Tuning(algo, field, model)
            start = time.perf_counter()
            tuning.update()
            times.append(1e3 * (time.perf_counter() - start))
            tuning.copy.remove()
    return {algo: sorted(times) for algo, times in milliseconds.items()}
