"""``report --against``: one's own gains beside somebody else's, by method and number of denoising steps.

Models, rewards and budgets differ, so scores do not compare; shapes do: which way a method moves the score at each
number of steps, how its gain is spread over them, and which method gains more. Gains are therefore shown as shares of
the largest mean gain on the same side, and only where model and reward are the same the scores stand beside each other
too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
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
    """A number and the half-width of what is not known about it; None where even that is unknown."""

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


def published_side(found: Published, name: str) -> Side:
    """A published figure or table; a gain is a difference of two readings, hence off by up to twice the tolerance."""
    base = found.scores[PUBLISHED_BASE]
    rows = {BASE if label == PUBLISHED_BASE else label: row for label, row in found.scores.items()}
    scores = {label: {k: Reading(x, found.tolerance) for k, x in zip(found.steps, row)} for label, row in rows.items()}
    gains = {
        method: {k: Reading(x - b, 2 * found.tolerance) for k, x, b in zip(found.steps, found.scores[method], base)}
        for method in found.methods
    }
    means = {method: sum(r.value for r in row.values()) / len(row) for method, row in gains.items()}
    order = {
        (a, b): Reading(means[a] - means[b], 2 * found.tolerance).direction for a, b in combinations(found.methods, 2)
    }
    how = f"Digitised, each reading off by up to {found.tolerance:g}" if found.digitised else "As printed"
    notes = (
        f"{name}: {found.publication}. {found.model}, {found.reward}. Source: {found.source}.",
        f"{name}: {how}; one unknown number of training seeds, so no interval.",
        *(f"{name}: {note}." for note in found.notes),
    )
    methods = {method: method for method in found.methods}
    return Side(name, found.model, found.reward, "", found.split, methods, scores, gains, order, notes)


def board_side(board: Board, name: str = HERE) -> Side | None:
    """One's own results (or another results folder's) in one panel; None without a base model to gain over."""
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


def _reading(found: Estimate) -> Reading:
    return Reading(found.value, None if found.low is None or found.high is None else (found.high - found.low) / 2)


def _scores(line: Line) -> dict[int, Reading]:
    return {k: _reading(found) for k, found in line.scores.items() if isinstance(k, int)}


def _gains(board: Board, line: Line) -> dict[int, Reading]:
    grid = board.panel.arms[line.label]
    found = {k: difference_to_base(board.panel, grid, k) for k in grid.steps}
    return {k: _reading(crossed_interval(gain, board.level)) for k, gain in found.items() if gain is not None}


def _order(ranks: Mapping[str, int | None]) -> dict[tuple[str, str], int]:
    """By shared ranks: methods that are not told apart have the same one."""
    found = {}
    for a, b in combinations(ranks, 2):
        mine, theirs = ranks[a], ranks[b]
        if mine is not None and theirs is not None:
            found[a, b] = (mine < theirs) - (mine > theirs)
    return found


# -- tables --------------------------------------------------------------------------------------------------


def against_tables(boards: Iterable[Board], others: Sequence[Side]) -> list[t.Table]:
    """A table (two where the scores compare) for each of one's trained boards and each other side that fits it.

    A side with the same model, reward and split goes before all others.

    Raises:
        UsageError: nothing here and there has a method and a number of steps in common.
    """
    mine = [side for board in boards if board.panel.trained and (side := board_side(board))]
    tables: list[t.Table] = []
    for side in mine:
        same = [other for other in others if _same_scale(side, other) and other.split == side.split]
        for other in same or [other for other in others if other.split == side.split]:
            tables += _pair(side, other, f"against-{len(tables) + 1}")
    if not tables:
        raise UsageError(_nothing(mine, others))
    return tables


def _same_scale(a: Side, b: Side) -> bool:
    versions = {a.version, b.version} - {""}
    return (a.model, a.reward) == (b.model, b.reward) and len(versions) < 2


def _what(side: Side) -> str:
    return f"{side.reward}{f' (version {side.version})' * bool(side.version)} on {side.model}"


def _nothing(mine: Sequence[Side], others: Sequence[Side]) -> str:
    def words(sides: Iterable[Side]) -> str:
        found = sorted({method for side in sides for method in side.methods.values()})
        return ", ".join(found) or "none with scores and a base model"

    return (
        f"--against: no method and number of steps in common. Methods here: {words(mine)}; there: {words(others)}. "
        "Train one of them, e.g. sdpo-bench run --method sdpo"
    )


def _pair(mine: Side, other: Side, name: str) -> list[t.Table]:
    """The shape of two sides, and their scores if these are on one scale."""
    rows = [(a, b) for a, method in mine.methods.items() for b in other.methods if other.methods[b] == method]
    steps = sorted(_common_steps(mine, other, rows))
    if not steps:
        return []
    tables = [_shape_table(mine, other, rows, steps, f"{name}-shape")]
    if _same_scale(mine, other):
        tables.append(_score_table(mine, other, rows, steps, f"{name}-scores"))
    return tables


def _common_steps(mine: Side, other: Side, rows: Sequence[tuple[str, str]]) -> set[int]:
    found = [set(mine.gains[a]) & set(other.gains[b]) for a, b in rows]
    return set.intersection(*found) if found else set()


def _shape_table(mine: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int], name: str) -> t.Table:
    columns = (
        t.Column("from", "method, from", numeric=False),
        *(t.Column(f"steps_{k}", f"{k} step{'s' * (k != 1)}") for k in steps),
        t.Column("mean", "mean", help="Over the step counts shown"),
        t.Column("direction", "direction", numeric=False, help="Up or down, where both sides tell it from no change"),
    )
    tops = [_top(side, {row[i] for row in rows}, steps) for i, side in enumerate((mine, other))]
    groups = []
    for a, b in rows:
        here = _shape_row(mine, a, steps, tops[0], _directions(mine.gains[a], other.gains[b], steps))
        groups.append(t.Group(a, (here, _shape_row(other, b, steps, tops[1], ""))))
    return t.Table(
        name,
        f"Against {other.name}: shape of the gains, {mine.reward} on {mine.model}",
        columns,
        tuple(groups),
        (*_shape_notes(mine, other, rows, steps), *other.notes, *mine.notes),
        (*_scale_cautions(mine, other, tops), *mine.cautions, *other.cautions),
        mine.prompts,
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


def _directions(mine: Mapping[int, Reading], other: Mapping[int, Reading], steps: Sequence[int]) -> str:
    """In words: at how many step counts both go the same way, and where one cannot be told from no change."""
    products = [mine[k].direction * other[k].direction for k in steps]
    counts = {"same": products.count(1), "opposite": products.count(-1), "open": products.count(0)}
    return ", ".join(f"{word} at {count}" for word, count in counts.items() if count)


def _shape_notes(mine: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int]) -> list[str]:
    left = [sorted(set(side.methods) - {row[i] for row in rows}) for i, side in enumerate((mine, other))]
    sides = zip((mine.name, other.name), left)
    one_sided = "; ".join(f"only {name}: {', '.join(labels)}" for name, labels in sides if labels)
    many = ", ".join(map(str, steps))
    return [
        "A gain is a score minus the base model's at the same number of steps. 100 % is the largest mean gain among "
        f"the rows of the same side, over {many} step{'s' * (len(steps) > 1)}.",
        f"Direction: whether a gain is up or down at each of the {len(steps)} step counts on both sides; open where "
        "an interval or an error of reading includes no change.",
        *_order_notes(mine, other, rows),
        *([f"Not compared: {one_sided}."] if one_sided else []),
    ]


def _order_notes(mine: Side, other: Side, rows: Sequence[tuple[str, str]]) -> list[str]:
    """How many pairs of methods come in the same order."""
    found: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for (a, x), (b, y) in combinations(rows, 2):
        if x != y:  # two choices of settings of one method have one published row
            found[_way(mine, a, b) * _way(other, x, y)].append(f"{a} and {b}")
    total = sum(map(len, found.values()))
    if not total:
        return []
    swapped = f" ({'; '.join(found[-1])})" if found[-1] else ""
    return [
        f"Order of methods: of {total} pair{'s' * (total != 1)}, {len(found[1])} the same way round on both sides, "
        f"{len(found[-1])} the other way round{swapped}, {len(found[0])} not told apart on one side or the other."
    ]


def _way(side: Side, a: str, b: str) -> int:
    return side.order.get((a, b), 0) or -side.order.get((b, a), 0)


def _scale_cautions(mine: Side, other: Side, tops: Sequence[float | None]) -> list[str]:
    flat = [side.name for side, top in zip((mine, other), tops) if top is None]
    lines = [f"{name}: no method gains on average, so there is no unit for shares." for name in flat]
    if not _same_scale(mine, other):
        lines.append(
            f"Scales differ: {_what(mine)} here, {_what(other)} there. Read the shape "
            "along a row and between rows, not the size."
        )
    return lines


def _score_table(mine: Side, other: Side, rows: Sequence[tuple[str, str]], steps: Sequence[int], name: str) -> t.Table:
    columns = (
        t.Column("from", "method, from", numeric=False),
        *(t.Column(f"steps_{k}", f"{k} step{'s' * (k != 1)}") for k in steps),
    )
    digits = t.digits_for(mine.scores[label][k].value for label in (BASE, *(a for a, _ in rows)) for k in steps)
    groups = [
        t.Group(a, tuple(_score_row(side, label, steps, digits) for side, label in ((mine, a), (other, b))))
        for a, b in [(BASE, BASE), *rows]
    ]
    caution = (
        "Same model and reward, but training budget, prompts, images and precision can differ from the source's; the "
        "base model's rows say how far the two evaluations are apart before any training."
    )
    return t.Table(
        name,
        f"Against {other.name}: scores, {mine.reward} on {mine.model}",
        columns,
        tuple(groups),
        (*other.notes, *mine.notes),
        (caution, *mine.cautions, *other.cautions),
        mine.prompts,
    )


def _score_row(side: Side, label: str, steps: Sequence[int], digits: int) -> t.Row:
    cells = [_score_cell(side.scores[label].get(k), digits) for k in steps]
    return t.Row((t.word(side.name), *cells), base=label == BASE)


def _score_cell(found: Reading | None, digits: int) -> t.Cell:
    if found is None:
        return t.Cell(t.DASH)
    if found.half is None:
        return t.number(found.value, digits)
    text = f"{t.fixed(found.value, digits)} ±{t.fixed(found.half, digits)}"
    return t.Cell(text, found.value, found.value - found.half, found.value + found.half)
