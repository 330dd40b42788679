"""Seed x prompt matrices of scores: reduce first, infer later.

Every statement of this package about a method rests on one S x P matrix: one number per training seed and
evaluation prompt. Images and step counts are reduced before anything is inferred, so that no table can count them as
independent evidence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sdpo_bench.errors import UsageError

Endpoint = int | Literal["few", "mean", "area"]
"""One step count, the mean over few or all step counts, or the mean over log2(steps): see :func:`step_weights`."""
FEW_STEPS = (1, 2, 4)
"""The few-step regime, which the paper is about: step counts of the few-step mean. Evaluations at other further step
counts share it, while their means over all step counts are not comparable."""


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
                "is counted, never averaged"
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

    ``"mean"`` weighs each step count alike, ``"few"`` those of :data:`FEW_STEPS` alone. ``"area"`` is the trapezoid
    rule over ``x = log2(steps)`` divided by the range of ``x``: the mean height of the score-over-steps curve, in
    reward units, where each doubling of the step count counts alike. With one step count, mean and area are that score.

    Raises:
        UsageError: step counts not ascending, not distinct or below 1, or ``"few"`` without :data:`FEW_STEPS`.
    """
    x = np.asarray(steps, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or x[0] < 1 or (np.diff(x) <= 0).any():
        raise UsageError(f"step counts must be distinct, ascending and at least 1, got {list(steps)}")
    if endpoint == "few":
        if not set(FEW_STEPS) <= set(steps):
            raise UsageError(f"the few-step mean needs scores at 1, 2 and 4 steps, got {', '.join(map(str, steps))}")
        return np.array([k in FEW_STEPS for k in steps]) / len(FEW_STEPS)
    if endpoint != "area" or len(x) == 1:
        return np.full(len(x), 1 / len(x))
    x = np.log2(x)
    halves = np.diff(x) / 2
    return (np.append(halves, 0) + np.insert(halves, 0, 0)) / (x[-1] - x[0])


def paired(a: Matrix, b: Matrix) -> Matrix:
    """The difference ``a - b``, seed by seed and prompt by prompt.

    Raises:
        UsageError: different measures, prompts or seeds, listing what differs.
    """
    for key in ("reward", "version", "split", "endpoint"):
        of_a, of_b = getattr(a.measure, key), getattr(b.measure, key)
        if of_a != of_b:
            raise UsageError(
                f"{a.name} and {b.name} cannot be compared: {key} is {of_a!r} for one and {of_b!r} for the other"
            )
    _refuse_other_labels("prompts", a.name, a.prompts, b.name, b.prompts)
    _refuse_other_labels("seeds", a.name, a.seeds, b.name, b.seeds)
    other = b.values
    if (a.seeds, a.prompts) != (b.seeds, b.prompts):
        place = {prompt: i for i, prompt in enumerate(b.prompts)}
        seeds = [b.seeds.index(seed) for seed in a.seeds]
        other = other[np.ix_(seeds, [place[prompt] for prompt in a.prompts])]
    notes = dict.fromkeys(text for text in (a.note, b.note) if text)
    values = a.values - other
    return Matrix(values, a.seeds, a.prompts, a.measure, f"{a.name} - {b.name}", "; ".join(notes))


def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where ``a > b``, 0 where ``a < b``, one half where they tie (broadcasting)."""
    return (a > b) + 0.5 * (a == b)


def _refuse_other_labels(what: str, name_a: str, a: Sequence[Any], name_b: str, b: Sequence[Any]) -> None:
    if a == b:
        return
    labels_a, labels_b = set(a), set(b)
    only_a, only_b = [x for x in a if x not in labels_b], [x for x in b if x not in labels_a]
    sides = [f"only in {name}: {_listed(labels)}" for name, labels in ((name_a, only_a), (name_b, only_b)) if labels]
    if sides:
        raise UsageError(f"cannot pair {name_a} with {name_b}: their {what} differ ({', '.join(sides)})")


def _listed(labels: Iterable[Any], most: int = 5) -> str:
    texts = [str(label) for label in labels]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
