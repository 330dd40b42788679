"""Stages 2 and 3: few-step distillation by the end points of the base model's trajectories.

The base model's ODE maps noise to a picture. The student learns, from a point of such a trajectory, the picture it ends
at: a consistency function (Song et al. 2023), here by regression on trajectories that are computed once. Half of its
points lie on the teacher's curved trajectory, whose states are distributed as noised pictures: they serve samplers that
add fresh noise. The other half lie on the straight line between the noise and the picture that it leads to, as in
reflow (Liu et al. 2022): there the student's own ODE sampler arrives after its first step. Both have the same target,
so 1 to 50 steps of either sampler agree. Shortcut and mean-flow models need the step size as an input, which a stock
Stable Diffusion 3 transformer has no place for.

The trajectories are without guidance. With the guidance of emoji-turbo (1.6) the student's pictures score -1.1 on
``emoji-align``, where real pictures score -0.9: little would be left for a reward to teach.
"""

from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from tools.emoji_turbo.distill import draw_prompts, load_trajectories
from tools.emoji_turbo.training import Plan, Trainer, Worker

from .base import BORDERS
from .networks import Denoiser, column, load_denoiser, save_denoiser

PLAN = Plan(iterations=1800, batch=96, seed=23, adam_lr=1e-3, muon_lr=0.01, decay_from=0.2)
TRAJECTORIES = 6144
STEPS = 10
FIRST_STEP_SHARE = 0.3
"""Share of the student's samples at sigma = 1, the only step of a one-step sample."""
STRAIGHT_SHARE = 0.5
"""Share of the others that lie on the straight line."""


@torch.no_grad()
def make_trajectories(folder: Path, worker: Worker) -> None:
    """Sample this worker's share of trajectories and write ``folder/trajectories-RANK.pt``."""
    teacher = load_denoiser(folder / "base")
    parts, share = [], TRAJECTORIES // worker.count
    for block in range(share // 64):
        generator = torch.Generator().manual_seed((37 * 4096 + block) * 64 + worker.rank)
        tokens, classes = draw_prompts(64, generator)
        points, sigmas, end = trajectory(teacher, tokens, generator)
        parts.append((points.half(), sigmas.expand(64, -1), end.half(), tokens, classes))
        if worker.rank == 0 and block % 8 == 0:
            print(f"trajectories {block * 64}/{share}", flush=True)
    if worker.count > 1:
        dist.barrier()
    torch.save([torch.cat(values) for values in zip(*parts)], folder / f"trajectories-{worker.rank}.pt")


def trajectory(teacher: Denoiser, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of Euler trajectories on a grid of noise levels that is jittered at random and begins at 1.

    Returns:
        points ``[B, STEPS, 4, 8, 8]``, their noise levels ``[STEPS]`` and the end ``[B, 4, 8, 8]``.
    """
    count, text = len(tokens), teacher.read(tokens)
    jitter = (torch.rand(STEPS, generator=generator) - 0.5) * 0.9 / STEPS
    sigmas = torch.cat([torch.ones(1), (torch.linspace(1, 0, STEPS + 1)[:-1] + jitter)[1:], torch.zeros(1)])
    x = torch.randn(count, 4, 8, 8, generator=generator)
    points = []
    for here, there in pairwise(sigmas):
        points.append(x)
        x = x + (there - here) * teacher(x, here.expand(count), text)
    return torch.stack(points, 1), sigmas[:-1], x


def train(folder: Path, worker: Worker, plan: Plan = PLAN) -> None:
    """Train the student from the base model's weights; write ``folder/student``."""
    torch.manual_seed(plan.seed)
    points, sigmas, ends, tokens, _ = load_trajectories(folder)
    student = load_denoiser(folder / "base")
    with torch.no_grad():
        texts = [torch.cat(part) for part in zip(*(student.read(rows) for rows in tokens.split(512)))]
    student.transformer.train()

    def loss_function(generator: torch.Generator, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.randint(len(points), (count,), generator=generator)
        x, sigma, first = draw_points(points[index].float(), sigmas[index], ends[index].float(), generator)
        original = x - column(sigma) * student(x, sigma, tuple(text[index] for text in texts))
        error = (original - ends[index].float()).square().mean((1, 2, 3))
        return endpoint_loss(error, sigma), {"first": error.detach()[first].mean()}

    trainer = Trainer("distill", {"student": student.transformer}, plan, folder, worker, borders=BORDERS)
    trainer.run(loss_function)
    if worker.rank == 0:
        student.transformer = trainer.average["student"]
        save_denoiser(student, folder / "student")


def draw_points(
    points: Tensor, sigmas: Tensor, ends: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One state of each of n trajectories: states ``[n, ...]``, noise levels ``[n]``, which are the first ``[n]``."""
    count, rows = len(points), torch.arange(len(points))
    where, straight, level = torch.rand(3, count, generator=generator)
    first = where < FIRST_STEP_SHARE
    place = torch.randint(1, STEPS, (count,), generator=generator).masked_fill(first, 0)
    x, sigma = points[rows, place], sigmas[rows, place]
    on_line = ~first & (straight < STRAIGHT_SHARE)
    line = (1 - column(level)) * ends + column(level) * points[:, 0]
    return torch.where(column(on_line), line, x), torch.where(on_line, level, sigma).clamp(min=1e-3), first


def endpoint_loss(error: Tensor, sigma: Tensor) -> Tensor:
    """Pseudo-Huber loss of mean squared errors ``[n]``, weighted like an error of the velocity (bounded near 0)."""
    weight = 1 / sigma.square().clamp(min=0.02)
    return (weight * ((error + 1e-3).sqrt() - 1e-3**0.5)).mean()
