"""Grids of pictures: the same prompts and noise, base model beside the run's own, one column a step count."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from sdpo_bench.evaluation.evaluate import Pair, evaluation_schedule, sample_images, splits
from sdpo_bench.evaluation.inference_search import Candidates
from sdpo_bench.evaluation.mean_scores import evaluation_guidance
from sdpo_bench.models.policy import Policy
from sdpo_bench.scoring import image_statistics
from sdpo_bench.scoring.grid_layout import spread_prompts
from sdpo_bench.settings import EvaluationSettings
from sdpo_bench.system.console_text import clean


def grid_prompts(settings: EvaluationSettings) -> Sequence[str]:
    """The prompts of a run's own grid, from all over the first list that is judged."""
    return spread_prompts(next(iter(splits(settings).values())))


def draw_grid(
    policy: Policy,
    settings: EvaluationSettings,
    pairs: Sequence[Pair],
    steps: Sequence[int],
    path: Path,
    *,
    caption: str,
    micro_batch: int,
    search: Candidates | None = None,
) -> None:
    """Sample the pairs from both models and write the grid: two rows a pair, base above tuned (or searched).

    The pictures are those that the evaluation scores, so they have its guidance and not that of the training.

    Args:
        policy: carries the run's adapter.
        caption: of a row, with ``{prompt}`` and ``{model}``.
    """
    columns = {}
    for model, context in (("base", policy.reference()), ("searched" if search else "tuned", nullcontext())):
        how = search if model == "searched" else None
        with context, evaluation_guidance(policy, settings):
            schedules = [evaluation_schedule(policy, settings, k) for k in steps]
            columns[model] = [sample_images(policy, s, settings, pairs, micro_batch, how).cpu() for s in schedules]
    rows = []
    for index, (prompt, _) in enumerate(pairs):
        for model, pictures in columns.items():
            row = torch.stack([column[index] for column in pictures])
            rows.append((clean(caption.format(prompt=prompt, model=model)), row))
    image_statistics.grid(rows, [f"{k} step{'s' * (k != 1)}" for k in steps], path)
