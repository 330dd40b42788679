"""Stages 3 and 4: few-step distillation by endpoint regression.

The base model's deterministic sampler maps noise to a picture along a trajectory. The student learns, from
any point of such a trajectory, the picture it ends at. From pure noise this is a one-step sample; a base
model's own one-step prediction is only the blurred mean of all pictures of the prompt. Guidance is folded
into the trajectories, so the student needs none.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .base import EMPTY, caption_tokens, draw_captions, signal_and_spread, tokenise
from .networks import make_scheduler
from .pictures import allowed_backgrounds, class_weights
from .training import Plan, Trainer, Worker

PLAN = Plan(iterations=750, batch=96, seed=3, adam_lr=1e-3, muon_lr=0.01, decay_from=0.2)
TRAJECTORIES = 2304
STEPS = 8
GUIDANCE = 1.6
FIRST_STEP_SHARE = 0.3
"""Share of the student's samples at t = 999, the only step of a one-step sample."""


def load_base(folder: Path, unet: str = "base_unet"):
    """The denoiser and the text encoder of the base model, in evaluation mode."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    return (
        UNet2DConditionModel.from_pretrained(folder / unet).eval(),
        CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
    )


def draw_prompts(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids ``[n, 8]`` of prompts distributed as in training, and their class indices ``[n]``."""
    classes = torch.multinomial(class_weights(), count, replacement=True, generator=generator)
    grounds = torch.multinomial(allowed_backgrounds()[classes].clamp(max=1), 1, generator=generator)[:, 0]
    return draw_captions(caption_tokens(), classes, grounds, generator, empty=EMPTY / 4), classes


@torch.no_grad()
def make_trajectories(folder: Path, worker: Worker) -> None:
    """Sample this worker's share of trajectories and write ``folder/trajectories-RANK.pt``."""
    unet, text = load_base(folder)
    alphas = make_scheduler().alphas_cumprod
    parts, share = [], TRAJECTORIES // worker.count
    for block in range(share // 64):
        generator = torch.Generator().manual_seed((31 * 4096 + block) * 64 + worker.rank)
        tokens, classes = draw_prompts(64, generator)
        points, steps, end = trajectory(unet, text, tokens, alphas, generator)
        parts.append((points.half(), steps.expand(64, -1), end.half(), tokens, classes))
        if worker.rank == 0 and block % 8 == 0:
            print(f"trajectories {block * 64}/{share}", flush=True)
    if worker.count > 1:
        dist.barrier()
    torch.save([torch.cat(column) for column in zip(*parts)], folder / f"trajectories-{worker.rank}.pt")


def trajectory(unet, text, tokens: Tensor, alphas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of DDIM trajectories (eta 0) on a randomly jittered timestep grid that starts at 999.

    Returns:
        points ``[B, STEPS, 4, 8, 8]``, their timesteps ``[STEPS]`` and the end ``[B, 4, 8, 8]``.
    """
    count = len(tokens)
    empty = torch.tensor(tokenise("")).expand(count, -1)
    states = text(torch.cat([tokens, empty])).last_hidden_state
    grid = torch.linspace(999, 0, STEPS + 1)[:-1]
    jitter = (torch.rand(STEPS, generator=generator) - 0.5) * 0.9 * 999 / STEPS
    steps = torch.cat([grid[:1], (grid + jitter)[1:]]).round().long().clamp(1, 999)
    x = torch.randn(count, 4, 8, 8, generator=generator)
    points = []
    for index, step in enumerate(steps):
        points.append(x)
        with_text, without = unet(torch.cat([x, x]), step, states).sample.chunk(2)
        v = without + GUIDANCE * (with_text - without)
        signal, spread = signal_and_spread(alphas, step[None])
        x0, noise = signal * x - spread * v, signal * v + spread * x
        if index == STEPS - 1:
            return torch.stack(points, 1), steps, x0
        signal, spread = signal_and_spread(alphas, steps[index + 1][None])
        x = signal * x0 + spread * noise
    raise AssertionError("STEPS is at least 1")


def load_trajectories(folder: Path) -> list[Tensor]:
    """Points, timesteps, ends, tokens and classes of all workers' trajectories."""
    parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("trajectories-*.pt"))]
    return [torch.cat(column) for column in zip(*parts)]


def train(folder: Path, worker: Worker, plan: Plan = PLAN) -> None:
    """Train the student from the base model's weights; write ``folder/unet``."""
    torch.manual_seed(plan.seed)
    points, steps, ends, tokens, _ = load_trajectories(folder)
    alphas = make_scheduler().alphas_cumprod
    student, text = load_base(folder)
    with torch.no_grad():
        states = torch.cat([text(part).last_hidden_state for part in tokens.split(512)])
    weights = torch.full((STEPS,), (1 - FIRST_STEP_SHARE) / (STEPS - 1))
    weights[0] = FIRST_STEP_SHARE
    student.train()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(points), (count,), generator=generator)
        place = torch.multinomial(weights, count, replacement=True, generator=generator)
        x, step = points[index, place].float(), steps[index, place]
        signal, spread = signal_and_spread(alphas, step)
        x0 = signal * x - spread * student(x, step, states[index]).sample
        error = (x0 - ends[index].float()).square().mean((1, 2, 3))
        return endpoint_loss(error, spread.flatten()), {"first": error.detach()[place == 0].mean()}

    trainer = Trainer("distill", {"unet": student}, plan, folder, worker)
    trainer.run(loss_function)
    if worker.rank == 0:
        trainer.average["unet"].save_pretrained(folder / "unet")


def endpoint_loss(error: Tensor, spread: Tensor) -> Tensor:
    """Pseudo-Huber loss of mean squared errors ``[n]``, weighted like an error of v (bounded near t = 0)."""
    weight = 1 / spread.square().clamp(min=0.02)
    return (weight * ((error + 1e-3).sqrt() - 1e-3**0.5)).mean()
