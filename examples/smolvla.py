"""SmolVLA's action expert, fine-tuned by TRQAM and by SQAM on a toy reward.

    pip install 'lerobot[smolvla]'
    python -m examples.smolvla

The model is LeRobot's own class at a tiny size with random weights, so that nothing is downloaded
and a laptop will do. It is first cloned on made-up demonstrations, by LeRobot's own loss. Then:

1. its field is held against this project's conventions, and our integrator against its own;
2. a copy that nothing has changed is shown to have a path KL of 0;
3. TRQAM and SQAM raise a toy critic's value under a budget; update times and memory are printed.

docs/your_own_policy.md explains every step, and has the versions that it was tried with.
"""

from __future__ import annotations

import argparse
import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from trqam_fast.agents import DualController
from trqam_fast.experts import FlowField, LowRank, check_field, match_sqam, match_trqam
from trqam_fast.kernels import Velocity, ode_rollout, sde_rollout

BATCH, CHUNK, WIDTH, REAL, STEPS = 32, 4, 8, 3, 10
"""Rows, actions in a chunk, numbers of an action, how many of them are no padding, flow steps."""

BUDGET = 0.5
"""Path KL that is allowed, in nats per action step."""


def tiny_smolvla() -> nn.Module:
    """Return LeRobot's `VLAFlowMatching` with random weights, without a download."""
    from lerobot.policies.smolvla import modeling_smolvla, smolvlm_with_expert
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from transformers import SmolVLMConfig

    text = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    tiny = SmolVLMConfig(text_config=text, vision_config=vision, pad_token_id=0, image_token_id=1)
    tokens = SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)
    given = {"AutoConfig": tiny, "AutoProcessor": SimpleNamespace(tokenizer=tokens)}
    before = {name: getattr(smolvlm_with_expert, name) for name in given}
    for name, value in given.items():
        loader = SimpleNamespace(from_pretrained=lambda _, value=value: value)
        setattr(smolvlm_with_expert, name, loader)
    try:
        config = SmolVLAConfig(
            chunk_size=CHUNK, n_action_steps=CHUNK, max_action_dim=WIDTH, max_state_dim=4,
            num_steps=STEPS, num_vlm_layers=2, device="cpu",
        )  # fmt: skip
        return modeling_smolvla.VLAFlowMatching(config)
    finally:
        for name, value in before.items():
            setattr(smolvlm_with_expert, name, value)


def smolvla_field(model: nn.Module) -> FlowField:
    """Return the action expert as a field of this project's ops."""
    from lerobot.policies.smolvla.modeling_smolvla import make_att_2d_masks

    def prepare(batch: dict) -> dict:
        """Run the vision-language model once: the prefix's masks and key-value cache."""
        embeddings, pad_masks, attention = model.embed_prefix(**batch)
        _, cache = model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad_masks, attention),
            position_ids=torch.cumsum(pad_masks, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=model.config.use_cache,
            fill_kv_cache=True,
        )
        return {"prefix_pad_masks": pad_masks, "past_key_values": cache}

    def velocity(prefix: dict, x: Tensor, time: Tensor) -> Tensor:
        return model.denoise_step(**prefix, x_t=x, timestep=time)

    shape = (model.config.chunk_size, model.config.max_action_dim)
    return FlowField(velocity, time="noise_at_1", t_min=0.001, action_shape=shape, prepare=prepare)


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


def main(clone_updates: int = 300, updates: int = 300) -> dict:
    """Run everything; return what was measured."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = tiny_smolvla().eval()
    clone(model, clone_updates, generator)
    field, batch = smolvla_field(model), observations()

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
        done = found[algo] = fine_tune(algo, field, model, updates)
        print(
            f"{algo}: path KL of the unmodified copy {done['first_kl']:g}; value "
            f"{done['before']:.2f} -> {done['after']:.2f} (base still {done['base_after']:.2f}); "
            f"path KL {done['late_kl']:.3f} of a budget of {BUDGET}; lambda {done['lam']:.2f}; "
            f"graphs keep {done['graph_bytes'] / 2**20:.2f} MiB at most"
        )
    for algo, times in time_updates(field, model).items():
        found[algo]["milliseconds"] = times[len(times) // 2]
        print(
            f"{algo}: {times[len(times) // 2]:.0f} ms an update (median of {len(times)}, "
            f"{times[0]:.0f} to {times[-1]:.0f}, in turns)"
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clone-updates", type=int, default=300)
    parser.add_argument("--updates", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.clone_updates, arguments.updates)
