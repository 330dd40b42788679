"""The table of learning curves: how much training a level takes each method, and how high its curve lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo_bench.ledger import Axis
from sdpo_bench.reporting.tables.method_tables import training_words
from sdpo_bench.results.comparability import Setting, sampler_words
from sdpo_bench.results.learning_curves import MEAN, CurvePanel, Level, level_of
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.curves import Reach, final_rise, mean_rise, reach, shared_end


@dataclass(frozen=True)
class CurveOptions:
    """How curves are summed up."""

    axis: Axis = "images"
    """What training is counted in."""
    rise: float | None = None
    """The rise over the base model that methods are timed to; None: half of the best method's final one."""
    level: float = 0.95
    """Of the intervals."""


def axis_words(axis: str) -> str:
    return axis.replace("_", " ")


def steps_words(panel: CurvePanel, steps: int) -> str:
    """For example ``at 4 steps`` or ``mean over 1 and 4 steps``."""
    if steps == MEAN:
        return f"mean over {listed(panel.steps)} steps"
    return f"at {steps} step{'s' * (steps != 1)}"


def curve_table(setting: Setting, panels: Sequence[CurvePanel], options: CurveOptions, name: str) -> t.Table:
    """One block for each reward and step count of one split, a row a method.

    Args:
        panels: of one sampler and split.
    """
    unit = axis_words(options.axis)
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("seeds", "seeds"),
        t.Column("final_rise", "final rise", help="Mean score at the last point minus the base model's"),
        t.Column("reach", f"{unit} to reach X", help=f"{unit.capitalize()} at which the curve first rises to X"),
        t.Column("reached_by", "seeds that reach X"),
        t.Column("area", "mean rise", help="Area under the learning curve, divided by the budget that it covers"),
    )
    groups, remarks = [], dict[str, str]()
    ends = [_end(panel, options.axis) for panel in panels]
    for panel, end in zip(panels, ends):
        covered = f"; mean rise up to {amount(end)} {unit}" if len(set(ends)) > 1 else ""
        for steps in (MEAN, *panel.steps) if len(panel.steps) > 1 else panel.steps:
            chosen = level_of(panel, steps, options.rise, options.level)
            rows = _rows(panel, steps, chosen, options, remarks)
            title = f"{panel.key.reward}, {steps_words(panel, steps)}: {level_words(chosen)}{covered}"
            groups.append(t.Group(title, rows))
    split = panels[0].key.split
    title = f"Learning curves, {split} prompts"
    return t.Table(name, title, columns, tuple(groups), _notes(setting, panels, options), _cautions(panels, remarks))


def _end(panel: CurvePanel, axis: Axis) -> float:
    """Amount of training that every curve of a panel covers."""
    return shared_end([curve for curves in panel.arms.values() for curve in curves[MEAN]], axis)


def level_words(chosen: Level | None) -> str:
    """For example ``X = +0.200, half of sdpo's final rise``."""
    if chosen is None:
        return "no X, since no method ends above the base model"
    return f"X = {t.fixed(chosen.rise, 3, signed=True)}, {chosen.source}"


def _rows(
    panel: CurvePanel, steps: int, chosen: Level | None, options: CurveOptions, remarks: dict[str, str]
) -> tuple[t.Row, ...]:
    by_label = {label: curves[steps] for label, curves in panel.arms.items()}
    end = _end(panel, options.axis)
    finals = {label: final_rise(curves, options.level) for label, curves in by_label.items()}
    areas = {label: mean_rise(curves, options.axis, end, options.level) for label, curves in by_label.items()}
    digits = t.digits_for(estimate.value for estimate in (*finals.values(), *areas.values()))
    rows = []
    for label in sorted(by_label, key=lambda label: (-areas[label].value, label)):
        curves = by_label[label]
        timed = reach(curves, options.axis, chosen.rise, options.level) if chosen else None
        cells = (
            t.word(label),
            t.seeds(len(curves), panel.started[label]),
            t.estimate(finals[label], digits, signed=True),
            reach_cell(timed, options.axis),
            reached_cell(timed),
            t.estimate(areas[label], digits, signed=True),
        )
        rows.append(t.Row(cells))
        remarks[label] = finals[label].note
    return tuple(rows)


def reach_cell(timed: Reach | None, axis: str) -> t.Cell:
    """Amount with its interval; a lower bound where some seeds never reach the level; words where none does."""
    if timed is None:
        return t.Cell(t.DASH)
    unit, seeds = axis_words(axis), len(timed.amounts)
    if timed.reached == 0:
        every = min(timed.budgets.values())  # what all seeds were trained for
        return t.Cell(f"not reached in {amount(every)} {unit}", None, low=timed.at_least, seeds=seeds)
    estimate = timed.estimate
    if estimate is None:
        return t.Cell(f"≥{amount(timed.at_least)}", None, low=timed.at_least, seeds=seeds)
    half = "" if estimate.high is None else f" ±{amount(estimate.high - estimate.value)}"
    return t.Cell(f"{amount(estimate.value)}{half}", estimate.value, estimate.low, estimate.high, seeds)


def reached_cell(timed: Reach | None) -> t.Cell:
    """For example ``4 of 5`` seeds."""
    if timed is None:
        return t.Cell(t.DASH)
    return t.Cell(f"{timed.reached} of {len(timed.amounts)}", timed.reached)


def amount(value: float) -> str:
    """A cost: whole numbers, and three digits of a small one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(setting: Setting, panels: Sequence[CurvePanel], options: CurveOptions) -> tuple[str, ...]:
    first, unit = panels[0], axis_words(options.axis)
    curves = [curve for panel in panels for arms in panel.arms.values() for curve in arms[MEAN]]
    ends = {_end(panel, options.axis) for panel in panels}
    up_to = f"{amount(ends.pop())} {unit}" if len(ends) == 1 else f"the {unit} in its block's title"
    points = sorted({len(curve.rise) for curve in curves})
    notes = [
        f"Evaluation during training: {sampler_words(first.key.sampler)}; {first.key.images} images of "
        f"{first.key.split} prompts at each step count, the same prompts and noise at every point; {listed(points)} "
        "points a run, the base model included.",
        f"Rewards: {listed(f'{panel.key.reward} (version {panel.key.version})' for panel in panels)}.",
        f"Training: {training_words(setting)}.",
        f"{unit.capitalize()} to reach X: interpolated between the points of each seed's own curve, then averaged. "
        f"≥: some seeds never reach X and count with all their {unit}, so the mean is at least this.",
        f"Mean rise: area under the curve up to {up_to}, which every curve covers, divided by them.",
        f"±: half-width of the {100 * options.level:g} % interval over training seeds (Student's t), on these prompts.",
        "The points are the policy of that epoch, whichever checkpoint the run chose. Cost of measuring: not counted.",
    ]
    if options.axis == "seconds":
        notes.append("Seconds on different hardware cannot be compared.")
    return tuple(notes)


def _cautions(panels: Sequence[CurvePanel], remarks: Mapping[str, str]) -> tuple[str, ...]:
    missing: dict[str, int] = {}
    for panel in panels:
        missing |= panel.without_curve
    lines = [f"{label}: {count} run{'s' * (count != 1)} without this curve." for label, count in missing.items()]
    return (*lines, *(f"{text}." for text in t.gathered(remarks)))
