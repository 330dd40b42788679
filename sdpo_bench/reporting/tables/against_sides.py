"""The two sides of ``report --against``: a results folder's board, or a publication's figure or table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import Any

from sdpo_bench.reporting.tables.method_tables import panel_notes
from sdpo_bench.results.published_numbers import BASE as PUBLISHED_BASE
from sdpo_bench.results.published_numbers import Published
from sdpo_bench.results.scoreboard import Board, difference_to_base
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, crossed_interval

HERE = "here"


@dataclass(frozen=True)
class Reading:
    """A number and the half-width of its uncertainty; None where that is unknown, as with one seed."""

    value: float
    half: float | None = None

    @property
    def direction(self) -> int:
        """1 up, -1 down, 0 where it is not significant."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


@dataclass(frozen=True, eq=False)
class Side:
    """Scores and gains of several methods from one place, judged in one way."""

    name: str
    model: str
    reward: str
    version: str
    """Of the reward; empty where a publication does not say."""
    split: str
    methods: Mapping[str, str]
    """Row label -> method."""
    scores: Mapping[str, Mapping[int, Reading]]
    """Row label (``base model`` too) -> number of steps -> score."""
    gains: Mapping[str, Mapping[int, Reading]]
    """Row label -> number of steps -> score minus the base model's."""
    order: Mapping[tuple[str, str], int]
    """Two row labels -> 1 where the first gains more, -1 where the second does, 0 or absent: no clear difference."""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    prompts: tuple[str, ...] = field(default=(), repr=False)
    publication: str = ""
    """Title of what was published; empty for a results folder."""
    images: float | None = None
    """Images of training; None where they are not the same for all or not known."""
    agreement: Mapping[int, float] = field(default_factory=dict)
    """How far from these scores one may be at each number of steps to have reproduced them."""

    @property
    def scale(self) -> str:
        """What the scores measure, in words."""
        return f"{self.reward}{f' (version {self.version})' * bool(self.version)} on {self.model}"

    def has_scale_of(self, other: "Side") -> bool:
        """Whether the scores of both sides compare; an unknown version is taken for the same one."""
        versions = {self.version, other.version} - {""}
        return (self.model, self.reward) == (other.model, other.reward) and len(versions) < 2

    def compare(self, a: str, b: str) -> int:
        """1 where row ``a`` gains more than ``b``, -1 where it gains less, 0 without a significant difference."""
        return self.order.get((a, b), 0) or -self.order.get((b, a), 0)


def published_side(published: Published, name: str) -> Side:
    """A published figure or table; a gain is a difference of two readings, hence off by up to twice the tolerance."""
    error, steps = published.tolerance, published.steps
    base = published.scores[PUBLISHED_BASE]
    scores, gains = {}, {}
    for label, row in published.scores.items():
        scores[BASE if label == PUBLISHED_BASE else label] = {k: Reading(x, error) for k, x in zip(steps, row)}
    for method in published.methods:
        row = published.scores[method]
        gains[method] = {k: Reading(x - b, 2 * error) for k, x, b in zip(steps, row, base)}
    means = {method: sum(r.value for r in row.values()) / len(row) for method, row in gains.items()}
    order = {}
    for a, b in combinations(published.methods, 2):
        order[a, b] = Reading(means[a] - means[b], 2 * error).direction
    how = f"Digitised, each reading off by up to {error:g}" if published.digitised else "As printed"
    notes = (
        f"{name}: {published.publication}. {published.model}, {published.reward}. Source: {published.source}.",
        f"{name}: {how}; one unknown number of training seeds, so no interval.",
        *(f"{name}: {note}." for note in published.notes),
    )
    return Side(
        name=f"{name} at {published.images:,} images" if published.images else name,
        model=published.model,
        reward=published.reward,
        version="",
        split=published.split,
        methods={method: method for method in published.methods},
        scores=scores,
        gains=gains,
        order=order,
        notes=notes,
        publication=published.publication,
        images=published.images,
        agreement=dict(zip(steps, published.agreement)),
    )


def board_side(board: Board, name: str = HERE) -> Side | None:
    """A results folder's side in one panel; None without scores of the base model."""
    if board.base is None:
        return None
    panel = board.panel
    cautions = [f"{name}: {ONE_SEED} of {line.label}." for line in board.lines if len(line.seeds) < 2]
    scores: dict[str, dict[int, Reading]] = {}
    for line in [*board.lines, board.base]:
        scores[line.label] = {k: _reading(x) for k, x in line.scores.items() if isinstance(k, int)}
    gains: dict[str, dict[int, Reading]] = {}
    for line in board.lines:
        grid = panel.arms[line.label]
        differences = {k: difference_to_base(panel, grid, k) for k in grid.steps}
        gains[line.label] = {
            k: _reading(crossed_interval(gain, board.level)) for k, gain in differences.items() if gain is not None
        }
    return Side(
        name=name,
        model=panel.setting.model,
        reward=panel.key.reward,
        version=panel.key.version,
        split=panel.key.split,
        methods={arm.label: arm.method for arm in panel.setting.arms if arm.label in panel.arms},
        scores=scores,
        gains=gains,
        order=_order(board),
        notes=tuple(note if name == HERE else f"{name}: {note}" for note in panel_notes(panel)),
        cautions=tuple(cautions),
        prompts=panel.prompts,
        images=_images(panel.setting.settings),
    )


def _images(settings: Mapping[str, Any]) -> float | None:
    return float(settings["budget.amount"]) if settings.get("budget.axis") == "images" else None


def _reading(estimate: Estimate) -> Reading:
    if estimate.low is None or estimate.high is None:
        return Reading(estimate.value, None)
    return Reading(estimate.value, (estimate.high - estimate.low) / 2)


def _order(board: Board) -> dict[tuple[str, str], int]:
    """Pairs that differ significantly, the higher one over the tested seeds first."""
    return {(a.label, b.label): 1 for a, b in permutations(board.lines, 2) if board.pairs.ahead(a.label, b.label)}
