"""Stages 5 to 7: what the scorers look at, and the two scorers.

`align` must be hard to fool and useful on unfinished pictures, so beside clean and reconstructed pictures
it sees noise, blur, means of several pictures and the base model's own predictions at random timesteps,
with a target that moves from the true class to "nothing recognisable" as the picture loses its content.
`accuracy` sees other pictures, other damage and another seed.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.prompts.emoji_grammar import CLASSES
from sdpo_bench.scoring.emoji_scorer import AccuracyScorer, AlignScorer

from .autoencoder import encode_pool
from .base import caption_tokens, draw_captions, signal_and_spread
from .distill import load_base
from .networks import make_scheduler
from .pictures import Pool
from .training import Plan, Trainer, Worker

ALIGN_PLAN = Plan(iterations=350, batch=120, seed=5, weight_decay=0.02, ema=0.99)
ACCURACY_PLAN = Plan(iterations=250, batch=120, seed=6, weight_decay=0.02, ema=0.99)
NOTHING = len(CLASSES)
"""Index of the class "nothing recognisable"."""
VALIDATION = 512
"""First pictures of the scorers' pool, kept out of training: temperatures are fitted on them."""
RECONSTRUCTION_NOISE = 0.15
GHOSTS = 7
"""Most further pictures in a mean."""


@torch.no_grad()
def make_pictures(folder: Path) -> None:
    """Write ``folder/scorer_pictures.pt``: reconstructions and unfinished pictures of the scorers' pool.

    Both are uint8 ``[N, 3, 32, 32]``; ``confidence [N]`` says how much of the unfinished picture's class is
    left.
    """
    from diffusers import AutoencoderTiny

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(41)
    pool = Pool.load(folder / "scorer_pool.pt")
    vae = AutoencoderTiny.from_pretrained(folder / "vae").eval()
    scale = vae.config.scaling_factor
    latents = encode_pool(vae, pool) * scale
    noisy = latents + RECONSTRUCTION_NOISE * torch.randn(latents.shape, generator=generator)
    originals, steps = predicted_originals(folder, latents, pool, generator)
    torch.save(
        {
            "reconstructed": decode_bytes(vae, noisy),
            "unfinished": decode_bytes(vae, originals),
            "confidence": confidence_at(steps),
        },
        folder / "scorer_pictures.pt",
    )


def decode_bytes(vae, latents: Tensor) -> Tensor:
    """uint8 pictures of unit-variance latents."""
    parts = [vae.decode(part / vae.config.scaling_factor).sample for part in latents.split(256)]
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte()


