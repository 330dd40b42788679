"""Small evaluations for the statistics tests."""

import numpy as np

from sdpo_bench.statistics.matrices import Measure, ScoreGrid


def make_grid(scores, method="sdpo", seeds=None, steps=(1, 4)):
    """Scores ``[S, P, K, I]`` with labels."""
    scores = np.asarray(scores, dtype=float)
    n_seeds, n_prompts, _, n_images = scores.shape
    prompts = tuple(f"prompt {p}" for p in range(n_prompts))
    seeds = tuple(range(n_seeds) if seeds is None else seeds)
    return ScoreGrid(scores, seeds, prompts, steps, tuple(range(n_images)), method, Measure("hpsv2", "1", "test"))
