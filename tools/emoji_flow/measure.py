"""Measure the finished model: the numbers of the model card, and picture grids to look at."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sdpo_bench.prompts.emoji_grammar import ANIMALS, caption, held_out_background
from sdpo_bench.scoring import emoji_scorer
from tools.emoji_turbo.base import tokenise
from tools.emoji_turbo.distill import load_trajectories
from tools.emoji_turbo.measure import STEP_COUNTS, save_grid, scores

from .autoencoder import load_autoencoder
from .networks import Denoiser, column, load_denoiser

PROMPT_SETS = {
    "simple": list(ANIMALS),
    "held out": [caption(animal, held_out_background(animal)) for animal in ANIMALS],
}
SAMPLERS = {"ode": 0.0, "re-noised": 1.0}
"""Share of fresh noise after each step: none (Euler), or all (the sampler of consistency models; CPS with eta 1)."""


@torch.no_grad()
def sample(denoiser: Denoiser, vae, prompts: list[str], steps: int, fresh: float, seed: int = 0) -> Tensor:
    """Pictures ``[B, 3, 32, 32]`` in [0, 1] at noise levels 1, 1 - 1/steps, ..., without guidance."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = torch.linspace(1, 0, steps + 1)
    parts = []
    for start in range(0, len(prompts), 90):
        tokens = torch.tensor([tokenise(text) for text in prompts[start : start + 90]])
        text = denoiser.read(tokens)
        x = torch.randn(len(tokens), 4, 8, 8, generator=generator)
        for here, there in pairwise(sigmas):
            velocity = denoiser(x, here.expand(len(x)), text)
            original, noise = x - here * velocity, x + (1 - here) * velocity
            new = torch.randn(x.shape, generator=generator)
            x = (1 - there) * original + there * ((1 - fresh**2) ** 0.5 * noise + fresh * new)
        parts.append(vae.decode(x / vae.config.scaling_factor).sample)
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def first_step_error(folder: Path) -> float:
    """Relative error of the student's one-step picture against the end of the teacher's trajectory."""
    points, _, ends, tokens, _ = (part[:512] for part in load_trajectories(folder))
    student = load_denoiser(folder / "student")
    sigma = torch.ones(len(points))
    original = points[:, 0].float() - column(sigma) * student(points[:, 0].float(), sigma, student.read(tokens))
    return float((original - ends.float()).square().mean() / ends.float().var())


def measure(folder: Path, repeats: int = 4) -> None:
    """Write ``measures.json`` and ``samples-SAMPLER.png`` (a row for each step count), of student and base model."""
    torch.set_num_threads(1)
    vae, scorers = load_autoencoder(), (emoji_scorer.load_scorer("align"), emoji_scorer.load_scorer("accuracy"))
    shown, result = list(ANIMALS[:24]), {"first step error": first_step_error(folder)}
    for name in ("student", "base"):
        denoiser = load_denoiser(folder / name)
        for sampler, fresh in SAMPLERS.items():
            result[f"{name}, {sampler}"] = {
                split: {
                    n: scores(scorers, sample(denoiser, vae, prompts * repeats, n, fresh), prompts * repeats)
                    for n in STEP_COUNTS
                }
                for split, prompts in PROMPT_SETS.items()
            }
            rows = [sample(denoiser, vae, shown, n, fresh) for n in STEP_COUNTS]
            save_grid(torch.cat(rows), len(shown), folder / f"samples-{name}-{sampler}.png")
    (folder / "measures.json").write_text(json.dumps(result, indent=1) + "\n")
