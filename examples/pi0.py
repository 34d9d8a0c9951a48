"""pi0's action expert, fine-tuned by TRQAM and by SQAM on a toy reward.

    pip install 'lerobot[pi]==0.6.1'
    python -m examples.pi0

`examples.action_experts` says what is done with it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.action_experts import CHUNK, STEPS, WIDTH, ActionExpert, main, replaced
from trqam_fast.experts import FlowField


def tiny_pi0() -> nn.Module:
    """Return LeRobot's `PI0Pytorch` with random weights, without a download."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from transformers import GemmaConfig, PaliGemmaConfig

    sizes = modeling_pi0.GemmaConfig(
        width=64, depth=2, mlp_dim=128, num_heads=8, num_kv_heads=1, head_dim=8
    )
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 16,
    }  # fmt: skip
    kinds = {"paligemma": lambda: PaliGemmaConfig(vision_config=vision), "gemma": GemmaConfig}
    config = PI0Config(
        chunk_size=CHUNK, n_action_steps=CHUNK, max_action_dim=WIDTH, max_state_dim=4,
        num_inference_steps=STEPS, image_resolution=(32, 32), train_expert_only=True, device="cpu",
    )  # fmt: skip
    with replaced(modeling_pi0, get_gemma_config=lambda variant: sizes, CONFIG_MAPPING=kinds):
        return modeling_pi0.PI0Pytorch(config)


def pi0_field(model: nn.Module) -> FlowField:
    """Return the action expert as a field of this project's ops."""
    from lerobot.policies.pi0.modeling_pi0 import make_att_2d_masks, prepare_attention_masks_4d

    def prepare(batch: dict) -> dict:
        """Run PaliGemma once: the prefix's mask and key-value cache; the expert reads the state."""
        prefix = {name: value for name, value in batch.items() if name != "state"}
        embeddings, pad_masks, attention = model.embed_prefix(**prefix)
        masks = prepare_attention_masks_4d(make_att_2d_masks(pad_masks, attention))
        _, cache = model.paligemma_with_expert.forward(
            attention_mask=masks,
            position_ids=torch.cumsum(pad_masks, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embeddings, None],
            use_cache=True,
        )
        return {"state": batch["state"], "prefix_pad_masks": pad_masks, "past_key_values": cache}

    def velocity(context: dict, x: Tensor, time: Tensor) -> Tensor:
        return model.denoise_step(**context, x_t=x, timestep=time)

    language_model = model.paligemma_with_expert.paligemma.model.language_model
    language_model.config._attn_implementation = "eager"  # as sample_actions sets it
    shape = (model.config.chunk_size, model.config.max_action_dim)
    return FlowField(velocity, time="noise_at_1", t_min=0.001, action_shape=shape, prepare=prepare)


def pi0() -> ActionExpert:
    """Return a tiny pi0, its field, and the layers of the field."""
    model = tiny_pi0().eval()
    return ActionExpert(
        model,
        pi0_field(model),
        lambda name: "gemma_expert.model" in name or name.startswith(("action_", "state_")),
    )


if __name__ == "__main__":
    main(__doc__.splitlines()[0], pi0)
