"""Stable Diffusion with a UNet: one text encoder, or two with pooled embeddings and size conditioning (SDXL)."""

from typing import TYPE_CHECKING, Any, ClassVar

from sdpo_bench.errors import UsageError
from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.families.base import Configs, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class OneEncoder(Family):
    """Stable Diffusion 1.x, 2.x, SD-Turbo, latent consistency models."""

    name = "Stable Diffusion"
    network = "UNet2DConditionModel"
    denoiser = "unet"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    self_cutting: ClassVar[tuple[str, ...]] = ("tokenizer",)
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")  # official code of the paper
    flow = False

    def check(self, configs: Configs, location: str) -> None:
        unet = configs.get("unet", {})
        channels, latent = unet.get("in_channels", 4), configs.get("vae", {}).get("latent_channels", 4)
        added = unet.get("addition_embed_type")
        if channels != latent or added not in (None, "text_time") or unet.get("class_embed_type"):
            raise UsageError(
                f"'{location}' is not a plain text-to-image pipeline: its UNet takes {channels} channels for latents "
                f"of {latent}, added conditioning '{added}', class conditioning '{unet.get('class_embed_type')}'. "
                "Inpainting and image-conditioned models are not supported."
            )

    def channels(self, configs: Configs) -> int:
        return int(configs["unet"].get("in_channels", 4))

    def patch(self, configs: Configs) -> int:
        return int(2 ** (len(configs["unet"].get("block_out_channels", (320, 640, 1280, 1280))) - 1))

    def native_side(self, configs: Configs) -> int:
        return int(configs["unet"]["sample_size"])

    def embeds_guidance(self, configs: Configs) -> bool:
        return bool(configs["unet"].get("time_cond_proj_dim"))

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        width = configs["unet"]["cross_attention_dim"]
        return {"encoder_hidden_states": (77, width if isinstance(width, int) else width[0])}

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        positive, negative = pipeline.encode_prompt(
            prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )[:2]
        name = "encoder_hidden_states"
        return Conditioning({name: positive}, {name: negative} if guided else None)

    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        inputs = self.arguments(tensors)
        if width := denoiser.config.time_cond_proj_dim:
            inputs["timestep_cond"] = _guidance_embedding(guidance, width).to(latents).expand(len(latents), -1)
        output: Tensor = denoiser(latents, timesteps, return_dict=False, **inputs)[0]
        return output

    def arguments(self, tensors: "dict[str, Tensor]") -> dict[str, Any]:
        """Keyword arguments of the UNet for these tensors."""
        return dict(tensors)

    def upcast_vae(self, configs: Configs) -> bool:
        return False

    def activation_units(self, configs: Configs, side: int) -> int:
        return side**2


class TwoEncoders(OneEncoder):
    """SDXL and its kind: hidden states of both encoders side by side, the second one's pooled embedding, and six
    numbers for original size, crop corner and target size (the whole picture, uncropped, as stock diffusers)."""

    name = "Stable Diffusion XL"
    encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")
    self_cutting = ("tokenizer", "tokenizer_2")

    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        unet = configs["unet"]
        pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        return super().text_shapes(configs) | {"text_embeds": (pooled,), "time_ids": (6,)}

    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        import torch

        hidden, no_hidden, pooled, no_pooled = pipeline.encode_prompt(
            prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        sizes = torch.tensor([[size, size, 0, 0, size, size]], device=hidden.device, dtype=hidden.dtype)
        positive = {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": sizes}
        if not guided:
            return Conditioning(positive)
        return Conditioning(positive, {"encoder_hidden_states": no_hidden, "text_embeds": no_pooled, "time_ids": sizes})

    def arguments(self, tensors: "dict[str, Tensor]") -> dict[str, Any]:
        added = {name: tensors[name] for name in ("text_embeds", "time_ids")}
        return {"encoder_hidden_states": tensors["encoder_hidden_states"], "added_cond_kwargs": added}

    def upcast_vae(self, configs: Configs) -> bool:
        return bool(configs["vae"].get("force_upcast", True))  # diffusers' own default


def _guidance_embedding(guidance: float, width: int) -> "Tensor":
    """Embedding ``[1, width]`` of a guidance scale, as stock diffusers tells it to a guidance-distilled UNet."""
    import torch
    from diffusers import LatentConsistencyModelPipeline

    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    embedding: Tensor = embed(None, torch.tensor([guidance - 1.0]), embedding_dim=width)
    return embedding
