"""Last stage: the pipeline folder as the package ships it, in half precision."""

from pathlib import Path

from tools.emoji_turbo.assemble import forget_paths
from tools.emoji_turbo.networks import make_tokenizer

from .autoencoder import load_autoencoder
from .networks import ENCODERS, load_denoiser, make_scheduler


def save_pipeline(denoiser_folder: Path, target: Path) -> None:
    """Write ``target``, a ``StableDiffusion3Pipeline`` folder without the optional T5 encoder."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    denoiser = load_denoiser(denoiser_folder)
    tokenizers = {name: make_tokenizer() for name in ("tokenizer", "tokenizer_2")}
    pipeline = StableDiffusion3Pipeline(
        transformer=denoiser.transformer,
        scheduler=make_scheduler(),
        vae=load_autoencoder(),
        **{name: denoiser.encoders[name] for name in ENCODERS},
        **tokenizers,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to(torch.float16).save_pretrained(target)
    forget_paths(target)
