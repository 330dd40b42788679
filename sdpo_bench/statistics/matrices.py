"""From evaluation rows to seed x prompt matrices: reduce first, infer later.

Every statement of this package about a method rests on one S x P matrix: one number per training seed and
evaluation prompt. This module is the only place where image rows become such a matrix, so that no table can
count images or step counts as independent evidence, overlook a missing cell or hide a diverged run.

Evaluation rows are one long table, one row per image, with the columns of :data:`COLUMNS`. ``image`` is the
index of the image within its (seed, prompt, steps) cell: the same index means the same initial noise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from sdpo_bench.errors import UsageError

COLUMNS = ("run", "method", "seed", "prompt", "split", "image", "steps", "reward", "version", "score")
AXES = ("seed", "prompt", "steps", "image")

Endpoint = int | Literal["mean", "area"]
"""One step count, the mean over all step counts, or the mean over log2(steps): see :func:`step_weights`."""


@dataclass(frozen=True)
class Measure:
    """Quantity in a matrix. Matrices of different measures are never compared."""

    reward: str = ""
    version: str = ""
    split: str = ""
    endpoint: Endpoint = "mean"


@dataclass(frozen=True, eq=False)
class Matrix:
    """One number per training seed (rows) and evaluation prompt (columns).

    Raises:
        UsageError: the shape does not fit the labels, a label occurs twice, or a value is not finite.
    """

    values: np.ndarray
    """``[S, P]`` float64, in units of the reward (or wins in [0, 1])."""
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    measure: Measure = Measure()
    name: str = ""
    """The method, or "a - b" for a paired difference."""
    note: str = ""
    """Remark for the reader of any number computed from this matrix."""

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "prompts", tuple(self.prompts))
        shape = (len(self.seeds), len(self.prompts))
        if values.shape != shape or 0 in shape:
            raise UsageError(f"values {values.shape} do not fit {shape[0]} seeds x {shape[1]} prompts")
        for what, labels in (("seed", self.seeds), ("prompt", self.prompts)):
            if len(set(labels)) != len(labels):
                raise UsageError(f"a {what} label occurs twice: {_listed(labels)}")
        if not np.isfinite(values).all():
            raise UsageError(
                f"{self.name or 'the matrix'} holds values that are not finite; a diverged run "
                "is counted (run_counts), never averaged"
            )

    @property
    def seed_means(self) -> np.ndarray:
        """``[S]`` mean over prompts."""
        return self.values.mean(axis=1)


@dataclass(frozen=True, eq=False)
class ScoreGrid:
    """The complete evaluation of one method by one reward."""

    scores: np.ndarray
    """``[S, P, K, I]`` float64: seeds, prompts, step counts, images; every entry present and finite."""
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    steps: tuple[int, ...]
    images: tuple[int, ...]
    method: str
    measure: Measure

    def reduce(self, scores: np.ndarray) -> np.ndarray:
        """``[S, P, K, I] -> [S, P]``: images averaged first, then step counts weighted by the endpoint."""
        return scores.mean(axis=3) @ step_weights(self.steps, self.measure.endpoint)

    def per_image(self) -> np.ndarray:
        """``[S, P, I]``: the endpoint of every image."""
        return np.einsum("spki,k->spi", self.scores, step_weights(self.steps, self.measure.endpoint))


def step_weights(steps: Sequence[int], endpoint: Endpoint) -> np.ndarray:
    """``[K]`` weights, summing to 1, that turn the scores at ``steps`` (ascending) into the endpoint.

    ``"mean"`` weighs each step count alike. ``"area"`` is the trapezoid rule over ``x = log2(steps)`` divided
    by the range of ``x``: the mean height of the score-over-steps curve, in reward units, where each doubling
    of the step count counts alike. With one step count every endpoint is that score.

    Raises:
        UsageError: step counts not ascending, not distinct or below 1.
    """
    x = np.asarray(steps, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or x[0] < 1 or (np.diff(x) <= 0).any():
        raise UsageError(f"step counts must be distinct, ascending and at least 1, got {list(steps)}")
    if endpoint != "area" or len(x) == 1:
        return np.full(len(x), 1 / len(x))
    x = np.log2(x)
    halves = np.diff(x) / 2
    return (np.append(halves, 0) + np.insert(halves, 0, 0)) / (x[-1] - x[0])


def area_under_step_curve(scores: Mapping[int, float]) -> float:
    """Mean height of the curve score over log2(steps), from ``{steps: score}``; see :func:`step_weights`."""
    steps = sorted(scores)
    return float(np.array([scores[k] for k in steps]) @ step_weights(steps, "area"))


def score_grid(rows: pd.DataFrame, *, endpoint: Endpoint) -> ScoreGrid:
    """Evaluation rows of ONE method, reward, version and split as a complete array.

    The result does not depend on the order of the rows, to the last bit.

    Raises:
        UsageError: a column is missing; the rows mix methods, rewards, versions or splits; two runs claim one
            seed; a row occurs twice; a score is not finite; a (seed, prompt, steps, image) has no row.
    """
    _check_rows(rows)
    if endpoint not in ("mean", "area"):
        rows = rows[rows["steps"] == endpoint].pipe(_not_empty, endpoint, sorted(set(rows["steps"])))
    only = {key: _only(rows, key) for key in ("method", "reward", "version", "split")}
    _one_run_per_seed(rows)
    factors = [pd.factorize(rows[axis], sort=True) for axis in AXES]
    codes = tuple(codes_of_axis for codes_of_axis, _ in factors)
    labels = tuple(tuple(labels_of_axis.tolist()) for _, labels_of_axis in factors)
    counts = np.zeros([len(axis_labels) for axis_labels in labels], dtype=int)
    np.add.at(counts, codes, 1)
    _complete(counts, labels)
    scores = np.empty(counts.shape)
    scores[codes] = rows["score"].to_numpy(dtype=np.float64)
    measure = Measure(str(only["reward"]), str(only["version"]), str(only["split"]), endpoint)
    seeds, prompts, steps, images = labels
    return ScoreGrid(scores, seeds, prompts, steps, images, str(only["method"]), measure)


def matrix(rows: pd.DataFrame, *, endpoint: Endpoint) -> Matrix:
    """The S x P matrix of one method: several images per cell averaged, step counts reduced to the endpoint.

    The step counts share one checkpoint: they are averaged or picked, never counted as further observations.

    Raises:
        UsageError: as :func:`score_grid`.
    """
    grid = score_grid(rows, endpoint=endpoint)
    return Matrix(grid.reduce(grid.scores), grid.seeds, grid.prompts, grid.measure, grid.method)


def as_fixed_model(rows: pd.DataFrame, seeds: Iterable[int]) -> pd.DataFrame:
    """Rows of a model that was not trained here (the base model), repeated under each of ``seeds``.

    A fixed model has no training seed; in a paired difference it is the same reference for every seed of the
    other method, so the differences between seeds are all the other method's.

    Raises:
        UsageError: the rows hold several seeds, so the model is not fixed.
    """
    check_columns(rows)
    if rows["seed"].nunique(dropna=False) != 1:
        raise UsageError(f"a fixed model has one seed label at most, got {_listed(rows['seed'].unique())}")
    return pd.concat([rows.assign(seed=seed) for seed in seeds], ignore_index=True)


def paired(a: Matrix, b: Matrix, *, common_seeds: bool = False) -> Matrix:
    """The difference ``a - b``, seed by seed and prompt by prompt.

    Args:
        common_seeds: use the seeds that both have and say in ``note`` which were left out. Prompts must
            always agree: other prompts are another benchmark.

    Raises:
        UsageError: different measures, prompts or (unless ``common_seeds``) seeds, listing what differs.
    """
    _same_measure(a.name, a.measure, b.name, b.measure)
    _same_labels("prompts", a.name, a.prompts, b.name, b.prompts)
    seeds, note = _shared_seeds(a.name, a.seeds, b.name, b.seeds, common_seeds)
    order = [b.prompts.index(prompt) for prompt in a.prompts]
    rows_a, rows_b = [a.seeds.index(s) for s in seeds], [b.seeds.index(s) for s in seeds]
    difference = a.values[rows_a] - b.values[np.ix_(rows_b, order)]
    notes = dict.fromkeys(text for text in (a.note, b.note, note) if text)
    return Matrix(difference, seeds, a.prompts, a.measure, f"{a.name} - {b.name}", "; ".join(notes))


def win_matrix(rows_a: pd.DataFrame, rows_b: pd.DataFrame, *, endpoint: Endpoint, common_seeds: bool = False) -> Matrix:
    """How often A's image beats B's image of the same seed, prompt, step count and noise: ``[S, P]``.

    Each pair gives 1 (A higher), 0 (B higher) or one half (tie); pairs are averaged like scores.

    Raises:
        UsageError: as :func:`score_grid` and :func:`paired`, and when step counts or image indices differ.
    """
    a, b = score_grid(rows_a, endpoint=endpoint), score_grid(rows_b, endpoint=endpoint)
    _same_measure(a.method, a.measure, b.method, b.measure)
    for what in ("prompts", "steps", "images"):
        _same_labels(what, a.method, getattr(a, what), b.method, getattr(b, what))
    seeds, note = _shared_seeds(a.method, a.seeds, b.method, b.seeds, common_seeds)
    rows_of_a, rows_of_b = ([side.seeds.index(seed) for seed in seeds] for side in (a, b))
    wins = compare(a.scores[rows_of_a], b.scores[rows_of_b])
    return Matrix(a.reduce(wins), seeds, a.prompts, a.measure, f"{a.method} wins against {b.method}", note)


def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where ``a > b``, 0 where ``a < b``, one half where they tie (broadcasting)."""
    return (a > b) + 0.5 * (a == b)


