"""``report --against``: own gains beside published ones or another folder's, by method and number of denoising steps.

Models, rewards and budgets differ, so scores do not compare; shapes do: which way a method moves the score at each
number of steps, how its gain is spread over them, and which method gains more. Gains are therefore shown as shares of
the largest mean gain on the same side, and only where model and reward are the same the scores stand beside each other
too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.report.tables.method_tables import panel_notes
from sdpo_bench.results.published_numbers import BASE as PUBLISHED_BASE
from sdpo_bench.results.published_numbers import Published
from sdpo_bench.results.scoreboard import Board, Line, difference_to_base
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, crossed_interval

HERE = "here"


@dataclass(frozen=True)
class Reading:
    """A number and the half-width of its uncertainty; None if the uncertainty is unknown."""

    value: float
    half: float | None = None

    @property
    def direction(self) -> int:
        """1 up, -1 down, 0 where the number is not told apart from 0."""
        if self.value == 0 or (self.half is not None and abs(self.value) <= self.half):
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
    """Two row labels -> 1 where the first gains more, -1 where the second does, 0 or absent: not told apart."""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    prompts: tuple[str, ...] = field(default=(), repr=False)


# -- the two kinds of sides ----------------------------------------------------------------------------------


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
    methods = {method: method for method in published.methods}
    return Side(name, published.model, published.reward, "", published.split, methods, scores, gains, order, notes)


def board_side(board: Board, name: str = HERE) -> Side | None:
    """A results folder's side in one panel; None without scores of the base model."""
    if board.base is None:
        return None
    panel = board.panel
    methods = {arm.label: arm.method for arm in panel.setting.arms if arm.label in panel.arms}
    scores = {line.label: _scores(line) for line in [*board.lines, board.base]}
    gains = {line.label: _gains(board, line) for line in board.lines}
    ranks = {line.label: line.rank for line in board.lines}
    cautions = [f"{name}: {ONE_SEED} of {line.label}." for line in board.lines if len(line.seeds) < 2]
    notes = tuple(note if name == HERE else f"{name}: {note}" for note in panel_notes(panel))
    return Side(
        name,
        panel.setting.model,
        panel.key.reward,
        panel.key.version,
        panel.key.split,
        methods,
        scores,
        gains,
        _order(ranks),
        notes,
        tuple(cautions),
        panel.prompts,
    )


def _reading(estimate: Estimate) -> Reading:
    if estimate.low is None or estimate.high is None:
        return Reading(estimate.value, None)
    return Reading(estimate.value, (estimate.high - estimate.low) / 2)


def _scores(line: Line) -> dict[int, Reading]:
    return {k: _reading(estimate) for k, estimate in line.scores.items() if isinstance(k, int)}


def _gains(board: Board, line: Line) -> dict[int, Reading]:
    grid = board.panel.arms[line.label]
    by_steps = {k: difference_to_base(board.panel, grid, k) for k in grid.steps}
    return {k: _reading(crossed_interval(gain, board.level)) for k, gain in by_steps.items() if gain is not None}


def _order(ranks: Mapping[str, int | None]) -> dict[tuple[str, str], int]:
    """By shared ranks: methods that are not told apart have the same one."""
    order = {}
    for a, b in combinations(ranks, 2):
        rank_a, rank_b = ranks[a], ranks[b]
        if rank_a is not None and rank_b is not None:
            order[a, b] = (rank_a < rank_b) - (rank_a > rank_b)
    return order


# -- tables --------------------------------------------------------------------------------------------------


def against_tables(boards: Iterable[Board], others: Sequence[Side]) -> list[t.Table]:
    """A table (two where the scores compare) for each of one's trained boards and each other side that fits it.

    A side with the same model, reward and split goes before all others.

    Raises:
        UsageError: nothing here and there has a method and a number of steps in common.
    """
    trained = [board_side(board) for board in boards if board.panel.trained]
    own = [side for side in trained if side is not None]
    tables: list[t.Table] = []
    for side in own:
        same = [other for other in others if _same_scale(side, other) and other.split == side.split]
        for other in same or [other for other in others if other.split == side.split]:
            tables += _pair(side, other, f"against-{len(tables) + 1}")
    if not tables:
        raise UsageError(_nothing(own, others))
    return tables


