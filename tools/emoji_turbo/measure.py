"""Measure the finished model and rewards: the numbers of the model card, and picture grids to look at."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdpo_bench.prompts.emoji_grammar import ANIMALS, BACKGROUNDS, CLASSES, EXTRA, caption, held_out_background
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.scoring.emoji_scorer import AccuracyScorer, AlignScorer, alignment, correctness, style_score

from .pictures import Pool
from .scorers import VALIDATION, unit

STEP_COUNTS = (1, 2, 4, 8, 16, 50)
PROMPT_SETS = {
    "simple": list(ANIMALS),
    "held out": [caption(animal, held_out_background(animal)) for animal in ANIMALS],
    "extra": [caption(name) for name in EXTRA],
}


def load_scorers(folder: Path) -> tuple[AlignScorer, AccuracyScorer]:
    """The two scorers just trained."""
    align, accuracy = AlignScorer(), AccuracyScorer()
    align.load_state_dict(torch.load(folder / "align.pt", weights_only=True))
    accuracy.load_state_dict(torch.load(folder / "accuracy.pt", weights_only=True))
    return align.eval(), accuracy.eval()


@torch.no_grad()
def sample(pipeline, prompts: list[str], steps: int, seed: int = 0) -> Tensor:
    """Pictures ``[B, 3, 32, 32]`` in [0, 1] by the harness's own sampler: DDIM, trailing, eta 1, guidance 1."""
    schedule = make_schedule(dict(pipeline.scheduler.config), steps, eta=1.0, spacing="trailing")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), 90):
        part = prompts[start : start + 90]
        tokens = pipeline.tokenizer(part, padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = pipeline.text_encoder(tokens).last_hidden_state
        latents = torch.randn(len(part), 4, 8, 8, generator=generator)
        for index, step in enumerate(schedule.timesteps):
            output = pipeline.unet(latents, step, states).sample
            denoised = schedule.denoise(output, latents, torch.full((len(part),), index))
            latents = denoised.mean + denoised.std * torch.randn(latents.shape, generator=generator)
        parts.append(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample)
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def scores(scorers: tuple[AlignScorer, AccuracyScorer], images: Tensor, prompts: list[str]) -> dict[str, float]:
    """Mean of each reward."""
    align, accuracy = scorers
    return {
        "emoji-align": float(alignment(align, images, prompts).mean()),
        "emoji-accuracy": float(correctness(accuracy, images, prompts).mean()),
        "emoji-style": float(style_score(align, images, "fluent 3d").mean()),
    }


def step_table(pipeline, scorers, repeats: int) -> dict[str, dict[int, dict[str, float]]]:
    """Mean rewards by prompt set and number of steps, ``repeats`` pictures a prompt."""
    return {
        name: {n: scores(scorers, sample(pipeline, prompts * repeats, n), prompts * repeats) for n in STEP_COUNTS}
        for name, prompts in PROMPT_SETS.items()
    }


def class_table(pipeline, scorers, repeats: int, steps: int = 4) -> dict[str, float]:
    """Accuracy of each animal, worst first."""
    prompts = list(ANIMALS) * repeats
    hits = correctness(scorers[1], sample(pipeline, prompts, steps, seed=5), prompts).view(repeats, -1).mean(0)
    return dict(sorted(zip(ANIMALS, hits.tolist()), key=lambda item: item[1]))


@torch.no_grad()
def ranking_table(pipeline, scorers, pool: Pool, folder: Path) -> dict[str, dict[str, float]]:
    """Rewards of pictures that a reward must rank in this order; prompts are "CLASS on a COLOUR
    background".
    """
    index = torch.arange(VALIDATION)
    prompts = [caption(CLASSES[pool.classes[i]], BACKGROUNDS[pool.backgrounds[i]]) for i in index]
    real = unit(pool.images[index])
    vae = pipeline.vae
    rebuilt = (vae.decode(vae.encode(real * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    means = torch.stack([unit(pool.images[pool.classes == c]).mean(0) for c in range(len(CLASSES))])
    kinds = {
        "real": real,
        "reconstructed": rebuilt,
        "sampled, 4 steps": sample(pipeline, prompts, 4),
        "sampled, 1 step": sample(pipeline, prompts, 1),
        "blurred to 4x4": torch.nn.functional.interpolate(
            torch.nn.functional.avg_pool2d(real, 8), scale_factor=8, mode="bilinear"
        ),
        "class mean": means[pool.classes[index]],
        "blank": torch.ones_like(real) * real[:, :, :1, :1],
        "noise": torch.rand(real.shape, generator=torch.Generator().manual_seed(1)),
    }
    psnr = float(10 * torch.log10(1 / (rebuilt - real).square().mean()))
    return {"psnr": {"reconstructed": psnr}} | {
        name: scores(scorers, images, prompts) for name, images in kinds.items()
    }


def save_grid(images: Tensor, columns: int, path: Path, zoom: int = 3) -> None:
    """Write pictures ``[N, 3, 32, 32]`` in [0, 1] as one PNG, row by row."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * 34, columns * 34, 3), 255, np.uint8)
    for place, picture in enumerate((images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()):
        top, left = place // columns * 34, place % columns * 34
        sheet[top : top + 32, left : left + 32] = picture
    Image.fromarray(sheet).resize((columns * 34 * zoom, rows * 34 * zoom), Image.Resampling.NEAREST).save(path)


def measure(folder: Path, pipeline_folder: Path, repeats: int = 4) -> None:
    """Write ``measures.json``, ``samples.png`` (a row for each step count) and ``vae.png``."""
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    scorers, pool = load_scorers(folder), Pool.load(folder / "scorer_pool.pt")
    result = {
        "ranking": ranking_table(pipeline, scorers, pool, folder),
        "steps": step_table(pipeline, scorers, repeats),
        "classes": class_table(pipeline, scorers, 2 * repeats),
    }
    (folder / "measures.json").write_text(json.dumps(result, indent=1) + "\n")
    shown = list(ANIMALS[:24])
    save_grid(torch.cat([sample(pipeline, shown, n) for n in STEP_COUNTS]), 24, folder / "samples.png")
    save_grid(reconstruction_pairs(pipeline.vae, pool), 24, folder / "vae.png")
    save_examples(pool, folder)


@torch.no_grad()
def reconstruction_pairs(vae, pool: Pool) -> Tensor:
    """Rows of real pictures above their reconstructions, 24 each."""
    real = unit(pool.images[:72])
    rebuilt = vae.decode(vae.encode(real * 2 - 1).latents).sample / 2 + 0.5
    return torch.stack([real.view(3, 24, 3, 32, 32), rebuilt.view(3, 24, 3, 32, 32)], 1).flatten(0, 2)


def save_examples(pool: Pool, folder: Path, count: int = 16) -> None:
    """Write ``examples.png``, 8 unframed pictures a row, and their prompts: real pictures for the tests."""
    images = unit(pool.images[:count]).view(-1, 8, 3, 32, 32).permute(0, 3, 1, 4, 2).reshape(-1, 8 * 32, 3)
    Image.fromarray((images * 255).round().byte().numpy()).save(folder / "examples.png", optimize=True)
    labels = zip(pool.classes[:count].tolist(), pool.backgrounds[:count].tolist())
    prompts = [caption(CLASSES[name], BACKGROUNDS[ground]) for name, ground in labels]
    (folder / "examples.json").write_text(json.dumps({"prompts": prompts}, indent=1) + "\n")
