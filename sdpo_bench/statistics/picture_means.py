"""Picture statistics of an evaluation file, kept in a form that can be cut as the scores beside them are.

A statistic belongs to a picture, whichever rewards judged it. A report shows means over the prompts, step counts and
images of a panel, so prompts are averaged as soon as the sets that are shown together are known
(``eval_table.own_part``): thousands of runs then hold a few numbers each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PICTURES = ("brightness", "contrast", "saturation", "sharpness")


@dataclass(frozen=True, eq=False, slots=True)
class PictureMeans:
    """Picture statistics of one run by one sampler on one split."""

    values: np.ndarray
    """``[4, G, K, I]`` float64: statistics in the order of :data:`PICTURES`, sets of prompts, step counts and images;
    NaN where a picture is missing."""
    sets: tuple[tuple[str, ...], ...]
    """Prompts that an entry is the mean over: one each in a file."""
    steps: tuple[int, ...]
    images: tuple[int, ...]

    def averaged(self, sets: Sequence[tuple[str, ...]]) -> "PictureMeans":
        """The means over these sets of prompts, which must be there."""
        if len(sets) == 1:  # as in most of the thousands of files of a report
            return PictureMeans(self._of(sets[0])[:, None], tuple(sets), self.steps, self.images)
        values = np.empty((len(PICTURES), len(sets), len(self.steps), len(self.images)))
        for row, prompts in enumerate(sets):
            values[:, row] = self._of(prompts)
        return PictureMeans(values, tuple(sets), self.steps, self.images)

    def has(self, prompts: tuple[str, ...]) -> bool:
        """Whether the mean over these prompts is known."""
        return prompts in self.sets or {(prompt,) for prompt in prompts} <= set(self.sets)

    def mean(self, prompts: tuple[str, ...], steps: Sequence[int], images: Sequence[int]) -> dict[str, float] | None:
        """By statistic, the mean over these pictures; None where a prompt, step count or image is absent."""
        if not self.has(prompts) or not set(steps) <= set(self.steps) or not set(images) <= set(self.images):
            return None
        chosen = self._of(prompts)
        if (tuple(steps), tuple(images)) != (self.steps, self.images):
            k, i = [self.steps.index(step) for step in steps], [self.images.index(image) for image in images]
            chosen = chosen[:, k][:, :, i]
        if not chosen.size:
            return None
        means = np.add.reduce(chosen, axis=(1, 2)) / (chosen.size // len(PICTURES))
        return dict(zip(PICTURES, means.tolist()))

    def _of(self, prompts: tuple[str, ...]) -> np.ndarray:
        """``[4, K, I]`` mean over a set, or over single prompts, which must be there."""
        if prompts in self.sets:
            return self.values[:, self.sets.index(prompts)]
        if len(prompts) == len(self.sets):  # all of them, as in most files
            return np.asarray(np.add.reduce(self.values, axis=1)) / len(prompts)
        place = {one: row for row, one in enumerate(self.sets)}
        return self.values[:, [place[prompt,] for prompt in prompts]].mean(axis=1)
