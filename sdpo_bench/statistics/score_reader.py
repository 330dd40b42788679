"""Evaluation files read into arrays, without pandas: each file once, the labels that files share once for all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.statistics.eval_table import AXIS_COLUMNS, PANEL_COLUMNS, Block, PanelKey, Scores
from sdpo_bench.statistics.picture_means import PICTURES, PictureMeans

LABELS = (*PANEL_COLUMNS, *AXIS_COLUMNS)
TEXT = ("run", *PANEL_COLUMNS, "prompt")
NEEDED = ("run", *LABELS, "score")
MOST_KNOWN = 16
"""Different sets of labels that a :class:`ScoreReader` remembers."""


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
        self._known: dict[StoredLabels, Places] = {}

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

    def _content(self, content: bytes) -> tuple[tuple[str, ...], dict[str, np.ndarray], "Places"]:
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
            places = _places(columns) if table.num_rows else Places((), ())
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


@dataclass(frozen=True, eq=False)
class PicturePlace:
    """Where the pictures of one sampler and split stand in the file, and where they go in one array."""

    keys: tuple[PanelKey, ...]
    """Panels that judged them."""
    rows: np.ndarray
    """``[n]`` indices into the file, one a picture."""
    flat: np.ndarray
    """``[n]`` positions in the flat array ``[P, K, I]``."""
    prompts: tuple[tuple[str, ...], ...]
    """``[P]``, each a tuple of its own."""
    steps: tuple[int, ...]
    images: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """Places of all panels of a file, and of the pictures that they judged."""

    panels: tuple[Place, ...]
    pictures: tuple[PicturePlace, ...]


def _places(columns: Mapping[str, Any]) -> Places:
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
    return Places(tuple(places), _picture_places(places))


def _picture_places(places: Sequence[Place]) -> tuple[PicturePlace, ...]:
    """Pictures by sampler and split, each once, whichever panel judged it; of panels without repeated rows."""
    groups: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        if not (place.counts > 1).any():
            groups.setdefault((place.key.sampler, place.key.split), []).append(place)
    return tuple(_picture_place(members) for members in groups.values())


def _picture_place(members: Sequence[Place]) -> PicturePlace:
    prompts, steps, images = (tuple(sorted({x for m in members for x in m.labels[axis]})) for axis in range(3))
    size, row_of = (len(prompts), len(steps), len(images)), dict[int, int]()
    for member in members:
        own = np.unravel_index(member.flat, member.counts.shape)
        wide = [
            np.array([axis.index(label) for label in labels])[positions]
            for axis, labels, positions in zip((prompts, steps, images), member.labels, own)
        ]
        for entry, row in zip(np.ravel_multi_index(wide, size).tolist(), member.rows.tolist()):
            row_of.setdefault(entry, row)
    rows, flat = np.array(list(row_of.values())), np.array(list(row_of))
    keys = tuple(member.key for member in members)
    return PicturePlace(keys, rows, flat, tuple((prompt,) for prompt in prompts), steps, images)


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


def _panels(runs: tuple[str, ...], places: Places, score: np.ndarray, numbers: Mapping[str, np.ndarray]) -> Scores:
    if not len(score):
        return Scores(problems=("eval.parquet has no rows",))
    blocks: dict[PanelKey, Block] = {}
    pictures: dict[PanelKey, PictureMeans] = {}
    problems = []
    for place in places.panels:
        key = place.key
        block, problem = _block(place, score)
        if problem:
            problems.append(f"{key.reward}, {key.split} prompts: {problem}")
        if block is not None:
            blocks[key] = block
    if any(name in numbers for name in PICTURES):
        for judged in places.pictures:
            pictures |= dict.fromkeys(judged.keys, _pictures(judged, numbers))
    return Scores(blocks, pictures=pictures, problems=tuple(problems), runs=runs)


def _block(place: Place, score: np.ndarray) -> tuple[Block | None, str]:
    if (repeated := place.counts > 1).any():
        return None, f"{int(repeated.sum())} images are scored more than once, so none of them counts"
    grid = np.full(place.counts.size, np.nan)
    grid[place.flat] = score[place.rows]
    present = None if place.counts.all() else place.counts == 1
    prompts, steps, images = place.labels
    return Block(grid.reshape(place.counts.shape), prompts, steps, images, present), ""


def _pictures(place: PicturePlace, numbers: Mapping[str, np.ndarray]) -> PictureMeans:
    shape = (len(PICTURES), len(place.prompts), len(place.steps), len(place.images))
    values = np.full((shape[0], math.prod(shape[1:])), np.nan)
    for statistic, name in zip(values, PICTURES):
        if name in numbers:
            statistic[place.flat] = numbers[name][place.rows]
    return PictureMeans(values.reshape(shape), place.prompts, place.steps, place.images)
