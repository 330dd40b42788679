"""The numbers of a table of methods: scores, gains, differences to a reference method, letters. No formatting.

All statistics come from ``intervals``, ``ranking`` and ``letters``; this module chooses what is compared: the same
seeds, the step counts that everyone has, and families of tests declared beforehand, all at the primary endpoint: each
method against the base model, each row against the reference method, and all pairs of rows for the letters. Every p
value is that of the crossed interval beside it, adjusted by Holm over its family.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sdpo_bench.results.endpoints import matrix_at, metric_grid
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.row_pairs import RowPairs, leaders_at, row_pairs
from sdpo_bench.statistics.eval_table import BASE, only_seeds, reduced
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.letters import letter_display
from sdpo_bench.statistics.matrices import Endpoint, Matrix, ScoreGrid, compare, paired
from sdpo_bench.statistics.ranking import ENDPOINT_WORDS, holm

PRIMARY: Endpoint = "mean"
"""The endpoint that is declared beforehand: order, gains and tests use it unless ``--metric`` says otherwise."""
REFERENCE = "sdpo"
"""The method that others are compared with, unless ``--reference`` says otherwise; without it, the best one."""


@dataclass(frozen=True)
class Line:
    """One method in one panel."""

    label: str
    seeds: tuple[int, ...]
    scores: Mapping[Endpoint, Estimate]
    """Every step count it has, and the summaries ``few``, ``mean`` and ``area`` over the common ones."""
    gain: Estimate | None = None
    """Over the base model at the primary endpoint."""
    adjusted_p: float | None = None
    """Holm's, of the gain, over all methods of the panel."""
    few_gain: Estimate | None = None
    """Over the base model on the few-step mean; None without scores at all of its step counts."""
    difference: Estimate | None = None
    """To the reference method at the primary endpoint; None for the reference itself."""
    difference_p: float | None = None
    """Holm's, of the difference, over all rows of the panel that have one, the base model too."""
    letters: str = ""
    """Methods that share one do not differ significantly; empty for the base model and where nothing can be tested."""


@dataclass(frozen=True)
class Board:
    """All methods of a panel by their score at the endpoint, best first, and the base model."""

    panel: Panel
    endpoint: Endpoint
    lines: tuple[Line, ...]
    base: Line | None
    level: float
    leaders: Mapping[Endpoint, frozenset[str]]
    """Rows not significantly different from the best, by step count, on the few-step mean and at ``endpoint``; empty
    without tests."""
    reference: str = ""
    """The method that ``Line.difference`` is measured against; empty without methods."""
    pairs: RowPairs = field(default_factory=RowPairs)
    """Tests of all pairs of rows at ``endpoint``."""

    @property
    def rows(self) -> list[Line]:
        """Methods and base model by their score at the endpoint, best first."""
        lines = [*self.lines, *([self.base] if self.base else [])]
        return sorted(lines, key=lambda line: -_height(line, self.endpoint))

    @property
    def first(self) -> Line | None:
        """The method that sentences are about: the best of those with letters, else the highest one."""
        return next(
            (line for line in self.lines if line.label == self.pairs.best), self.lines[0] if self.lines else None
        )

    @property
    def lettered(self) -> tuple[Line, ...]:
        """Methods that the letters compare: those of several seeds."""
        return tuple(line for line in self.lines if line.letters)

    @property
    def untested_above(self) -> tuple[str, ...]:
        """Methods of one seed, so without a test, whose mean is above that of the best row with tests."""
        rows = self.rows
        labels = [row.label for row in rows]
        above = rows[: labels.index(self.pairs.best)] if self.pairs.best else []
        return tuple(row.label for row in above if not row.letters and row.label != BASE)


def scoreboard(panel: Panel, endpoint: Endpoint = PRIMARY, *, level: float = 0.95, reference: str = "") -> Board:
    """All numbers of a panel at a primary endpoint.

    Args:
        reference: label of the method that differences are measured against; by default :data:`REFERENCE`, and the best
            method where the panel lacks the one asked for.
    """
    lines = [_line(panel, label, grid, endpoint, level) for label, grid in panel.arms.items()]
    lines = sorted(_with_gains(panel, lines, endpoint, level), key=lambda line: (-_height(line, endpoint), line.label))
    base = _base_line(panel, endpoint, level)
    chosen = _reference(panel, lines, reference)
    pairs = RowPairs()
    leaders: dict[Endpoint, frozenset[str]] = {}
    if panel.trained:  # of held-out rewards only the gains are tested
        lines, base = _with_differences(panel, lines, base, chosen, endpoint, level)
        pairs = row_pairs(panel, endpoint, level)
        letters = letter_display([line.label for line in lines if line.label in pairs.means], pairs.apart)
        lines = [replace(line, letters=letters.get(line.label, "")) for line in lines]
        columns: tuple[Endpoint, ...] = (*panel.steps, "few")
        leaders = {key: leaders_at(panel, key, level) for key in columns} | {endpoint: pairs.leaders}
    return Board(panel, endpoint, tuple(lines), base, level, leaders, chosen, pairs)


def _reference(panel: Panel, lines: Sequence[Line], asked_for: str) -> str:
    """Label of the reference: the one asked for, SDPO, or the best method."""
    best = [line.label for line in lines[:1]]
    return next((label for label in (asked_for, REFERENCE, *best) if label in panel.arms), "")


def _height(line: Line, endpoint: Endpoint) -> float:
    score = line.scores.get(endpoint)
    return score.value if score else float("-inf")


