"""One evaluation file as dense arrays: prompts x step counts x images.

Reports ask many questions of the same scores, and results folders hold thousands of files. Each file becomes one small
array per panel (``score_reader``). A file can hold sets of prompts that were judged at different step
counts or image numbers, so an array can have gaps. It is cut to one set of prompts first (``Block.part``,
:func:`own_part`); only then are incomplete step counts or image numbers left out whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sdpo_bench.statistics.matrices import Endpoint, Matrix, Measure, ScoreGrid
from sdpo_bench.statistics.picture_means import PictureMeans

PANEL_COLUMNS = ("sampler", "split", "reward", "version")
AXIS_COLUMNS = ("prompt", "steps", "image")
BASE = "base model"
"""Name of the base model in every table; no plugin's name has a space."""


class PanelKey(NamedTuple):
    """Scores under different keys never share a table."""

    sampler: str
    split: str
    reward: str
    version: str


@dataclass(frozen=True, eq=False)
class Block:
    """All scores of one run in one panel."""

    scores: np.ndarray
    """``[P, K, I]`` float64; a diverged run's can be NaN or infinite."""
    prompts: tuple[str, ...]
    """Sorted."""
    steps: tuple[int, ...]
    """Ascending."""
    images: tuple[int, ...]
    present: np.ndarray | None = None
    """``[P, K, I]`` bool: which scores the file has; None: all of them."""

    @property
    def bad(self) -> int:
        """Scores that are not finite; gaps are no scores."""
        bad = ~np.isfinite(self.scores)
        return int(bad.sum() if self.present is None else (bad & self.present).sum())

    def restrict(self, steps: Sequence[int], images: Sequence[int]) -> "Block":
        """The part at these step counts and image numbers, which must be there."""
        if (tuple(steps), tuple(images)) == (self.steps, self.images):
            return self
        k = [self.steps.index(step) for step in steps]
        i = [self.images.index(image) for image in images]
        present = None if self.present is None else self.present[:, k][:, :, i]
        return Block(self.scores[:, k][:, :, i], self.prompts, tuple(steps), tuple(images), present)

    def at_prompts(self, prompts: Sequence[str]) -> "Block":
        """The part at these prompts, which must be there, in this order."""
        place = {prompt: i for i, prompt in enumerate(self.prompts)}
        rows = [place[prompt] for prompt in prompts]
        present = None if self.present is None else self.present[rows]
        return replace(self, scores=self.scores[rows], prompts=tuple(prompts), present=present)

    def part(self, prompts: Sequence[str], images: Sequence[int]) -> "Block | None":
        """The step counts with a score for each of these prompts and images; None where there is none."""
        if not set(prompts) <= set(self.prompts) or not set(images) <= set(self.images):
            return None
        block = self.at_prompts(prompts).restrict(self.steps, images)
        if block.present is None:
            return block
        steps = [step for k, step in enumerate(block.steps) if block.present[:, k].all()]
        return replace(block.restrict(steps, images), present=None) if steps else None

    def complete(self) -> "tuple[Block | None, str]":
        """The part without gaps, and what is left out: images that some step count lacks, else whole step counts."""
        if self.present is None:
            return self, ""
        # Other prompts of the file can have step counts and images that none of these has.
        steps = [step for k, step in enumerate(self.steps) if self.present[:, k].any()]
        images = [image for i, image in enumerate(self.images) if self.present[:, :, i].any()]
        block = self.restrict(steps, images)
        assert block.present is not None
        return _complete_part(block, block.present)


@dataclass(frozen=True, eq=False)
class Scores:
    """Content of one ``eval.parquet``."""

    blocks: dict[PanelKey, Block] = field(default_factory=dict)
    """Everything in the file, or (:func:`own_part`) the run's own prompts."""
    others: tuple[tuple[PanelKey, Block], ...] = ()
    """Other prompts of the same panels that the run was judged on later."""
    pictures: dict[PanelKey, PictureMeans] = field(default_factory=dict)
    """Picture statistics; the panels of one sampler and split share theirs."""
    problems: tuple[str, ...] = ()
    damaged: bool = False
    runs: tuple[str, ...] = ()
    """Run ids in the rows; more than one means that files were mixed up."""

    @property
    def every_block(self) -> tuple[tuple[PanelKey, Block], ...]:
        """All blocks with their panels, those of other prompts last."""
        return (*self.blocks.items(), *self.others)

    @cached_property
    def bad(self) -> int:
        """Scores that are not finite, over all panels."""
        return sum(block.bad for _, block in self.every_block)