def _same_scale(a: Side, b: Side) -> bool:
    versions = {a.version, b.version} - {""}
    return (a.model, a.reward) == (b.model, b.reward) and len(versions) < 2


def _what(side: Side) -> str:
    return f"{side.reward}{f' (version {side.version})' * bool(side.version)} on {side.model}"


def _nothing(own: Sequence[Side], others: Sequence[Side]) -> str:
    def words(sides: Iterable[Side]) -> str:
        names = sorted({method for side in sides for method in side.methods.values()})
        return ", ".join(names) or "none with scores and a base model"

    return (
        f"--against: no method and number of steps in common. Methods here: {words(own)}; there: {words(others)}. "
        "Train one of them, e.g. sdpo-bench run --method sdpo"
    )


def _pair(own: Side, other: Side, name: str) -> list[t.Table]:
    """The shape of two sides, and their scores if these are on one scale."""
    rows = [(a, b) for a, b in product(own.methods, other.methods) if own.methods[a] == other.methods[b]]
    steps = sorted(_common_steps(own, other, rows))
    if not steps:
        return []
    tables = [_shape_table(own, other, rows, steps, f"{name}-shape")]
    if _same_scale(own, other):
        tables.append(_score_table(own, other, rows, steps, f"{name}-scores"))
    return tables


def _common_steps(own: Side, other: Side, rows: Sequence[tuple[str, str]]) -> set[int]:
    shared = [set(own.gains[a]) & set(other.gains[b]) for a, b in rows]
    return set.intersection(*shared) if shared else set()


def _shape_table(own: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int], name: str) -> t.Table:
    columns = (
        t.Column("from", "method, from", numeric=False),
        *(t.Column(f"steps_{k}", f"{k} step{'s' * (k != 1)}") for k in steps),
        t.Column("mean", "mean", help="Over the step counts shown"),
        t.Column("direction", "direction", numeric=False, help="Up or down, where both sides tell it from no change"),
    )
    tops = [_top(side, {row[i] for row in rows}, steps) for i, side in enumerate((own, other))]
    groups = []
    for a, b in rows:
        here = _shape_row(own, a, steps, tops[0], _directions(own.gains[a], other.gains[b], steps))
        groups.append(t.Group(a, (here, _shape_row(other, b, steps, tops[1], ""))))
    return t.Table(
        name,
        f"Against {other.name}: shape of the gains, {own.reward} on {own.model}",
        columns,
        tuple(groups),
        (*_shape_notes(own, other, rows, steps), *other.notes, *own.notes),
        (*_scale_cautions(own, other, tops), *own.cautions, *other.cautions),
        own.prompts,
    )


def _mean(row: Mapping[int, Reading], steps: Sequence[int]) -> float:
    return sum(row[k].value for k in steps) / len(steps)


def _top(side: Side, labels: Iterable[str], steps: Sequence[int]) -> float | None:
    """The largest mean gain, the unit of a side; None where nothing gains."""
    best = max(_mean(side.gains[label], steps) for label in labels)
    return best if best > 0 else None


def _shape_row(side: Side, label: str, steps: Sequence[int], top: float | None, direction: str) -> t.Row:
    gains = side.gains[label]
    cells = [_percent(gains[k], top) for k in steps]
    mean = _percent(Reading(_mean(gains, steps)), top)
    return t.Row((t.word(side.name), *cells, mean, t.word(direction)))


def _percent(gain: Reading, top: float | None) -> t.Cell:
    if top is None:
        return t.Cell(t.DASH)
    share, half = gain.value / top, None if gain.half is None else gain.half / top
    text = f"{t.fixed(100 * share, 0)} %" + ("" if half is None else f" ±{100 * half:.0f}")
    bounds: dict[str, Any] = {} if half is None else {"low": share - half, "high": share + half}
    return t.Cell(text, share, **bounds)