def check_columns(rows: pd.DataFrame) -> None:
    """Raises UsageError naming the columns of :data:`COLUMNS` that the rows lack."""
    if absent := [column for column in COLUMNS if column not in rows.columns]:
        raise UsageError(f"evaluation rows lack the columns {', '.join(absent)} (of {', '.join(COLUMNS)})")


def not_finite(rows: pd.DataFrame) -> np.ndarray:
    """Boolean, one per row: a score that is missing, NaN or infinite."""
    return ~np.isfinite(rows["score"].to_numpy(dtype=np.float64, na_value=np.nan))


def _check_rows(rows: pd.DataFrame) -> None:
    check_columns(rows)
    if rows.empty:
        raise UsageError("no evaluation rows: evaluate the run first, or select other rows")
    if rows["seed"].isna().any():
        raise UsageError("rows without a seed: a model that was not trained here goes through as_fixed_model")
    bad = not_finite(rows)
    if bad.any():
        raise UsageError(
            f"{bad.sum()} of {len(rows)} scores are NaN or infinite (runs: "
            f"{_listed(rows['run'][bad].unique())}); a diverged run is counted, never averaged: "
            "see run_counts and scored_runs"
        )


def _not_empty(rows: pd.DataFrame, endpoint: Endpoint, steps: Sequence[Any]) -> pd.DataFrame:
    if rows.empty:
        raise UsageError(
            f"no scores at endpoint {endpoint!r}; valid: 'mean', 'area' or a step count in {_listed(steps)}"
        )
    return rows


