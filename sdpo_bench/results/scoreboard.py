"""The numbers of a table of methods: scores, gains over the base model, win rates, ranks. No formatting.

All statistics come from ``intervals`` and ``ranking``; this module chooses what is compared: the same seeds,
the step counts that everyone has, and one family of tests declared beforehand (each method against the base model at
the primary endpoint).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.results.panels import Panel
from sdpo_bench.statistics.eval_table import BASE, at, only_seeds, only_steps, reduced
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Endpoint, Matrix, ScoreGrid, compare, paired
from sdpo_bench.statistics.ranking import ENDPOINT_WORDS, holm, paired_tests, rank_with_ties
from sdpo_bench.system.json_toml import whole_number

PRIMARY: Endpoint = "mean"
"""The endpoint that is declared beforehand: ranks, gains and their tests use it unless ``--metric`` says otherwise."""


@dataclass(frozen=True)
class Line:
    """One method in one panel."""

    label: str
    seeds: tuple[int, ...]
    scores: Mapping[Endpoint, Estimate]
    """Every step count it has, and the summaries ``mean`` and ``area`` over the common ones."""
    gain: Estimate | None = None
    """Over the base model at the primary endpoint."""
    win_rate: Estimate | None = None
    """Paired images that beat the base model's, at the primary endpoint."""
    adjusted_p: float | None = None
    """Holm's, of the gain, over all methods of the panel."""
    rank: int | None = None
    """1 for the whole top group; None where ranks cannot be shown."""
    tied: bool = False


@dataclass(frozen=True)
class Board:
    """All methods of a panel, best first, and the base model."""

    panel: Panel
    endpoint: Endpoint
    lines: tuple[Line, ...]
    base: Line | None
    notes: tuple[str, ...]
    level: float
    leaders: Mapping[Endpoint, frozenset[str]]
    """Rows not told apart from the best, by step count and at ``endpoint``; empty where ranks cannot be shown."""

    @property
    def finding(self) -> str:
        """What the ranks say, in a sentence."""
        return _finding(self)


def endpoint_words(endpoint: Endpoint) -> str:
    """For example ``at 4 steps`` or ``on the mean over step counts``."""
    if isinstance(endpoint, str):
        return ENDPOINT_WORDS[endpoint]
    return f"at {endpoint} step{'s' * (endpoint != 1)}"


def parse_metric(text: str) -> Endpoint:
    """``mean``, ``area`` or a step count.

    Raises:
        UsageError: anything else.
    """
    if text in ENDPOINT_WORDS:
        return text
    if steps := whole_number(text, 1, 1000):
        return steps
    raise UsageError(
        f"unknown metric '{text}'. Valid: mean (over step counts), area (under the step curve), or a number of "
        "denoising steps. Example: --metric 4"
    )


def metric_grid(grid: ScoreGrid, panel: Panel, endpoint: Endpoint) -> ScoreGrid | None:
    """The scores that the endpoint uses; None if the method has none at that step count."""
    if isinstance(endpoint, str):
        return at(only_steps(grid, panel.common), endpoint) if panel.common else None
    return at(grid, endpoint) if endpoint in grid.steps else None


def matrix_at(grid: ScoreGrid, panel: Panel, endpoint: Endpoint) -> Matrix | None:
    """The S x P matrix of a method at an endpoint; None if it has no scores at that step count."""
    part = metric_grid(grid, panel, endpoint)
    return None if part is None else reduced(part, endpoint)


def scoreboard(panel: Panel, endpoint: Endpoint = PRIMARY, *, level: float = 0.95) -> Board:
    """All numbers of a panel at a primary endpoint."""
    lines = [_line(panel, label, grid, endpoint, level) for label, grid in panel.arms.items()]
    adjusted = []
    ranks: dict[str, int] = {}
    notes: list[str] = []
    leaders: dict[Endpoint, frozenset[str]] = {}
    if panel.trained:  # held-out rewards are described, not tested
        lines = _adjust(lines, panel, endpoint)
        ranks, notes = _ranks(panel, endpoint, level)
        leaders = {step: _leaders(_ranks(panel, step, level)[0]) for step in panel.steps}
        leaders[endpoint] = _leaders(ranks)
    for line in lines:
        rank = ranks.get(line.label)
        tied = rank is not None and list(ranks.values()).count(rank) > 1
        adjusted.append(replace(line, rank=rank, tied=tied))
    base = _base_line(panel, ranks, endpoint, level)
    order = sorted(adjusted, key=lambda line: (line.rank or len(ranks) + 1, -_height(line, endpoint), line.label))
    return Board(panel, endpoint, tuple(order), base, tuple(notes), level, leaders)


def _height(line: Line, endpoint: Endpoint) -> float:
    score = line.scores.get(endpoint)
    return score.value if score else float("-inf")


def _endpoints(grid: ScoreGrid, panel: Panel) -> list[Endpoint]:
    return [*grid.steps, *(ENDPOINT_WORDS if panel.common else ())]


def _line(panel: Panel, label: str, grid: ScoreGrid, endpoint: Endpoint, level: float) -> Line:
    matrices = {key: matrix_at(grid, panel, key) for key in _endpoints(grid, panel)}
    scores = {key: crossed_interval(matrix, level) for key, matrix in matrices.items() if matrix is not None}
    gain = difference_to_base(panel, grid, endpoint)
    return Line(
        label,
        grid.seeds,
        scores,
        gain=crossed_interval(gain, level) if gain else None,
        win_rate=win_rate(panel, grid, endpoint, level),
    )


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