def _endpoints(grid: ScoreGrid, panel: Panel) -> list[Endpoint]:
    return [*grid.steps, *(ENDPOINT_WORDS if panel.common else ())]


def _line(panel: Panel, label: str, grid: ScoreGrid, endpoint: Endpoint, level: float) -> Line:
    matrices = {key: matrix_at(grid, panel, key) for key in _endpoints(grid, panel)}
    scores = {key: crossed_interval(matrix, level) for key, matrix in matrices.items() if matrix is not None}
    few = difference_to_base(panel, grid, "few")
    return Line(label, grid.seeds, scores, few_gain=crossed_interval(few, level) if few else None)


def _with_gains(panel: Panel, lines: Sequence[Line], endpoint: Endpoint, level: float) -> list[Line]:
    """Lines with their gain over the base model and its p value over the family of all methods."""
    gains = {line.label: difference_to_base(panel, panel.arms[line.label], endpoint) for line in lines}
    tested = _tested(gains, level)
    with_gains = []
    for line in lines:
        gain, p = tested.get(line.label, (None, None))
        with_gains.append(replace(line, gain=gain, adjusted_p=p))
    return with_gains


def _with_differences(
    panel: Panel, lines: Sequence[Line], base: Line | None, reference: str, endpoint: Endpoint, level: float
) -> tuple[list[Line], Line | None]:
    """Methods and base model with their difference to the reference, one family of tests."""
    rows = [*lines, *([base] if base else [])]
    tested = _tested({row.label: _to_reference(panel, row.label, reference, endpoint) for row in rows}, level)
    changed = {}
    for row in rows:
        difference, p = tested.get(row.label, (None, None))
        changed[row.label] = replace(row, difference=difference, difference_p=p)
    return [changed[line.label] for line in lines], changed[base.label] if base else None


def _tested(differences: Mapping[str, Matrix | None], level: float) -> dict[str, tuple[Estimate | None, float | None]]:
    """Crossed interval and Holm's p of each difference; one without a test (1 seed) counts with p = 1."""
    estimates = {label: crossed_interval(m, level) for label, m in differences.items() if m is not None}
    p_values = [estimate.p_value() for estimate in estimates.values()]
    tested: dict[str, tuple[Estimate | None, float | None]] = {}
    for (label, estimate), p, adjusted in zip(estimates.items(), p_values, holm(p_values)):
        tested[label] = (estimate, None if p is None else float(adjusted))
    return tested


def _to_reference(panel: Panel, label: str, reference: str, endpoint: Endpoint) -> Matrix | None:
    """A row minus the reference method over the seeds that both have; None for the reference itself."""
    row = panel.base if label == BASE else panel.arms[label]
    if label == reference or row is None or not reference:
        return None
    own, other = metric_grid(row, panel, endpoint), metric_grid(panel.arms[reference], panel, endpoint)
    if own is None or other is None:
        return None
    seeds = other.seeds if label == BASE else tuple(seed for seed in own.seeds if seed in other.seeds)
    if not seeds:
        return None
    return paired(reduced(only_seeds(own, seeds), endpoint), reduced(only_seeds(other, seeds), endpoint))


def difference_to_base(panel: Panel, grid: ScoreGrid, endpoint: Endpoint) -> Matrix | None:
    """Method minus base model, seed by seed and prompt by prompt; None without a base model or the step count."""
    if panel.base is None:
        return None
    tuned, untuned = metric_grid(grid, panel, endpoint), metric_grid(panel.base, panel, endpoint)
    if tuned is None or untuned is None:
        return None
    return paired(reduced(tuned, endpoint), reduced(only_seeds(untuned, tuned.seeds), endpoint))


def base_spread(panel: Panel, endpoint: Endpoint) -> float | None:
    """Standard deviation (ddof=1) of the base model's images at an endpoint; None if its scores there do not vary."""
    part = metric_grid(panel.base, panel, endpoint) if panel.base is not None else None
    if part is None:
        return None
    # Contiguous, so that the order of the sums, and with it the last bit, is the same for every choice of steps.
    images = replace(part, scores=np.ascontiguousarray(part.scores)).per_image()
    return float(images.std(ddof=1)) if images.size > 1 and np.ptp(images) > 0 else None


def grid_win_rate(a: ScoreGrid, b: ScoreGrid, level: float) -> Estimate:
    """Share of A's images that beat B's of the same seed, prompt, step count and noise (ties one half).

    Both have the same prompts, step counts and images. The crossed interval is cut to [0, 1]; one half means no
    preference: test it with ``p_value(0.5)``.
    """
    wins = a.reduce(compare(a.scores, only_seeds(b, a.seeds).scores))
    matrix = Matrix(wins, a.seeds, a.prompts, a.measure, f"{a.method} wins against {b.method}")
    return crossed_interval(matrix, level).clipped(0.0, 1.0)


def _base_line(panel: Panel, endpoint: Endpoint, level: float) -> Line | None:
    """The base model has scores, but no training seed and so no interval of its own."""
    if panel.base is None:
        return None
    scores: dict[Endpoint, Estimate] = {}
    for key in _endpoints(panel.base, panel):
        matrix = matrix_at(panel.base, panel, key)
        if matrix is not None:
            value = float(matrix.values.mean())
            scores[key] = Estimate(value, None, None, level, 0, len(matrix.prompts), None, None, "", "")
    return Line(BASE, (), scores)
