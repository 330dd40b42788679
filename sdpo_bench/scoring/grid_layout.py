"""The layout of a picture grid, for the code that draws it and for reports, which cut it and have no torch."""

from collections.abc import Sequence

CELL, GAP, HEAD, LABEL_WIDTH = 96, 4, 22, 190
"""Pixels of a grid: side of a picture, between pictures, above them, left of them."""
GRID_PROMPTS = 5


def spread_prompts(texts: Sequence[str]) -> Sequence[str]:
    """The prompts of a run's own grid: at most ``GRID_PROMPTS``, from all over the list."""
    return texts[:: max(1, len(texts) // GRID_PROMPTS)][:GRID_PROMPTS]
