"""Inputs of a denoiser besides latents and timestep: text, and what some architectures add to it.

Two shapes of Stable Diffusion are told apart by the parts they have, never by name: one text encoder, or two with
pooled embeddings and size conditioning (SDXL). Each knows how to encode one prompt and how to hand the tensors to the
UNet, so the policy above knows neither.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of n prompts: tensors by name, each ``[n, ...]``.

    ``negative`` holds the unconditional ones where classifier-free guidance is in use.
    """

    positive: dict[str, Tensor]
    negative: dict[str, Tensor] | None = None

    def __getitem__(self, rows: Tensor) -> "Conditioning":
        """Conditioning of the given rows (int64 index, repeats allowed)."""
        return Conditioning(_pick(self.positive, rows), _pick(self.negative, rows) if self.negative else None)

    @classmethod
    def join(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """One conditioning of the rows of all parts, which all have a negative side or none has."""
        positive = {k: torch.cat([p.positive[k] for p in parts]) for k in parts[0].positive}
        if parts[0].negative is None:
            return cls(positive)
        negatives = [p.negative or {} for p in parts]
        return cls(positive, {k: torch.cat([n[k] for n in negatives]) for k in positive})


def _pick(tensors: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}


class TextShape(ABC):
    """How pipelines of one shape turn prompts into UNet arguments."""

    encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""

    @abstractmethod
    def encode(self, pipeline: Any, prompt: str, *, device: torch.device, guided: bool, size: int) -> Conditioning:
        """Conditioning of one prompt, one row; ``size`` is the picture's side in pixels."""

    @abstractmethod
    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of the UNet for these tensors."""

    def upcast_vae(self, pipeline: Any) -> bool:
        """Whether the autoencoder overflows in half precision and must stay float32."""
        return False


class OneEncoder(TextShape):
    """Stable Diffusion 1.x, 2.x, SD-Turbo, latent consistency models."""

    encoders = ("text_encoder",)

    def encode(self, pipeline: Any, prompt: str, *, device: torch.device, guided: bool, size: int) -> Conditioning:
        positive, negative = pipeline.encode_prompt(
            prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )[:2]
        name = "encoder_hidden_states"
        return Conditioning({name: positive}, {name: negative} if guided else None)

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return dict(tensors)


class TwoEncoders(TextShape):
    """SDXL and its kind: hidden states of both encoders side by side, the second one's pooled embedding, and six
    numbers for original size, crop corner and target size (the whole picture, uncropped, as stock diffusers)."""

    encoders = ("text_encoder", "text_encoder_2")

    def encode(self, pipeline: Any, prompt: str, *, device: torch.device, guided: bool, size: int) -> Conditioning:
        hidden, no_hidden, pooled, no_pooled = pipeline.encode_prompt(
            prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
        sizes = torch.tensor([[size, size, 0, 0, size, size]], device=hidden.device, dtype=hidden.dtype)
        positive = {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": sizes}
        if not guided:
            return Conditioning(positive)
        return Conditioning(positive, {"encoder_hidden_states": no_hidden, "text_embeds": no_pooled, "time_ids": sizes})

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        added = {name: tensors[name] for name in ("text_embeds", "time_ids")}
        return {"encoder_hidden_states": tensors["encoder_hidden_states"], "added_cond_kwargs": added}

    def upcast_vae(self, pipeline: Any) -> bool:
        return bool(getattr(pipeline.vae.config, "force_upcast", False))


def text_shape(pipeline: Any) -> TextShape:
    """The shape of a pipeline, by its parts."""
    return TwoEncoders() if getattr(pipeline, "text_encoder_2", None) is not None else OneEncoder()
