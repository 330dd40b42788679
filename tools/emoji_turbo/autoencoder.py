"""Stage 1: the autoencoder, 32x32 pictures to 8x8x4 latents and back."""

from pathlib import Path

import torch
from torch import Tensor

from .networks import make_autoencoder
from .pictures import Pool
from .training import Plan, Trainer, Worker

PLAN = Plan(iterations=1000, batch=36, seed=1, adam_lr=2e-3, weight_decay=0.0)

LATENT_NOISE = 0.1
"""Noise on the latents during training, so that the decoder forgives the denoiser's small errors."""


def train(folder: Path, worker: Worker, plan: Plan = PLAN) -> None:
    """Train on ``folder/pool.pt`` and write ``folder/vae``."""
    torch.manual_seed(plan.seed)
    pool = Pool.load(folder / "pool.pt")
    model = make_autoencoder().to(memory_format=torch.channels_last)

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = pool.pictures(torch.randint(len(pool), (count,), generator=generator))
        latents = model.encoder(images.contiguous(memory_format=torch.channels_last))
        noise = torch.randn(latents.shape, generator=generator)
        error = model.decoder(latents + LATENT_NOISE * noise) - images
        square = error.square().mean()
        loss = error.abs().mean() + square + 0.5 * edge_error(error) + 0.02 * spread_penalty(latents)
        return loss, {"psnr": 10 * torch.log10(4 / square.detach())}

    trainer = Trainer("autoencoder", {"vae": model}, plan, folder, worker)
    trainer.run(loss_function)
    if worker.rank == 0:
        finished = trainer.average["vae"]
        finished.register_to_config(scaling_factor=_unit_scale(finished, pool))
        finished.save_pretrained(folder / "vae")


def edge_error(error: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring errors: punishes blurred outlines, which MSE forgives."""
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def spread_penalty(latents: Tensor) -> Tensor:
    """Keeps each latent channel near mean 0 and variance 1, and its outliers rare."""
    mean, square = latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))
    return (square - 1).square().mean() + mean.square().mean() + 0.01 * latents.pow(4).mean()


@torch.no_grad()
def encode_pool(model, pool: Pool) -> Tensor:
    """Unscaled latents ``[N, 4, 8, 8]`` of a whole pool."""
    return torch.cat([model.encode(pool.pictures(part)).latents for part in torch.arange(len(pool)).split(256)])


def _unit_scale(model, pool: Pool) -> float:
    some = Pool(*(value[:2048] for value in pool.__dict__.values()))
    return float(1 / encode_pool(model, some).std())