def _only(rows: pd.DataFrame, key: str) -> Any:
    values = rows[key].unique()
    if len(values) > 1:
        raise UsageError(f"the rows mix {len(values)} values of '{key}' ({_listed(values)}); select one first")
    return values[0]


def _one_run_per_seed(rows: pd.DataFrame) -> None:
    for seed, runs in rows.groupby("seed")["run"]:
        if runs.nunique() > 1:
            raise UsageError(
                f"seed {seed} is claimed by {runs.nunique()} runs ({_listed(runs.unique())}); keep one run per seed"
            )


def _complete(counts: np.ndarray, labels: tuple[tuple[Any, ...], ...]) -> None:
    """Every (seed, prompt, steps, image) exactly once."""
    for wrong, words in ((counts == 0, "have no score"), (counts > 1, "are scored more than once")):
        if wrong.any():
            index = np.argwhere(wrong)[0]
            first = ", ".join(f"{axis} {values[i]!r}" for axis, values, i in zip(AXES, labels, index))
            raise UsageError(f"{wrong.sum()} of {counts.size} cells {words}; the first is {first}")


def _same_measure(name_a: str, a: Measure, name_b: str, b: Measure) -> None:
    for key in ("reward", "version", "split", "endpoint"):
        if getattr(a, key) != getattr(b, key):
            raise UsageError(
                f"{name_a or 'a'} and {name_b or 'b'} cannot be compared: {key} is "
                f"{getattr(a, key)!r} for one and {getattr(b, key)!r} for the other"
            )


def _difference(name_a: str, a: Sequence[Any], name_b: str, b: Sequence[Any]) -> str:
    only_a, only_b = [x for x in a if x not in set(b)], [x for x in b if x not in set(a)]
    sides = ((name_a or "a", only_a), (name_b or "b", only_b))
    return ", ".join(f"only in {name}: {_listed(extra)}" for name, extra in sides if extra)


def _same_labels(what: str, name_a: str, a: Sequence[Any], name_b: str, b: Sequence[Any]) -> None:
    if set(a) != set(b):
        raise UsageError(
            f"cannot pair {name_a or 'a'} with {name_b or 'b'}: their {what} differ "
            f"({_difference(name_a, a, name_b, b)}); evaluate both on the same {what}"
        )


def _shared_seeds(
    name_a: str, a: Sequence[int], name_b: str, b: Sequence[int], common: bool
) -> tuple[tuple[int, ...], str]:
    if set(a) == set(b):
        return tuple(a), ""
    shared, extra = tuple(seed for seed in a if seed in set(b)), _difference(name_a, a, name_b, b)
    if not common or not shared:
        raise UsageError(
            f"cannot pair {name_a or 'a'} with {name_b or 'b'}: their seeds differ ({extra}); "
            f"run the missing seeds{', or ask for the common seeds only' if shared else ''}"
        )
    return shared, f"seeds without a partner left out ({extra})"


def _listed(labels: Iterable[Any], most: int = 5) -> str:
    texts = [str(label) for label in labels]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
