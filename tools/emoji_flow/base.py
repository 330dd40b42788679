"""Stage 1: the base model, rectified flow in the latent space of emoji-turbo's autoencoder.

On the straight line x_s = (1 - s) x0 + s eps the network learns the velocity eps - x0 (Liu et al. 2022).
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.emoji_turbo.base import EMPTY, caption_tokens, draw_captions
from tools.emoji_turbo.pictures import Pool
from tools.emoji_turbo.training import Plan, Trainer, Worker

from .autoencoder import encode
from .networks import column, make_denoiser, save_denoiser

PLAN = Plan(iterations=2800, batch=96, seed=21)
BORDERS = ("embed", "proj_out", "norm_out")
"""Layers at the borders of the network, which Muon does not suit."""


def train(folder: Path, worker: Worker, plan: Plan = PLAN) -> None:
    """Train on ``folder/pool.pt``; write ``folder/base``."""
    torch.manual_seed(plan.seed)
    pool = Pool.load(folder / "pool.pt")
    latents = encode(pool)
    captions = caption_tokens()
    denoiser = make_denoiser()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(pool), (count,), generator=generator)
        tokens = draw_captions(captions, pool.classes[index], pool.backgrounds[index], generator, empty=EMPTY)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = stratified_sigmas(count, generator)
        noisy = (1 - column(sigmas)) * clean + column(sigmas) * noise
        return F.mse_loss(denoiser(noisy, sigmas, denoiser.read(tokens)), noise - clean), {}

    trainer = Trainer("base", {"denoiser": denoiser}, plan, folder, worker, borders=BORDERS)
    trainer.run(loss_function)
    if worker.rank == 0:
        save_denoiser(trainer.average["denoiser"], folder / "base")


def stratified_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """One noise level from each of ``count`` equal parts of (0, 1]: less noisy than independent ones."""
    return (torch.arange(count) + 1 - torch.rand(count, generator=generator)) / count
