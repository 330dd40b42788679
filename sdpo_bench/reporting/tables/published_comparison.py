"""``report --against``: own gains beside published ones or another folder's, by method and number of denoising steps.

Models, rewards and budgets differ, so scores do not compare; shapes do: which way a method moves the score at each
number of steps, how its gain is spread over them, and which method gains more. Gains are therefore shown as shares of
the largest mean gain on the same side, and only where model and reward are the same the scores stand beside each other
too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.reporting.tables.against_sides import Reading, Side, board_side
from sdpo_bench.reporting.tables.method_tables import step_columns
from sdpo_bench.results.scoreboard import Board
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import BASE


@dataclass(frozen=True, eq=False)
class Against:
    """What ``--against`` adds to a report."""

    tables: tuple[t.Table, ...] = ()
    verdicts: tuple[str, ...] = ()
    """Sentences on what is reproduced, for each table of scores whose other side says how near a score must be."""


def compare_with_others(boards: Iterable[Board], others: Sequence[Side]) -> Against:
    """A table (two where the scores compare) for each of one's trained boards and each other side that fits it.

    A side with the same model, reward and split goes before all others.

    Raises:
        UsageError: nothing here and there has a method and a number of steps in common.
    """
    trained = [board_side(board) for board in boards if board.panel.trained]
    own = [side for side in trained if side is not None]
    tables: list[t.Table] = []
    verdicts = []
    for side in own:
        same_split = nearest_points([other for other in others if other.split == side.split], side)
        for other in [other for other in same_split if side.has_scale_of(other)] or same_split:
            pair, name = Pair(side, other), f"against-{len(tables) + 1}"
            if pair.steps:
                tables.append(_shape_table(pair, f"{name}-shape"))
                if side.has_scale_of(other):
                    tables.append(_score_table(pair, f"{name}-scores"))
                    verdicts += [_verdict(pair)] if other.agreement else []
    if not tables:
        raise UsageError(
            f"--against: no method and number of steps in common. Methods here: {_method_names(own)}; there: "
            f"{_method_names(others)}. Train one of them, e.g. sdpo-bench run --method sdpo"
        )
    return Against(tuple(tables), tuple(verdicts))


def nearest_points(others: Sequence[Side], own: Side) -> list[Side]:
    """One point of each learning curve: the one nearest to the own number of training images, else the last.

    The points of a curve have the same publication, model, reward and split, and differ in their images.
    """
    chosen: list[Side] = []
    curves: dict[tuple[str, ...], list[Side]] = {}
    for other in others:
        if other.images is None or not other.publication:
            chosen.append(other)
        else:
            curve = (other.publication, other.model, other.reward, other.split)
            curves.setdefault(curve, []).append(other)
    for points in curves.values():
        last = max(points, key=lambda point: point.images or 0)
        comparable = own.images is not None and own.has_scale_of(last)
        near = min(points, key=lambda point: abs((point.images or 0) - (own.images or 0)))
        chosen.append(near if comparable else last)
    return chosen


def _method_names(sides: Iterable[Side]) -> str:
    names = sorted({method for side in sides for method in side.methods.values()})
    return ", ".join(names) or "none with scores and a base model"


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sides with what they have in common."""

    own: Side
    other: Side

    @cached_property
    def rows(self) -> list[tuple[str, str]]:
        """Row labels of one method on both sides."""
        methods, others = self.own.methods, self.other.methods
        return [(a, b) for a, b in product(methods, others) if methods[a] == others[b]]

    @cached_property
    def steps(self) -> list[int]:
        """Numbers of steps that all rows have."""
        shared = [set(self.own.gains[a]) & set(self.other.gains[b]) for a, b in self.rows]
        return sorted(set.intersection(*shared)) if shared else []

    @cached_property
    def sides(self) -> list[tuple[Side, list[str]]]:
        """Each side with its labels among the rows."""
        return [(side, [row[i] for row in self.rows]) for i, side in enumerate((self.own, self.other))]

    @cached_property
    def units(self) -> list[float | None]:
        """The largest mean gain of each side, the unit of its shares; None where nothing gains."""
        best = [max(_mean(side.gains[label], self.steps) for label in labels) for side, labels in self.sides]
        return [gain if gain > 0 else None for gain in best]


def _mean(row: Mapping[int, Reading], steps: Sequence[int]) -> float:
    return sum(row[k].value for k in steps) / len(steps)


# -- shapes --------------------------------------------------------------------------------------------------


def _shape_table(pair: Pair, name: str) -> t.Table:
    own, other, steps = pair.own, pair.other, pair.steps
    columns = (
        t.Column("from", "method, from", numeric=False),
        *step_columns(steps),
        t.Column("mean", "mean", help="Over the step counts shown"),
        t.Column("direction", "direction", numeric=False, help="Up or down, where both sides tell it from no change"),
    )
    groups = []
    for a, b in pair.rows:
        direction = _directions(own.gains[a], other.gains[b], steps)
        rows = (_shape_row(own, a, steps, pair.units[0], direction), _shape_row(other, b, steps, pair.units[1], ""))
        groups.append(t.Group(a, rows))
    return t.Table(
        name,
        f"Against {other.name}: shape of the gains, {own.reward} on {own.model}",
        columns,
        tuple(groups),
        (*_shape_notes(pair), *other.notes, *own.notes),
        (*_scale_cautions(pair), *own.cautions, *other.cautions),
        own.prompts,
    )


