"""The policy: a Stable-Diffusion-family pipeline whose UNet carries one LoRA adapter.

Four verbs are all the rest of the package needs: ``encode`` prompts, ``predict`` the model output of a batch of
latents, ``decode`` latents to images, ``save``/``load`` the adapter in diffusers' own format. The reference model is
the same UNet with the adapter off, so it costs no memory. Every denoiser call passes through ``predict`` and is
reported to ``on_call``, which is how the ledger stays exact.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sdpo_bench.errors import UsageError
from sdpo_bench.store import atomic_write

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "default"
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: tensors by UNet argument name, each ``[n, ...]``.

    ``negative`` holds the unconditional ones where guidance is in use.
    """

    positive: dict[str, Tensor]
    negative: dict[str, Tensor] | None = None

    def __getitem__(self, rows: Tensor) -> "Conditioning":
        """Conditioning of the given rows (int64 index, repeats allowed)."""
        return Conditioning(_pick(self.positive, rows), _pick(self.negative, rows) if self.negative else None)


def _pick(tensors: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}


class Policy:
    """A pipeline, its LoRA adapter, and the only door to the denoiser.

    Args:
        pipeline: a loaded ``StableDiffusionPipeline`` or relative.
        guidance_scale: 1.0 means no classifier-free guidance (one denoiser evaluation a latent), more means two.
        precision: compute dtype of the frozen weights; LoRA weights and log-probabilities stay float32.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        guidance_scale: float = 1.0,
        precision: Precision = "fp32",
        device: str = "cpu",
    ):
        self.pipeline = pipeline
        self.unet: Any = pipeline.unet
        self.vae = pipeline.vae
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.guidance_scale = guidance_scale
        self.on_call: Callable[[int], None] | None = None
        self._cache: dict[str, Conditioning] = {}
        pipeline.to(self.device, self.dtype)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()

    # -- adapter ---------------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: float, targets: Sequence[str], seed: int) -> None:
        """Add a fresh adapter: A ~ N(0, 1/rank), B = 0 (diffusers' "gaussian"), drawn from ``seed`` alone.

        Raises:
            UsageError: no module of the UNet matches ``targets``.
        """
        from peft import LoraConfig

        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")
        try:
            self.unet.add_adapter(config, adapter_name=ADAPTER)
        except ValueError as error:
            raise UsageError(
                f"LoRA targets {list(targets)} fit no module of this UNet. "
                "Set model.lora_targets; Stable Diffusion's attention has to_q, to_k, to_v, to_out.0."
            ) from error
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in sorted(self.lora_parameters().items()):
            parameter.data = parameter.data.float()
            if "lora_A" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).div(rank).to(self.device)

    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: LoRA matrices only, float32."""
        return {name: p for name, p in self.unet.named_parameters() if "lora_" in name}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside this context the denoiser is the base model: adapter off, no gradients."""
        self.unet.disable_adapters()
        try:
            with torch.no_grad():
                yield
        finally:
            self.unet.enable_adapters()

    def save(self, folder: Path) -> Path:
        """Write the adapter so that ``StableDiffusionPipeline.load_lora_weights(folder)`` loads it."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft import get_peft_model_state_dict

        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet, adapter_name=ADAPTER))
        target = Path(folder) / LORA_FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as unfinished:  # a killed process must not leave half an adapter
            type(self.pipeline).save_lora_weights(unfinished, unet_lora_layers=state, safe_serialization=True)
            atomic_write(target, (Path(unfinished) / LORA_FILE).read_bytes())
        return target

    def load(self, folder: Path) -> None:
        """Load an adapter written by :meth:`save` in place of the present one (bit-equal round trip)."""
        if getattr(self.unet, "peft_config", None):
            self.unet.delete_adapters(ADAPTER)
        self.unet.load_lora_adapter(str(folder), prefix="unet", weight_name=LORA_FILE, adapter_name=ADAPTER)
        for name, parameter in self.unet.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def set_guidance(self, scale: float) -> None:
        """Change the guidance scale; conditioning is encoded anew where the unconditional branch comes or goes."""
        if (scale > 1) != (self.guidance_scale > 1):
            self._cache.clear()
        self.guidance_scale = scale

    # -- text, denoiser, pictures ----------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of each prompt, in order; every distinct prompt is encoded once per policy."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._cache:
                self._cache[prompt] = self._encode_one(prompt)
        parts = [self._cache[prompt] for prompt in prompts]
        positive = {k: torch.cat([p.positive[k] for p in parts]) for k in parts[0].positive}
        if parts[0].negative is None:
            return Conditioning(positive)
        negatives = [p.negative or {} for p in parts]
        return Conditioning(positive, {k: torch.cat([n[k] for n in negatives]) for k in positive})

    def _encode_one(self, prompt: str) -> Conditioning:
        guided = self.guidance_scale > 1
        positive, negative = self.pipeline.encode_prompt(
            prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )[:2]
        name = "encoder_hidden_states"
        return Conditioning({name: positive}, {name: negative} if guided else None)

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Model output ``[n, C, h, w]`` float32 for latents ``[n, C, h, w]`` at int64 timesteps ``[n]``.

        With guidance both branches are evaluated, and both are charged.
        """
        if conditioning.negative is None:
            return self._call(latents, timesteps, conditioning.positive)
        both = {k: torch.cat([conditioning.negative[k], v]) for k, v in conditioning.positive.items()}
        output = self._call(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _call(self, latents: Tensor, timesteps: Tensor, arguments: dict[str, Tensor]) -> Tensor:
        if self.on_call is not None:
            self.on_call(len(latents))
        with self._autocast():
            output = self.unet(
                latents.to(self.device, self.dtype),
                timesteps.to(self.device),
                return_dict=False,
                **arguments,
            )[0]
        return output.float()

    def _autocast(self) -> Any:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``[n, 3, H, W]`` float32 in [0, 1] of scaled latents ``[n, C, h, w]``; differentiable."""
        config = self.vae.config
        unscaled = latents.to(self.device, self.vae.dtype) / config.scaling_factor
        shift = getattr(config, "shift_factor", None) or 0.0
        images = self.vae.decode(unscaled + shift, return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """``(C, h, w)`` of one latent."""
        config = self.unet.config
        return config.in_channels, config.sample_size, config.sample_size
