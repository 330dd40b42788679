"""Calls of diffusers' own pipelines with given initial latents, for the shapes of ``tools.random_pipeline``."""

from collections.abc import Sequence
from typing import Any

import torch


def packed(shape: str) -> bool:
    """Whether the pipeline takes and returns latents in 2x2 patches."""
    return shape.startswith(("flux", "qwen"))


def arguments(shape: str, guidance: float, prompts: int) -> dict[str, Any]:
    """The stock pipeline's own words for a guidance of that scale (1 is none)."""
    if shape == "flux-dev":
        return {"guidance_scale": guidance}
    if shape == "flux-schnell":  # the authors' code reads 256 tokens where the pipeline's default is 512
        return {"true_cfg_scale": guidance, "negative_prompt": [""] * prompts, "max_sequence_length": 256}
    if shape == "qwenimage":  # one space, as the pipeline's documentation says
        return {"true_cfg_scale": guidance, "negative_prompt": [" "] * prompts}
    if shape == "zimage":
        return {"guidance_scale": guidance - 1}
    return {"guidance_scale": guidance}


def call(
    pipeline: Any,
    shape: str,
    start: torch.Tensor,
    prompts: Sequence[str],
    guidance: float,
    *,
    steps: int,
    side: int,
    output: str,
    **changes: Any,
) -> torch.Tensor:
    """What the stock pipeline makes of the initial latents ``start [n, C, h, w]``.

    Args:
        side: of the pictures in pixels.
        output: ``latent`` or ``pt``, pictures in [0, 1].
        changes: further arguments of the pipeline.
    """
    given = pipeline._pack_latents(start, *start.shape) if packed(shape) else start
    options = arguments(shape, guidance, len(prompts)) | changes
    found: torch.Tensor = pipeline(
        list(prompts),  # Z-Image writes its template into the list
        height=side,
        width=side,
        num_inference_steps=steps,
        latents=given.clone(),
        output_type=output,
        **options,
    ).images
    if output != "latent" or not packed(shape):
        return found
    unpacked: torch.Tensor = pipeline._unpack_latents(found, side, side, pipeline.vae_scale_factor)
    return unpacked.view(start.shape)