def _directions(own: Mapping[int, Reading], other: Mapping[int, Reading], steps: Sequence[int]) -> str:
    """Agreement in words: at how many step counts both sides move the same way, and where one shows no change."""
    products = [own[k].direction * other[k].direction for k in steps]
    counts = {"same": products.count(1), "opposite": products.count(-1), "open": products.count(0)}
    return ", ".join(f"{word} at {count}" for word, count in counts.items() if count)


def _shape_notes(own: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int]) -> list[str]:
    left = [sorted(set(side.methods) - {row[i] for row in rows}) for i, side in enumerate((own, other))]
    sides = zip((own.name, other.name), left)
    one_sided = "; ".join(f"only {name}: {', '.join(labels)}" for name, labels in sides if labels)
    many = ", ".join(map(str, steps))
    return [
        "A gain is a score minus the base model's at the same number of steps. 100 % is the largest mean gain among "
        f"the rows of the same side, over {many} step{'s' * (len(steps) > 1)}.",
        f"Direction: whether a gain is up or down at each of the {len(steps)} step counts on both sides; open where "
        "an interval or an error of reading includes no change.",
        *_order_notes(own, other, rows),
        *([f"Not compared: {one_sided}."] if one_sided else []),
    ]


def _order_notes(own: Side, other: Side, rows: Sequence[tuple[str, str]]) -> list[str]:
    """How many pairs of methods come in the same order."""
    pairs: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for (a, x), (b, y) in combinations(rows, 2):
        if x != y:  # two choices of settings of one method have one published row
            pairs[_way(own, a, b) * _way(other, x, y)].append(f"{a} and {b}")
    total = sum(map(len, pairs.values()))
    if not total:
        return []
    swapped = f" ({'; '.join(pairs[-1])})" if pairs[-1] else ""
    return [
        f"Order of methods: of {total} pair{'s' * (total != 1)}, {len(pairs[1])} the same way round on both sides, "
        f"{len(pairs[-1])} the other way round{swapped}, {len(pairs[0])} not told apart on one side or the other."
    ]


def _way(side: Side, a: str, b: str) -> int:
    return side.order.get((a, b), 0) or -side.order.get((b, a), 0)


def _scale_cautions(own: Side, other: Side, tops: Sequence[float | None]) -> list[str]:
    flat = [side.name for side, top in zip((own, other), tops) if top is None]
    lines = [f"{name}: no method gains on average, so there is no unit for shares." for name in flat]
    if not _same_scale(own, other):
        lines.append(
            f"Scales differ: {_what(own)} here, {_what(other)} there. Read the shape "
            "along a row and between rows, not the size."
        )
    return lines


def _score_table(own: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int], name: str) -> t.Table:
    columns = (
        t.Column("from", "method, from", numeric=False),
        *(t.Column(f"steps_{k}", f"{k} step{'s' * (k != 1)}") for k in steps),
    )
    digits = t.digits_for(own.scores[label][k].value for label in (BASE, *(a for a, _ in rows)) for k in steps)
    groups = [
        t.Group(a, tuple(_score_row(side, label, steps, digits) for side, label in ((own, a), (other, b))))
        for a, b in [(BASE, BASE), *rows]
    ]
    caution = (
        "Same model and reward, but training budget, prompts, images and precision can differ from the source's; the "
        "base model's rows say how far the two evaluations are apart before any training."
    )
    return t.Table(
        name,
        f"Against {other.name}: scores, {own.reward} on {own.model}",
        columns,
        tuple(groups),
        (*other.notes, *own.notes),
        (caution, *own.cautions, *other.cautions),
        own.prompts,
    )


def _score_row(side: Side, label: str, steps: Sequence[int], digits: int) -> t.Row:
    cells = [_score_cell(side.scores[label].get(k), digits) for k in steps]
    return t.Row((t.word(side.name), *cells), base=label == BASE)


def _score_cell(score: Reading | None, digits: int) -> t.Cell:
    if score is None:
        return t.Cell(t.DASH)
    if score.half is None:
        return t.number(score.value, digits)
    text = f"{t.fixed(score.value, digits)} ±{t.fixed(score.half, digits)}"
    return t.Cell(text, score.value, score.value - score.half, score.value + score.half)
