"""FLUX.1: packed latents of 2x2 patches with image positions, a pooled CLIP embedding and T5's tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.families.base import Configs, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Flux(Family):
    """The guidance-distilled model (dev) takes the scale as an input; the timestep-distilled one (schnell) takes none.

    A scale above 1 with the latter is classifier-free guidance with an empty negative prompt, the ``true_cfg_scale`` of
    the stock pipeline.
    """

    name = "FLUX.1"
    network = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline",)
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    self_cutting = ("tokenizer",)
    # Flow-GRPO's (scripts/train_flux.py): attention and feed-forward of the double blocks, and q, k, v of the single.
    lora_targets = (
        "attn.to_k",
        "attn.to_q",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def channels(self, configs: Configs) -> int:
        return int(configs["transformer"].get("in_channels", 64)) // 4

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        transformer = configs["transformer"]
        return {
            "encoder_hidden_states": (t5_tokens(transformer), transformer.get("joint_attention_dim", 4096)),
            "pooled_projections": (transformer.get("pooled_projection_dim", 768),),
        }

    def text_tokens(self, configs: Configs) -> int:
        return t5_tokens(configs["transformer"])

    def stock_guidance(self, configs: Configs, guidance: float) -> dict[str, Any]:
        if self.embeds_guidance(configs):
            return super().stock_guidance(configs, guidance)
        return {"true_cfg_scale": guidance, "negative_prompt": ""}

    def prompt_limits(self, lengths: Mapping[str, int], text_tokens: int) -> dict[str, int]:
        # CLIP gives a pooled embedding of 77 tokens; what it drops of a long prompt, T5 still reads.
        return {"tokenizer_2": text_tokens}

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        def one(text: str) -> "dict[str, Tensor]":
            hidden, pooled, _ = pipeline.encode_prompt(text, device=device, max_sequence_length=text_tokens)
            return {"encoder_hidden_states": hidden, "pooled_projections": pooled}

        return Conditioning(one(prompt), one("") if guided else None)

    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        import torch
        from diffusers import FluxPipeline

        n, channels, height, width = latents.shape
        place: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        hidden = tensors["encoder_hidden_states"]
        embedded = torch.full((n,), guidance, device=latents.device) if denoiser.config.guidance_embeds else None
        output = denoiser(
            hidden_states=FluxPipeline._pack_latents(latents, n, channels, height, width),
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=embedded,
            txt_ids=torch.zeros(hidden.shape[1], 3, **place),
            img_ids=FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, **place),
            return_dict=False,
            **tensors,
        )[0]
        unpacked: Tensor = FluxPipeline._unpack_latents(output, height, width, vae_scale_factor=1)
        return unpacked


def t5_tokens(transformer: Mapping[str, Any]) -> int:
    """Tokens of T5: the authors' own code takes 512 for the guidance-distilled model and 256 for the other."""
    return 512 if transformer.get("guidance_embeds") else 256