def _shape_row(side: Side, label: str, steps: Sequence[int], unit: float | None, direction: str) -> t.Row:
    gains = side.gains[label]
    cells = [_percent(gains[k], unit) for k in steps]
    mean = _percent(Reading(_mean(gains, steps)), unit)
    return t.Row((t.word(side.name), *cells, mean, t.word(direction)))


def _percent(gain: Reading, unit: float | None) -> t.Cell:
    if unit is None:
        return t.Cell(t.DASH)
    share, half = gain.value / unit, None if gain.half is None else gain.half / unit
    text = f"{t.fixed(100 * share, 0)} %" + ("" if half is None else f" ±{100 * half:.0f}")
    bounds: dict[str, Any] = {} if half is None else {"low": share - half, "high": share + half}
    return t.Cell(text, share, **bounds)


def _directions(own: Mapping[int, Reading], other: Mapping[int, Reading], steps: Sequence[int]) -> str:
    """Agreement in words: at how many step counts both sides move the same way, and where one shows no change."""
    products = [own[k].direction * other[k].direction for k in steps]
    counts = {"same": products.count(1), "opposite": products.count(-1), "open": products.count(0)}
    return ", ".join(f"{word} at {count}" for word, count in counts.items() if count)


def _shape_notes(pair: Pair) -> list[str]:
    steps = pair.steps
    notes = [
        "A gain is a score minus the base model's at the same number of steps. 100 % is the largest mean gain among "
        f"the rows of the same side, over {', '.join(map(str, steps))} step{'s' * (len(steps) > 1)}.",
        f"Direction: whether a gain is up or down at each of the {len(steps)} step counts on both sides; open where "
        "an interval or an error of reading includes no change, and where one seed has no interval.",
        *_order_notes(pair),
    ]
    one_sided = []
    for side, labels in pair.sides:
        if left := sorted(set(side.methods) - set(labels)):
            one_sided.append(f"only {side.name}: {', '.join(left)}")
    return notes + ([f"Not compared: {'; '.join(one_sided)}."] if one_sided else [])


def _order_notes(pair: Pair) -> list[str]:
    """How many pairs of methods come in the same order."""
    agreement: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for (a, x), (b, y) in combinations(pair.rows, 2):
        if x != y:  # two choices of settings of one method have one published row
            agreement[pair.own.compare(a, b) * pair.other.compare(x, y)].append(f"{a} and {b}")
    total = sum(map(len, agreement.values()))
    if not total:
        return []
    swapped = f" ({'; '.join(agreement[-1])})" if agreement[-1] else ""
    return [
        f"Order of methods: of {total} pair{'s' * (total != 1)}, {len(agreement[1])} the same way round on both sides, "
        f"{len(agreement[-1])} the other way round{swapped}, {len(agreement[0])} without a significant difference "
        "on one side or the other."
    ]


def _scale_cautions(pair: Pair) -> list[str]:
    lines = []
    for (side, _), unit in zip(pair.sides, pair.units):
        if unit is None:
            lines.append(f"{side.name}: no method gains on average, so there is no unit for shares.")
    if not pair.own.has_scale_of(pair.other):
        lines.append(
            f"Scales differ: {pair.own.scale} here, {pair.other.scale} there. Read the shape "
            "along a row and between rows, not the size."
        )
    return lines


# -- scores --------------------------------------------------------------------------------------------------


def _score_table(pair: Pair, name: str) -> t.Table:
    own, other, steps = pair.own, pair.other, pair.steps
    rows = [(BASE, BASE), *pair.rows]
    digits = t.digits_for(own.scores[a][k].value for a, _ in rows for k in steps)
    groups = []
    for a, b in rows:
        groups.append(t.Group(a, (_score_row(own, a, steps, digits), _score_row(other, b, steps, digits))))
    caution = (
        "Same model and reward, but training budget, prompts, images and precision can differ from the source's; the "
        "base model's rows say how far the two evaluations are apart before any training."
    )
    return t.Table(
        name,
        f"Against {other.name}: scores, {own.reward} on {own.model}",
        (t.Column("from", "method, from", numeric=False), *step_columns(steps)),
        tuple(groups),
        (*other.notes, *own.notes),
        (caution, *own.cautions, *other.cautions),
        own.prompts,
    )


def _verdict(pair: Pair) -> str:
    """At how many step counts each row is reproduced, and how many pairs of methods come in the same order."""
    own, other, steps = pair.own, pair.other, pair.steps
    parts = []
    for a, b in [(BASE, BASE), *pair.rows]:
        shared = [k for k in steps if k in own.scores[a] and k in other.scores[b]]
        distances = {k: abs(own.scores[a][k].value - other.scores[b][k].value) for k in shared}
        near = sum(distance <= other.agreement[k] for k, distance in distances.items())
        parts.append(f"{a} within tolerance at {near} of {len(shared)} step counts")
    same, total = _same_order(pair)
    if total:
        parts.append(f"order reproduced for {same} of {total} pairs of methods")
    limits = ", ".join(f"{other.agreement[k]:g} at {k}" for k in steps)
    where = f"against {other.name}, {own.reward} on {own.model}, {own.split} prompts"
    return f"Verdict {where}: {'; '.join(parts)}. Tolerance by steps: {limits}."


def _same_order(pair: Pair) -> tuple[int, int]:
    """Pairs of methods in the same order on both sides, and pairs that the other side tells apart."""
    same = total = 0
    for (a, x), (b, y) in combinations(pair.rows, 2):
        theirs = pair.other.compare(x, y) if x != y else 0
        if theirs:
            total += 1
            same += pair.own.compare(a, b) == theirs
    return same, total


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