def predicted_originals(folder: Path, latents: Tensor, pool: Pool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The base model's one-step predictions of latents noised to random timesteps, and the timesteps."""
    unet, text = load_base(folder)
    alphas = make_scheduler().alphas_cumprod
    steps = torch.randint(100, 1000, (len(latents),), generator=generator)
    tokens = draw_captions(caption_tokens(), pool.classes, pool.backgrounds, generator, empty=0.1)
    signal, spread = signal_and_spread(alphas, steps)
    noisy = signal * latents + spread * torch.randn(latents.shape, generator=generator)
    parts = []
    for part in torch.arange(len(latents)).split(256):
        predicted = unet(noisy[part], steps[part], text(tokens[part]).last_hidden_state).sample
        parts.append(signal[part] * noisy[part] - spread[part] * predicted)
    return torch.cat(parts), steps


def confidence_at(steps: Tensor) -> Tensor:
    """Share of the class left in a predicted original: all up to t = 400, none from 900 (a mean)."""
    return ((900 - steps) / 500).clamp(0, 1)


def unit(images: Tensor) -> Tensor:
    """Bytes to [0, 1]."""
    return images.float() / 255


def damage(images: Tensor, ghosts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise, blur or ghosts of random strength.

    Args:
        images: ``[n, 3, 32, 32]`` in [0, 1].
        ghosts: ``[n, GHOSTS, 3, 32, 32]`` other pictures of the same classes. A mean over some of them is what an
            undecided denoiser paints; its class can be told, and yet it is not a picture of anything.

    Returns:
        Pictures ``[n, 3, 32, 32]`` and confidences ``[n]``.
    """
    count = len(images)
    strength, kind = torch.rand(2, count, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    noisy = (images + 0.9 * strength[:, None, None, None] * noise).clamp(0, 1)
    blurred = images.clone()
    for factor, low in ((2, 0.0), (4, 0.33), (8, 0.66)):
        small = F.interpolate(F.avg_pool2d(images, factor), scale_factor=factor, mode="bilinear")
        blurred = torch.where((strength >= low)[:, None, None, None], small, blurred)
    among = 1 + (strength * GHOSTS).long().clamp(max=GHOSTS - 1)
    weights = (torch.arange(GHOSTS) < among[:, None]).float() / (among[:, None] + 1)
    ghosted = images / (among + 1)[:, None, None, None] + torch.einsum("ng,ngchw->nchw", weights, ghosts)
    is_noise, is_blur = kind < 0.3, kind < 0.6
    kept_noise = 1 - ((strength - 0.2) / 0.6).clamp(0, 1)
    kept_blur = torch.where(strength < 0.33, 0.7, torch.where(strength < 0.66, 0.1, 0.0))
    kept_ghost = torch.where(among == 1, 0.3, 0.0)
    pictures = torch.where(is_blur[:, None, None, None], blurred, ghosted)
    pictures = torch.where(is_noise[:, None, None, None], noisy, pictures)
    return pictures, torch.where(is_noise, kept_noise, torch.where(is_blur, kept_blur, kept_ghost))


def others_of_class(classes: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Places ``[n, GHOSTS]`` in ``classes`` (each class occurs) drawn among those equal to each of ``wanted [n]``."""
    order, sizes = classes.argsort(), classes.bincount(minlength=len(CLASSES))
    starts = sizes.cumsum(0) - sizes
    draws = torch.rand(len(wanted), GHOSTS, generator=generator) * sizes[wanted, None]
    return order[starts[wanted, None] + draws.long()]


def jitter(images: Tensor, generator: torch.Generator, largest: int) -> Tensor:
    """Shift the whole batch by up to ``largest`` pixels and each picture's brightness by up to 10 %."""
    dx, dy = torch.randint(-largest, largest + 1, (2,), generator=generator).tolist()
    gain = 0.9 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (torch.roll(images, (dx, dy), (2, 3)) * gain).clamp(0, 1)


class AlignData:
    """Draws the mixture that `align` is trained and calibrated on."""

    def __init__(self, folder: Path):
        self.pool = Pool.load(folder / "scorer_pool.pt")
        made = torch.load(folder / "scorer_pictures.pt", weights_only=True)
        self.sources = (self.pool.images, made["reconstructed"], made["unfinished"])
        self.confidence = made["confidence"]

    def draw(self, generator: torch.Generator, count: int, *, validation: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures ``[n, 3, 32, 32]``, pool indices and confidences ``[n]``: a quarter of each kind."""
        low, high = (0, VALIDATION) if validation else (VALIDATION, len(self.pool))
        index = torch.randint(low, high, (count,), generator=generator)
        quarter = count // 4
        clean, rebuilt, hurt, unfinished = index.split([quarter, quarter, quarter, count - 3 * quarter])
        ghosts = low + others_of_class(self.pool.classes[low:high], self.pool.classes[hurt], generator)
        damaged, kept = damage(unit(self.sources[1][hurt]), unit(self.sources[1][ghosts]), generator)
        pictures = [unit(self.sources[0][clean]), unit(self.sources[1][rebuilt]), damaged]
        pictures.append(unit(self.sources[2][unfinished]))
        confidence = torch.cat([torch.ones(2 * quarter), kept, self.confidence[unfinished]])
        return jitter(torch.cat(pictures), generator, 1), index, confidence


def class_targets(classes: Tensor, confidence: Tensor, smoothing: float = 0.02) -> Tensor:
    """Target probabilities ``[n, 66]``: the confidence on the class, the rest on "nothing"."""
    target = F.one_hot(classes, NOTHING + 1) * confidence[:, None]
    target[:, NOTHING] = 1 - confidence
    return target * (1 - smoothing) + smoothing / (NOTHING + 1)


def train_align(folder: Path, worker: Worker, plan: Plan = ALIGN_PLAN) -> None:
    """Train and calibrate `align`; write ``folder/align.pt``."""
    torch.manual_seed(plan.seed)
    data, model = AlignData(folder), AlignScorer()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        images, index, confidence = data.draw(generator, count, validation=False)
        logits = model.logits(images)
        named = F.cross_entropy(logits["class"], class_targets(data.pool.classes[index], confidence))
        ground = F.cross_entropy(logits["background"], data.pool.backgrounds[index])
        style = F.cross_entropy(logits["style"], data.pool.styles[index], reduction="none")
        return named + 0.3 * ground + 0.3 * (confidence * style).mean(), {"class": named.detach()}

    trainer = Trainer("align", {"model": model}, plan, folder, worker)
    trainer.run(loss_function)
    if worker.rank == 0:
        calibrate(trainer.average["model"], data)
        torch.save(trainer.average["model"].state_dict(), folder / "align.pt")


@torch.no_grad()
def calibrate(model: AlignScorer, data: AlignData) -> None:
    """Set each head's temperature by maximum likelihood on validation pictures."""
    images, index, confidence = data.draw(torch.Generator().manual_seed(9), 2048, validation=True)
    logits = model.logits(images)
    targets = {
        "class": class_targets(data.pool.classes[index], confidence, smoothing=0.0),
        "background": F.one_hot(data.pool.backgrounds[index], logits["background"].shape[1]).float(),
        "style": F.one_hot(data.pool.styles[index], logits["style"].shape[1]) * confidence[:, None],
    }
    candidates = torch.logspace(-1, 1, 81, base=2)
    for head, target in targets.items():
        losses = torch.stack([-(target * (logits[head] / t).log_softmax(1)).sum() for t in candidates])
        getattr(model, f"{head}_temperature").fill_(candidates[losses.argmin()])
        print(f"temperature of {head}: {candidates[losses.argmin()]:.3f}", flush=True)


def train_accuracy(folder: Path, worker: Worker, plan: Plan = ACCURACY_PLAN) -> None:
    """Train `accuracy` on clean and reconstructed pictures with shifts, mild noise and erased squares."""
    torch.manual_seed(plan.seed)
    pool = Pool.load(folder / "scorer_pool.pt")
    rebuilt = torch.load(folder / "scorer_pictures.pt", weights_only=True)["reconstructed"]
    model = AccuracyScorer()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(VALIDATION, len(pool), (count,), generator=generator)
        half = count // 3
        images = jitter(unit(torch.cat([pool.images[index[:half]], rebuilt[index[half:]]])), generator, 2)
        noise = torch.rand(count, 1, 1, 1, generator=generator) * 0.12
        images = erase(images + noise * torch.randn(images.shape, generator=generator), generator).clamp(0, 1)
        logits, classes = model(images), pool.classes[index]
        hits = (logits.detach().argmax(1) == classes).float().mean()
        return F.cross_entropy(logits, classes, label_smoothing=0.05), {"hits": hits}

    trainer = Trainer("accuracy", {"model": model}, plan, folder, worker)
    trainer.run(loss_function)
    if worker.rank == 0:
        torch.save(trainer.average["model"].state_dict(), folder / "accuracy.pt")


def erase(images: Tensor, generator: torch.Generator, side: int = 10) -> Tensor:
    """Blank a random square of half of the pictures, so that no single detail decides."""
    count = len(images)
    top, left = torch.randint(0, images.shape[-1] - side, (2, count, 1), generator=generator)
    places = torch.arange(images.shape[-1])
    rows = (places >= top) & (places < top + side)
    columns = (places >= left) & (places < left + side)
    chosen = torch.rand(count, generator=generator) < 0.5
    square = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    return torch.where(square[:, None], 0.5, images)
