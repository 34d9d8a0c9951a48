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
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from examples.action_experts import (
    BATCH,
    BUDGET,
    CHUNK,
    STEPS,
    WIDTH,
    GraphBytes,
    clone,
    demonstrations,
    fine_tune,
    observations,
    time_updates,
)
from trqam_fast.experts import FlowField, check_field
from trqam_fast.kernels import ode_rollout, sde_rollout


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
