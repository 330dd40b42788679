"""The shared autoencoder: emoji-turbo's, as the package ships it."""

from pathlib import Path

import torch
from torch import Tensor

import sdpo_bench
from tools.emoji_turbo.autoencoder import encode_pool
from tools.emoji_turbo.pictures import Pool

FOLDER = Path(sdpo_bench.__file__).parent / "assets" / "emoji_turbo" / "vae"


def load_autoencoder():
    """In evaluation mode, float32."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny.from_pretrained(FOLDER, torch_dtype=torch.float32).eval()


def encode(pool: Pool) -> Tensor:
    """Latents ``[N, 4, 8, 8]`` of a pool, of unit variance."""
    model = load_autoencoder()
    return encode_pool(model, pool) * model.config.scaling_factor
