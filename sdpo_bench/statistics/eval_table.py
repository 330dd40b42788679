"""One evaluation file as dense arrays: prompts x step counts x images.

Reports ask many questions of the same scores, and results folders hold thousands of files. Each file is read once,
without pandas, into one small array per panel. A file can hold sets of prompts that were judged at different step
counts or image numbers, so an array can have gaps. It is cut to one set of prompts first (``Block.part``,
:func:`own_part`); only then are incomplete step counts or image numbers left out whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdpo_bench.statistics.matrices import Endpoint, Matrix, Measure, ScoreGrid

PANEL_COLUMNS = ("sampler", "split", "reward", "version")
AXIS_COLUMNS = ("prompt", "steps", "image")
LABELS = (*PANEL_COLUMNS, *AXIS_COLUMNS)
TEXT = ("run", *PANEL_COLUMNS, "prompt")
NEEDED = ("run", *LABELS, "score")
MOST_KNOWN = 16
"""Different sets of labels that a :class:`ScoreReader` remembers."""
PICTURES = ("brightness", "contrast", "saturation", "sharpness")
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
    pictures: dict[tuple[str, str], dict[str, dict[int, float]]] = field(default_factory=dict)
    """By (sampler, split): picture statistic -> step count -> mean over images."""
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
    return replace(scores, blocks=blocks, others=tuple(others), problems=tuple(problems))


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


def read_scores(path: Path, *, pictures: bool = True, value: str = "score") -> Scores:
    """Scores of one file, as :class:`ScoreReader` reads those of many."""
    return ScoreReader(pictures=pictures, value=value).read(path)


class ScoreReader:
    """Reads evaluation files.

    The runs of a suite are judged at the same prompts, step counts and images, so the labels of their rows are equal
    byte for byte. Such labels are decoded once; of the other files only run ids and numbers are.

    Args:
        pictures: read the picture statistics too.
        value: what stands in place of the scores: one of :data:`PICTURES`.
    """

    def __init__(self, *, pictures: bool = True, value: str = "score") -> None:
        self._value = value
        self._statistics = [*PICTURES] if pictures else []
        if value not in ("score", *self._statistics):
            self._statistics.append(value)
        self._known: dict[StoredLabels, tuple[Place, ...]] = {}

    def read(self, path: Path) -> Scores:
        """Scores of one file; ``problems`` names every fault of the file, no exception is raised."""
        try:
            runs, numbers, places = self._content(path.read_bytes())
            scores = numbers[self._value]
        except PermissionError as error:  # not readable is not damaged
            return Scores(problems=(f"eval.parquet cannot be read: {error.strerror}",))
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            return Scores(problems=(f"eval.parquet is damaged: {reason[:200]}",), damaged=True)
        return _panels(runs, places, scores, numbers)

    def _content(self, content: bytes) -> tuple[tuple[str, ...], dict[str, np.ndarray], tuple["Place", ...]]:
        """Run ids, numbers by column and places of the panels. Raises whatever a damaged file makes pyarrow raise."""
        import pyarrow
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(
            pyarrow.BufferReader(content), read_dictionary=TEXT, pre_buffer=False, page_checksum_verification=True
        ) as stored:
            labels = _stored_labels(stored.metadata, content)
            places = self._known.get(labels)
            wanted = NEEDED if places is None else ("run", "score")
            table = stored.read([*wanted, *self._statistics], use_threads=False)
        columns = dict(zip(table.column_names, table.columns))
        _check_columns(columns, wanted)
        if places is None:
            places = _places(columns) if table.num_rows else ()
            if len(self._known) == MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[labels] = places
        numbers = {
            name: np.asarray(columns[name].to_numpy(), dtype=np.float64)
            for name in ("score", *self._statistics)
            if name in columns
        }
        return tuple(sorted(_text(columns["run"])[0])), numbers, places


StoredLabels = tuple[tuple[str, str, str, bytes], ...]
"""The label columns of a file as they are stored: name, type, compression and bytes of each piece of a column."""


def _stored_labels(metadata: Any, content: bytes) -> StoredLabels:
    """Of two files with the same ones, every row has the same labels."""
    stored = []
    for group in range(metadata.num_row_groups):
        pieces = metadata.row_group(group)
        for i in range(pieces.num_columns):
            piece = pieces.column(i)
            if (name := piece.path_in_schema) in LABELS:
                start = piece.dictionary_page_offset or piece.data_page_offset
                stored_bytes = content[start : start + piece.total_compressed_size]
                stored.append((name, piece.physical_type, piece.compression, stored_bytes))
    return tuple(stored)


def _check_columns(columns: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raises ValueError for a missing column, or for one with empty fields that must have none."""
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    for name in needed:
        if name != "score" and columns[name].null_count:
            raise ValueError(f"the column {name} has {columns[name].null_count} empty fields")


