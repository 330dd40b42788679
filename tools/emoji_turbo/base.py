"""Stage 2: the base model, a text-conditioned denoiser in the latent space, trained with v-prediction."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.prompts.emoji_grammar import BACKGROUNDS, CLASSES, MAX_TOKENS, caption, vocabulary

from .autoencoder import encode_pool
from .networks import make_scheduler, make_text_encoder, make_unet
from .pictures import Pool
from .training import Plan, Trainer, Worker

PLAN = Plan(iterations=1700, batch=96, seed=2)

NAMED_BACKGROUND = 0.35
"""Share of captions that name the background."""
WITH_ARTICLE = 0.6
"""Share of captions that say "a cat" instead of "cat"."""
EMPTY = 0.1
"""Share of empty captions: they teach the unconditional distribution, which guidance needs."""


def train(folder: Path, worker: Worker, plan: Plan = PLAN) -> None:
    """Train on ``folder/pool.pt`` through ``folder/vae``; write ``base_unet`` and ``text_encoder``."""
    torch.manual_seed(plan.seed)
    pool = Pool.load(folder / "pool.pt")
    latents = load_latents(folder, pool)
    captions = caption_tokens()
    alphas = make_scheduler().alphas_cumprod
    unet, text = make_unet(), make_text_encoder()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(pool), (count,), generator=generator)
        tokens = draw_captions(captions, pool.classes[index], pool.backgrounds[index], generator, empty=EMPTY)
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        steps = stratified_timesteps(count, generator)
        signal, spread = signal_and_spread(alphas, steps)
        predicted = unet(signal * clean + spread * noise, steps, text(tokens).last_hidden_state).sample
        return F.mse_loss(predicted, signal * noise - spread * clean), {}

    trainer = Trainer("base", {"unet": unet, "text": text}, plan, folder, worker)
    trainer.run(loss_function)
    if worker.rank == 0:
        trainer.average["text"].save_pretrained(folder / "text_encoder")
        trainer.average["unet"].save_pretrained(folder / "base_unet")


def load_latents(folder: Path, pool: Pool) -> Tensor:
    """Latents ``[N, 4, 8, 8]`` of the pool with unit variance."""
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(folder / "vae").eval()
    return encode_pool(vae, pool) * vae.config.scaling_factor


def signal_and_spread(alphas: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar) of timesteps ``[n]`` as ``[n, 1, 1, 1]``."""
    abar = alphas[steps][:, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()


def stratified_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """One timestep from each of ``count`` equal parts of 0..999: less noisy than independent ones."""
    offsets = torch.rand(count, generator=generator)
    return ((torch.arange(count) + offsets) / count * 1000).long().clamp(max=999)


def tokenise(text: str) -> list[int]:
    """Token ids as the pipeline's tokenizer makes them, padded to ``MAX_TOKENS`` with the end mark."""
    words = vocabulary()
    inner = [words.get(word, 2) for word in text.split()][: MAX_TOKENS - 2]
    return [0, *inner] + [1] * (MAX_TOKENS - 1 - len(inner))


def caption_tokens() -> Tensor:
    """All captions as token ids ``[65, 11, 2, 8]``: class, background (0 = none), with article or not."""
    grounds = (None, *BACKGROUNDS)
    return torch.tensor(
        [
            [[tokenise(caption(name, ground, with_article=art)) for art in (False, True)] for ground in grounds]
            for name in CLASSES
        ]
    )


def draw_captions(
    captions: Tensor, classes: Tensor, backgrounds: Tensor, generator: torch.Generator, *, empty: float
) -> Tensor:
    """A random caption ``[n, 8]`` that is true of each picture; a share ``empty`` of them says nothing."""
    count = len(classes)
    named, article, nothing = torch.rand(3, count, generator=generator)
    ground = torch.where(named < NAMED_BACKGROUND, backgrounds + 1, 0)
    tokens = captions[classes, ground, (article < WITH_ARTICLE).long()]
    return torch.where((nothing < empty)[:, None], torch.tensor(tokenise("")), tokens)
