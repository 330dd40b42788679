"""Stable Diffusion 3 and 3.5: a joint text-image transformer, two CLIP encoders and a T5 that may be left out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.families.base import Configs, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T5_TOKENS = 256
"""Default of the stock pipeline (``max_sequence_length``)."""


class StableDiffusion3(Family):
    """Guidance is classifier-free, with an empty negative prompt; the turbo models need none."""

    name = "Stable Diffusion 3"
    network = "SD3Transformer2DModel"
    pipelines = ("StableDiffusion3Pipeline",)
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    self_cutting = ("tokenizer", "tokenizer_2")
    optional = ("text_encoder_3", "tokenizer_3")
    # Flow-GRPO's (arXiv 2505.05470; scripts/train_sd3.py): the joint attention, not the second one of SD3.5 medium.
    lora_targets = (
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "attn.to_k",
        "attn.to_out.0",
        "attn.to_q",
        "attn.to_v",
    )

    def patch(self, configs: Configs) -> int:
        return int(configs["transformer"].get("patch_size", 2))

    def native_side(self, configs: Configs) -> int:
        return int(configs["transformer"].get("sample_size", 128))

    def largest_side(self, configs: Configs) -> int:
        return int(configs["transformer"].get("pos_embed_max_size") or 0) * self.patch(configs)

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        transformer = configs["transformer"]
        pooled = transformer.get("pooled_projection_dim", 2048)
        return {
            "encoder_hidden_states": (77 + T5_TOKENS, transformer.get("joint_attention_dim", 4096)),
            "pooled_projections": (pooled,),
        }

    def text_tokens(self, configs: Configs) -> int:
        # Without a T5, the stock pipeline puts as many zeros in its place.
        return T5_TOKENS

    def prompt_limits(self, lengths: Mapping[str, int], text_tokens: int) -> dict[str, int]:
        # What CLIP drops of a long prompt, T5 still reads.
        return {"tokenizer_3": text_tokens} if "tokenizer_3" in lengths and text_tokens else dict(lengths)

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        hidden, no_hidden, pooled, no_pooled = pipeline.encode_prompt(
            prompt, None, None, device=device, do_classifier_free_guidance=guided, max_sequence_length=text_tokens
        )
        positive = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
        negative = {"encoder_hidden_states": no_hidden, "pooled_projections": no_pooled}
        return Conditioning(positive, negative if guided else None)

    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        output: Tensor = denoiser(hidden_states=latents, timestep=timesteps, return_dict=False, **tensors)[0]
        return output
