"""SmolVLA's action expert, fine-tuned by TRQAM and by SQAM on a toy reward.

    pip install 'lerobot[smolvla]==0.6.1'
    python -m examples.smolvla

`examples.action_experts` says what is done with it.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from examples.action_experts import CHUNK, STEPS, WIDTH, ActionExpert, main, replaced
from trqam_fast.experts import FlowField


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
    loaders = {
        name: SimpleNamespace(from_pretrained=lambda _, value=value: value)
        for name, value in given.items()
    }
    config = SmolVLAConfig(
        chunk_size=CHUNK, n_action_steps=CHUNK, max_action_dim=WIDTH, max_state_dim=4,
        num_steps=STEPS, num_vlm_layers=2, device="cpu",
    )  # fmt: skip
    with replaced(smolvlm_with_expert, **loaders):
        return modeling_smolvla.VLAFlowMatching(config)


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
        )
        return {"prefix_pad_masks": pad_masks, "past_key_values": cache}

    def velocity(prefix: dict, x: Tensor, time: Tensor) -> Tensor:
        # denoise_step appends to the cache and crops it, which would keep this evaluation's graph
        # in the context; the copy shares the tensors.
        cache = copy.copy(prefix["past_key_values"])
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return model.denoise_step(prefix["prefix_pad_masks"], cache, x, time)

    shape = (model.config.chunk_size, model.config.max_action_dim)
    return FlowField(velocity, time="noise_at_1", t_min=0.001, action_shape=shape, prepare=prepare)


def smolvla() -> ActionExpert:
    """Return a tiny SmolVLA, its field, and the layers of the field."""
    model = tiny_smolvla().eval()
    return ActionExpert(
        model, smolvla_field(model), lambda name: "lm_expert" in name or name.startswith("action_")
    )


if __name__ == "__main__":
    main(__doc__.splitlines()[0], smolvla)
