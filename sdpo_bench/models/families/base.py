"""What the engine must know of a family of pipelines: how a prompt is encoded, the denoiser called, a latent decoded.

Facts that follow from a pipeline's configuration files (``configs``: the content of each part's ``config.json`` by
part) need neither weights nor torch, so that settings, sizes and refusals come before anything is loaded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sdpo_bench.errors import UsageError
from sdpo_bench.models.conditioning import Conditioning

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Configs = Mapping[str, Mapping[str, Any]]

FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
"""The one scheduler class of a flow-matching model: its sigmas are what the sampler ``flow`` takes."""


class Family(ABC):
    """A family of text-to-image pipelines with one kind of denoiser."""

    name: ClassVar[str]
    """In messages, e.g. ``FLUX.1``."""
    network: ClassVar[str]
    """Class of the denoiser in diffusers."""
    denoiser: ClassVar[str] = "transformer"
    """The denoiser's part of the pipeline; also the prefix of its LoRA weights in a file."""
    pipelines: ClassVar[tuple[str, ...]] = ()
    """Pipeline classes that call this denoiser as done here; empty: any."""
    encoders: ClassVar[tuple[str, ...]]
    """Text encoders, in the order of their tokenizers."""
    tokenizers: ClassVar[tuple[str, ...]]
    self_cutting: ClassVar[tuple[str, ...]]
    """Tokenizers that cut prompts at their own ``model_max_length``; the others are told a length."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Encoders and tokenizers that a pipeline of this family may lack."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Modules of the denoiser that get an adapter by default."""
    flow: ClassVar[bool] = True
    """Whether the output is a velocity ``eps - x0`` at timestep ``1000 sigma``."""

    # -- from the configuration files -----------------------------------------------------------------------

    def check(self, configs: Configs, location: str) -> None:
        """Refuse models of another task.

        Raises:
            UsageError: the denoiser takes other channels than the autoencoder's latents have.
        """
        channels, latent = self.channels(configs), self.latent_channels(configs)
        if channels != latent:
            raise UsageError(
                f"'{location}' is not a plain text-to-image pipeline: its {self.network} takes {channels} channels for "
                f"latents of {latent}. Inpainting, control and image-conditioned models are not supported."
            )

    def check_scheduler(self, name: str) -> None:
        """Refuse a scheduler whose steps would read a velocity as noise.

        Args:
            name: class of the pipeline's scheduler.

        Raises:
            UsageError: the family is flow-matching and the scheduler is not :data:`FLOW_SCHEDULER`.
        """
        if self.flow and name != FLOW_SCHEDULER:
            raise UsageError(
                f"the model's {self.network} ({self.name}) is a flow-matching model, and its pipeline has the "
                f"scheduler {name or '(unnamed)'}; expected {FLOW_SCHEDULER}. Put the scheduler folder that the "
                "model's authors published into the pipeline, or use another --model."
            )

    def channels(self, configs: Configs) -> int:
        """Channels of the latents that the denoiser takes, as :attr:`Policy.latent_shape` has them."""
        return int(configs[self.denoiser]["in_channels"])

    def latent_channels(self, configs: Configs) -> int:
        """Channels of a latent by the autoencoder's configuration, in the same arrangement."""
        return int(configs["vae"].get("latent_channels", 4))

    def stride(self, configs: Configs) -> int:
        """Pixels on the side of one latent element."""
        vae = configs["vae"]
        levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or (64,)
        return int(2 ** (len(levels) - 1))

    def patch(self, configs: Configs) -> int:
        """Latent elements on the side of one token; a picture must be a multiple of it."""
        return 2

    def native_side(self, configs: Configs) -> int:
        """Side of the latents of the model's own pictures."""
        return 128

    def latent_side(self, configs: Configs, resolution: int | None) -> int:
        """Side of the latents for pictures of ``resolution`` pixels, or of the model's own.

        Raises:
            UsageError: not a multiple of what autoencoder and denoiser divide by, or larger than the model takes.
        """
        if resolution is None:
            return self.native_side(configs)
        step = self.stride(configs) * self.patch(configs)
        largest = self.largest_side(configs) * self.stride(configs)
        near = max(step, round(resolution / step) * step)
        if resolution % step:
            raise UsageError(f"model.resolution = {resolution} is not a multiple of {step}. Use {near}.")
        if resolution > largest > 0:
            raise UsageError(f"model.resolution = {resolution} is more than this model's {largest}. Use {largest}.")
        return resolution // self.stride(configs)

    def largest_side(self, configs: Configs) -> int:
        """Largest side of latents that the denoiser has positions for; 0: no limit."""
        return 0

    def image_tokens(self, configs: Configs, side: int) -> int:
        """Tokens of a picture in the denoiser: what a dynamic shift of the noise levels depends on."""
        return (side // self.patch(configs)) ** 2

    def embeds_guidance(self, configs: Configs) -> bool:
        """Whether the guidance scale is an input of the denoiser (guidance-distilled) and costs no second call."""
        return bool(configs[self.denoiser].get("guidance_embeds"))

    def upcast_vae(self, configs: Configs) -> bool:
        """Whether the autoencoder overflows in half precision and must stay float32."""
        return bool(configs["vae"].get("force_upcast", True))  # diffusers' own default

    def activation_units(self, configs: Configs, side: int) -> int:
        """What the memory of a call grows with: tokens of picture and prompt."""
        text = max(shape[0] for shape in self.text_shapes(configs).values() if len(shape) == 2)
        return self.image_tokens(configs, side) + text

    @abstractmethod
    def text_shapes(self, configs: Configs) -> dict[str, tuple[int, ...]]:
        """Shapes of the conditioning tensors of one prompt, at the longest."""

    def text_tokens(self, configs: Configs) -> int:
        """Tokens of a prompt for the encoder whose length is free (``max_sequence_length`` of the stock pipeline, whose
        default this is); 0 where all encoders read a fixed length."""
        return 0

    def chosen_text_tokens(self, configs: Configs, asked: int | None) -> int:
        """Tokens of a prompt that a run with ``model.text_tokens = asked`` encodes.

        Raises:
            UsageError: the family's encoders read a fixed number.
        """
        own = self.text_tokens(configs)
        if asked is not None and not own:
            raise UsageError(f"model.text_tokens = {asked}: {self.name} reads prompts of a fixed length. Leave it out.")
        return own if asked is None else asked

    def stock_guidance(self, configs: Configs, guidance: float) -> dict[str, Any]:
        """Arguments with which the stock pipeline guides a picture as this family does at scale ``guidance``."""
        return {"guidance_scale": guidance}

    def prompt_limits(self, lengths: Mapping[str, int], text_tokens: int) -> dict[str, int]:
        """Tokenizers that decide which part of a prompt is read, with the tokens of each.

        Args:
            lengths: ``model_max_length`` of each tokenizer that the pipeline has.
            text_tokens: as :meth:`chosen_text_tokens`.
        """
        return dict(lengths)

    def as_read(self, tokenizer: Any, prompt: str) -> str:
        """The text that the tokenizer is given for a prompt."""
        return prompt

    # -- with weights ---------------------------------------------------------------------------------------

    @abstractmethod
    def encode(
        self, pipeline: Any, prompt: str, *, device: "torch.device", guided: bool, size: int, text_tokens: int
    ) -> Conditioning:
        """Conditioning of one prompt, one row.

        Args:
            size: the picture's side in pixels.
            text_tokens: as :meth:`text_tokens`, or what the run asks for.
        """

    @abstractmethod
    def predict(
        self, denoiser: Any, latents: "Tensor", timesteps: "Tensor", tensors: "dict[str, Tensor]", guidance: float
    ) -> "Tensor":
        """Output ``[n, C, h, w]`` of the denoiser for latents of the same shape.

        Args:
            timesteps: ``[n]``, those of the schedule.
            tensors: conditioning of each row.
            guidance: scale, of which guidance-distilled denoisers alone take notice.
        """

    def unscaled(self, vae: Any, latents: "Tensor") -> "Tensor":
        """What the autoencoder decodes, for latents of the denoiser."""
        import torch

        config = vae.config
        unscaled = latents / config.scaling_factor
        if getattr(config, "latents_mean", None) is not None:
            mean, std = (
                torch.tensor(v).view(1, -1, 1, 1).to(unscaled) for v in (config.latents_mean, config.latents_std)
            )
            unscaled = unscaled * std + mean
        return unscaled + (getattr(config, "shift_factor", None) or 0.0)

    def decode(self, vae: Any, latents: "Tensor") -> "Tensor":
        """Pictures ``[n, 3, H, W]`` in [-1, 1] of the denoiser's latents ``[n, C, h, w]``."""
        pictures: Tensor = vae.decode(self.unscaled(vae, latents), return_dict=False)[0]
        return pictures

    def guided(self, unconditional: "Tensor", conditional: "Tensor", scale: float) -> "Tensor":
        """Classifier-free guidance of two outputs ``[n, C, h, w]``."""
        return unconditional + scale * (conditional - unconditional)
