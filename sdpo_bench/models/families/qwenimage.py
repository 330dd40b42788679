"""Qwen-Image: packed latents as of FLUX.1, prompts of their own lengths through Qwen2.5-VL, a video autoencoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.families.base import Configs, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TEXT_TOKENS = 512
"""Default of the stock pipeline (``max_sequence_length``), after the system prompt."""


class QwenImage(Family):
    """Guidance is classifier-free with a negative prompt of one space, which the stock pipeline's documentation names
    as the empty one; the guided velocity of a token keeps the length of the conditional one. Pictures are videos of
    one frame to the autoencoder."""

    name = "Qwen-Image"
    network = "QwenImageTransformer2DModel"
    pipelines = ("QwenImagePipeline",)
    encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)
    self_cutting = ()
    # Flow-GRPO's (scripts/train_qwenimage_edit_plus.py): attention and feed-forward of both streams.
    lora_targets = (
        "attn.to_k",
        "attn.to_q",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_k_proj",
        "attn.add_q_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
    )

    def channels(self, configs: Configs) -> int:
        return int(configs["transformer"].get("in_channels", 64)) // 4

    def latent_channels(self, configs: Configs) -> int:
        return int(configs["vae"].get("z_dim", 16))

    def stride(self, configs: Configs) -> int:
        return int(2 ** len(configs["vae"].get("temperal_downsample", (False, True, True))))

    def upcast_vae(self, configs: Configs) -> bool:
        return False

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        return {"encoder_hidden_states": (TEXT_TOKENS, configs["transformer"].get("joint_attention_dim", 3584))}

    def stock_guidance(self, configs: Configs, guidance: float) -> dict[str, Any]:
        return {"true_cfg_scale": guidance, "negative_prompt": " "}

    def prompt_limits(self, lengths: Mapping[str, int], text_tokens: int) -> dict[str, int]:
        return {"tokenizer": text_tokens + _template().prompt_template_encode_start_idx}

    def as_read(self, tokenizer: Any, prompt: str) -> str:
        return str(_template().prompt_template_encode).format(prompt)

    def text_tokens(self, configs: Configs) -> int:
        return TEXT_TOKENS

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        import torch

        def one(text: str) -> "dict[str, Tensor]":
            hidden, _ = pipeline.encode_prompt(text, device=device, max_sequence_length=text_tokens)
            return {"encoder_hidden_states": hidden, "length": torch.tensor([hidden.shape[1]])}

        return Conditioning(one(prompt), one(" ") if guided else None)

    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        import torch

        n, _, height, width = latents.shape
        hidden, mask = tensors["encoder_hidden_states"], None
        if "length" in tensors:
            lengths = tensors["length"]  # on the CPU
            hidden = hidden[:, : int(lengths.max())]
            mask = torch.arange(hidden.shape[1]) < lengths[:, None]
            mask = None if mask.all() else mask.to(hidden.device)
        embedded = torch.full((n,), guidance, device=latents.device) if denoiser.config.guidance_embeds else None
        output = denoiser(
            hidden_states=_packed(latents),
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=embedded,
            encoder_hidden_states=hidden,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * n,
            return_dict=False,
        )[0]
        return _unpacked(output, height, width)

    def guided(self, unconditional: "Tensor", conditional: "Tensor", scale: float) -> "Tensor":
        plain = _packed(super().guided(unconditional, conditional, scale))
        length = _packed(conditional).norm(dim=-1, keepdim=True)
        return _unpacked(plain * (length / plain.norm(dim=-1, keepdim=True)), *conditional.shape[-2:])

    def unscaled(self, vae: Any, latents: "Tensor") -> "Tensor":
        import torch

        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(latents)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (latents * std + mean).unsqueeze(2)

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        return super().decode(vae, latents)[:, :, 0]


def _packed(latents: "Tensor") -> "Tensor":
    from diffusers import QwenImagePipeline

    packed: Tensor = QwenImagePipeline._pack_latents(latents, *latents.shape)
    return packed


def _unpacked(tokens: "Tensor", height: int, width: int) -> "Tensor":
    from diffusers import QwenImagePipeline

    latents: Tensor = QwenImagePipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)
    return latents.squeeze(2)


def _template() -> Any:
    """The stock pipeline without its parts, which has the system prompt and its length."""
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(None, None, None, None, None)