def _text(column: Any) -> tuple[list[str], np.ndarray]:
    """The different texts of a column, and the position in this list of each row's."""
    if not hasattr(column.type, "index_type"):  # written without a dictionary
        column = column.dictionary_encode()
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return [str(label) for label in chunk.dictionary.to_pylist()], chunk.indices.to_numpy()


@dataclass(frozen=True, eq=False)
class Place:
    """Where the rows of one panel go in its array."""

    key: PanelKey
    rows: np.ndarray
    """``[n]`` indices into the file."""
    flat: np.ndarray
    """``[n]`` positions in the flat array ``[P, K, I]``."""
    labels: tuple[tuple[Any, ...], ...]
    """Of the three axes."""
    counts: np.ndarray
    """``[P, K, I]`` rows of each entry."""

    @cached_property
    def step_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Position of each row's step count ``[n]``, and rows of each step count ``[K]``."""
        steps = np.unravel_index(self.flat, self.counts.shape)[1]
        return steps, np.bincount(steps)


def _places(columns: Mapping[str, Any]) -> tuple[Place, ...]:
    """Places of the panels of a file."""
    panel_columns = [_in_order(name, columns[name]) for name in PANEL_COLUMNS]
    axes = [_in_order(name, columns[name]) for name in AXIS_COLUMNS]
    labels, codes = [values for values, _ in panel_columns], [codes for _, codes in panel_columns]
    shape = [len(values) for values in labels]
    flat, inverse = _used(np.asarray(np.ravel_multi_index(codes, shape)), int(np.prod(shape)))
    places = []
    for number, code in enumerate(flat):
        key = PanelKey(*(values[i] for values, i in zip(labels, np.unravel_index(code, shape))))
        rows = np.flatnonzero(inverse == number)
        parts = [_used(own[rows], len(values)) for values, own in axes]
        present = tuple(tuple(values[i] for i in part[0]) for (values, _), part in zip(axes, parts))
        size = tuple(len(values) for values in present)
        entries = np.ravel_multi_index([part[1] for part in parts], size)
        counts = np.bincount(entries, minlength=int(np.prod(size))).reshape(size)
        places.append(Place(key, rows, entries, present, counts))
    return tuple(places)


def _in_order(name: str, column: Any) -> tuple[list[Any], np.ndarray]:
    """Labels of a column, sorted, and the codes ``[n]`` that point into them."""
    if name in TEXT:
        texts, codes = _text(column)
        order = sorted(range(len(texts)), key=texts.__getitem__)
        return [texts[i] for i in order], np.argsort(order)[codes]
    numbers = column.to_numpy()
    if not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"the column {name} must hold whole numbers")
    values, codes = np.unique(numbers, return_inverse=True)
    return values.tolist(), codes


def _used(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of ``0..size-1`` that occur, ascending, and the position of each given code in that list."""
    present = np.bincount(codes, minlength=size) > 0
    return np.flatnonzero(present), (np.cumsum(present) - 1)[codes]


def _panels(
    runs: tuple[str, ...], places: Sequence[Place], score: np.ndarray, numbers: Mapping[str, np.ndarray]
) -> Scores:
    if not len(score):
        return Scores(problems=("eval.parquet has no rows",))
    blocks: dict[PanelKey, Block] = {}
    pictures: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    problems = []
    for place in places:
        key = place.key
        block, problem = _block(place, score)
        if problem:
            problems.append(f"{key.reward}, {key.split} prompts: {problem}")
        if block is not None:
            blocks[key] = block
            if (key.sampler, key.split) not in pictures:
                pictures[key.sampler, key.split] = _pictures(place, numbers)
    return Scores(blocks, pictures=pictures, problems=tuple(problems), runs=runs)


def _block(place: Place, score: np.ndarray) -> tuple[Block | None, str]:
    if (repeated := place.counts > 1).any():
        return None, f"{int(repeated.sum())} images are scored more than once, so none of them counts"
    grid = np.full(place.counts.size, np.nan)
    grid[place.flat] = score[place.rows]
    present = None if place.counts.all() else place.counts == 1
    prompts, steps, images = place.labels
    return Block(grid.reshape(place.counts.shape), prompts, steps, images, present), ""


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


def _pictures(place: Place, numbers: Mapping[str, np.ndarray]) -> dict[str, dict[int, float]]:
    steps, counts = place.step_counts
    by_statistic = {}
    for name in PICTURES:
        if name in numbers:
            means = np.bincount(steps, numbers[name][place.rows]) / counts
            by_statistic[name] = dict(zip(place.labels[1], means.tolist()))
    return by_statistic