def win_rate(panel: Panel, grid: ScoreGrid, endpoint: Endpoint, level: float) -> Estimate | None:
    """Share of images that beat the base model's image of the same prompt, noise and step count (ties one half)."""
    if panel.base is None:
        return None
    tuned, untuned = metric_grid(grid, panel, endpoint), metric_grid(panel.base, panel, endpoint)
    return None if tuned is None or untuned is None else grid_win_rate(tuned, untuned, level)


def grid_win_rate(a: ScoreGrid, b: ScoreGrid, level: float) -> Estimate:
    """Share of A's images that beat B's of the same seed, prompt, step count and noise (ties one half).

    Both have the same prompts, step counts and images. The crossed interval is cut to [0, 1]; one half means no
    preference: test it with ``p_value(0.5)``.
    """
    wins = a.reduce(compare(a.scores, only_seeds(b, a.seeds).scores))
    matrix = Matrix(wins, a.seeds, a.prompts, a.measure, f"{a.method} wins against {b.method}")
    return crossed_interval(matrix, level).clipped(0.0, 1.0)


def _adjust(lines: Sequence[Line], panel: Panel, endpoint: Endpoint) -> list[Line]:
    """Lines with Holm-adjusted p over the declared family; a method without a test counts with p = 1."""
    gains = {line.label: difference_to_base(panel, panel.arms[line.label], endpoint) for line in lines}
    tested = {label: gain for label, gain in gains.items() if gain is not None}
    tests = {label: test.p for label, test in zip(tested, paired_tests(list(tested.values())))}
    adjusted = dict(zip(tests, holm(list(tests.values())).tolist()))
    return [replace(line, adjusted_p=None if tests.get(line.label) is None else adjusted[line.label]) for line in lines]


def _ranks(panel: Panel, endpoint: Endpoint, level: float) -> tuple[dict[str, int], list[str]]:
    """Tie-aware ranks of the methods and the base model over the seeds that all ranked methods have."""
    parts = {label: metric_grid(grid, panel, endpoint) for label, grid in panel.arms.items()}
    several = {label: part for label, part in parts.items() if part is not None and len(part.seeds) > 1}
    if not several:
        return {}, [f"No ranks: {ONE_SEED}, so no difference between methods can be shown."]
    shared = sorted(set.intersection(*(set(part.seeds) for part in several.values())))
    if len(shared) < 2:
        return {}, ["No ranks: the methods share fewer than two training seeds; run the same seeds for each."]
    notes = []
    if any(set(part.seeds) != set(shared) for part in several.values()):
        notes.append(f"Ranks use the training seeds that all ranked methods have: {', '.join(map(str, shared))}.")
    if unranked := sorted(set(panel.arms) - set(several)):
        notes.append(f"Not ranked, because they have fewer than two seeds at this endpoint: {', '.join(unranked)}.")
    if panel.base is not None and (base := metric_grid(panel.base, panel, endpoint)) is not None:
        several[BASE] = base
    matrices = {label: reduced(only_seeds(part, shared), endpoint) for label, part in several.items()}
    return rank_with_ties(matrices, level=level), notes


def _leaders(ranks: Mapping[str, int]) -> frozenset[str]:
    return frozenset(label for label, rank in ranks.items() if rank == 1)


def _base_line(panel: Panel, ranks: Mapping[str, int], endpoint: Endpoint, level: float) -> Line | None:
    """The base model has scores and a rank, but no training seed and so no interval of its own."""
    if panel.base is None:
        return None
    scores: dict[Endpoint, Estimate] = {}
    for key in _endpoints(panel.base, panel):
        matrix = matrix_at(panel.base, panel, key)
        if matrix is not None:
            value = float(matrix.values.mean())
            scores[key] = Estimate(value, None, None, level, 0, len(matrix.prompts), None, None, "", "")
    rank = ranks.get(BASE)
    return Line(BASE, (), scores, rank=rank, tied=rank is not None and list(ranks.values()).count(rank) > 1)


def _finding(board: Board) -> str:
    where = endpoint_words(board.endpoint)
    if not board.lines:
        return ""
    best = board.lines[0]
    if best.rank is None:
        return f"{board.notes[0] if board.notes else ''} {_gain_words(best, where)}".strip()
    top = [line.label for line in board.lines if line.rank == 1]
    if board.base and board.base.rank == 1:
        behind = len(top) < sum(line.rank is not None for line in board.lines)
        return f"No method is {'ahead of' if behind else 'told apart from'} the base model {where}."
    if len(top) == 1:
        return f"{top[0]} is ahead of all others {where}. {_gain_words(best, '')}".strip()
    others = f"{', '.join(top[1:-1])} and {top[-1]} are" if len(top) > 2 else f"{top[1]} is"
    return f"{top[0]} leads {where}; {others} not told apart from it. {_gain_words(best, '')}".strip()


def _gain_words(line: Line, where: str) -> str:
    if line.gain is None:
        return ""
    place = f" {where}" if where else ""
    gain = replace(line.gain, note="").words()
    return f"{line.label} gains {gain} over the base model{place}."