def own_part(scores: Scores, own: Mapping[str, Sequence[str]]) -> Scores:
    """A run's scores without gaps: each panel cut to the run's own prompts, other prompts as blocks of their own.

    Args:
        own: prompts by split that the run's configuration names. Of other splits the prompts that have the most scores
            take their place.
    """
    blocks, others, problems = {}, list(scores.others), list(scores.problems)
    for key, block in scores.blocks.items():
        first, *rest = _prompt_sets(block, own.get(key.split, ()))
        complete, problem = block.at_prompts(first).complete() if rest else block.complete()
        if problem:
            problems.append(f"{key.reward}, {key.split} prompts: {problem}")
        if complete is not None:
            blocks[key] = complete
        for prompts in rest:
            other = block.at_prompts(prompts).complete()[0]
            others += [(key, other)] if other is not None else []
    pictures = _averaged_pictures(scores.pictures, [*blocks.items(), *others])
    return replace(scores, blocks=blocks, others=tuple(others), pictures=pictures, problems=tuple(problems))


def _averaged_pictures(
    pictures: Mapping[PanelKey, PictureMeans], blocks: Sequence[tuple[PanelKey, Block]]
) -> dict[PanelKey, PictureMeans]:
    """Picture statistics as means over the prompts of each block; panels with the same prompts share them."""
    known: dict[tuple[int, tuple[tuple[str, ...], ...]], PictureMeans] = {}
    averaged = {}
    for key, means in pictures.items():
        sets = tuple(block.prompts for own, block in blocks if own == key)
        if (id(means), sets) not in known:
            known[id(means), sets] = means.averaged(sets)
        averaged[key] = known[id(means), sets]
    return averaged


def _prompt_sets(block: Block, own: Sequence[str]) -> list[tuple[str, ...]]:
    """The prompts in sets that were judged alike: the run's own ones first, others by the scores that they have."""
    mine = set(own)
    if not mine <= set(block.prompts):
        return [block.prompts]
    by_coverage: dict[bytes, list[str]] = {}
    for i, prompt in enumerate(block.prompts):
        if prompt not in mine:
            coverage = b"" if block.present is None else block.present[i].tobytes()
            by_coverage.setdefault(coverage, []).append(prompt)
    sets = [tuple(by_coverage[coverage]) for coverage in sorted(by_coverage, key=sum, reverse=True)]
    return [tuple(sorted(mine)), *sets] if mine else sets


def stack(blocks: dict[int, Block], key: PanelKey, method: str) -> ScoreGrid:
    """Runs of one method as one array ``[S, P, K, I]``.

    Args:
        blocks: by training seed; all with the same prompts, step counts and images, without gaps, all finite.
    """
    seeds, first = tuple(sorted(blocks)), next(iter(blocks.values()))
    scores = np.stack([blocks[seed].scores for seed in seeds])
    measure = Measure(key.reward, key.version, key.split)
    return ScoreGrid(scores, seeds, first.prompts, first.steps, first.images, method, measure)


def at(grid: ScoreGrid, endpoint: Endpoint) -> ScoreGrid:
    """The scores that an endpoint uses: one step count, or all of them for a summary."""
    grid = replace(grid, measure=replace(grid.measure, endpoint=endpoint))
    if isinstance(endpoint, str):
        return grid
    position = grid.steps.index(endpoint)
    return replace(grid, scores=grid.scores[:, :, position : position + 1], steps=(endpoint,))


def only_seeds(grid: ScoreGrid, seeds: Iterable[int]) -> ScoreGrid:
    """The part of some training seeds; a fixed model (one seed label) is repeated under each of them."""
    seeds = tuple(seeds)
    index = [0] * len(seeds) if grid.method == BASE else [grid.seeds.index(seed) for seed in seeds]
    return replace(grid, scores=grid.scores[index], seeds=seeds)


def only_steps(grid: ScoreGrid, steps: Sequence[int]) -> ScoreGrid:
    """The part at some step counts, which must be there."""
    index = [grid.steps.index(step) for step in steps]
    return replace(grid, scores=grid.scores[:, :, index], steps=tuple(steps))


def reduced(grid: ScoreGrid, endpoint: Endpoint) -> Matrix:
    """The S x P matrix of an endpoint: images are averaged, step counts reduced."""
    part = at(grid, endpoint)
    return Matrix(part.reduce(part.scores), part.seeds, part.prompts, part.measure, part.method)


# -- reading -------------------------------------------------------------------------------------------------


def _complete_part(block: Block, present: np.ndarray) -> tuple[Block | None, str]:
    """The part without gaps: images that all step counts have, else step counts that have all images."""
    block = replace(block, present=None)
    if present.all():
        return block, ""
    missing = f"{int((~present).sum())} of {present.size} images have no score"
    images = [image for i, image in enumerate(block.images) if present[:, :, i].all()]
    if images:
        fewer = len(block.images) - len(images)
        return block.restrict(
            block.steps, images
        ), f"{missing}; {fewer} of {len(block.images)} images a prompt left out"
    steps = [step for k, step in enumerate(block.steps) if present[:, k].all()]
    if not steps:
        return None, f"{missing}, at every step count, so none of them counts"
    left_out = ", ".join(str(step) for step in block.steps if step not in steps)
    return block.restrict(steps, block.images), f"{missing}; left out: {left_out} steps"
