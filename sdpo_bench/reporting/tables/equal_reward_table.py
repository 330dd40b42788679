"""The table of methods at equal training reward: what differs when the trained reward has risen alike."""

from collections.abc import Iterable, Sequence
from statistics import median

from sdpo_bench.reporting.tables.curve_tables import (
    CurveOptions,
    axis_words,
    level_words,
    reach_cell,
    reached_cell,
    steps_words,
)
from sdpo_bench.reporting.tables.method_tables import training_words
from sdpo_bench.results.comparability import Setting, sampler_words
from sdpo_bench.results.equal_reward import CurvePair, RewardLine, equal_level, lines_at
from sdpo_bench.results.learning_curves import MEAN, CurvePanel, Level
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, listed, outcome_sentences
from sdpo_bench.statistics.curves import reach
from sdpo_bench.statistics.intervals import Estimate


def equal_reward_table(
    setting: Setting, pairs: Sequence[CurvePair], reference: str, options: CurveOptions, name: str
) -> t.Table | None:
    """One block for each other curve, a row a method; None where no method ends above the base model.

    Args:
        pairs: with one trained panel.
        reference: label of the method that differences are measured against.
    """
    trained, unit = pairs[0].trained, axis_words(options.axis)
    height = equal_level(trained, options.rise, options.level)
    if height is None:
        return None
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("reached_by", "seeds that reach X"),
        t.Column("reach", f"{unit} to X", help="Training after which the trained reward has risen by X"),
        t.Column("rise", "rise at X", help="Rise of the block's curve over the base model at that moment"),
        t.Column("difference", f"minus {reference}", help=f"Difference to {reference} at X, paired by seed"),
        t.Column("difference_p", "p (Holm) of it", help="Of that difference, over all methods of the block"),
        t.Column("final_rise", "final rise", help="Rise of the block's curve at the end of training"),
        t.Column("change", f"minus {reference}, X to end", help=f"Of the difference to {reference}, from X to the end"),
        t.Column("change_p", "p (Holm) of it", help="Of that change, over all methods of the block"),
    )
    groups, cautions, power = [], dict[str, str](), list[str]()
    for pair in pairs:
        lines = lines_at(pair, height.rise, reference, options.level)
        key = pair.other.key
        title = f"{key.reward}, {key.split} prompts"
        groups.append(t.Group(title, _rows(pair, lines, height, options)))
        cautions |= {line.label: line.final.note for line in lines}
        sizes = [size for line in lines if line.difference and (size := line.difference.detectable()) is not None]
        power += [f"{median(sizes):.2g} for {title}"] if sizes else []
    title = (
        f"At equal training reward, {trained.key.reward} on {trained.key.split} prompts risen by {level_words(height)}"
    )
    notes = (*_notes(setting, trained, options), *_power(power, reference))
    return t.Table(name, title, columns, tuple(groups), notes, tuple(f"{text}." for text in t.gathered(cautions)))


def equal_reward_words(pair: CurvePair, reference: str, options: CurveOptions) -> str:
    """Which methods differ from the reference at equal training reward, in a sentence; empty without such a test."""
    height = equal_level(pair.trained, options.rise, options.level)
    if height is None:
        return ""
    lines = lines_at(pair, height.rise, reference, options.level)
    clauses = _clauses(
        [(line.label, line.difference, line.difference_p) for line in lines],
        up=f"significantly ahead of {reference}: {{names}}",
        down=f"significantly behind {reference}: {{names}}",
        unclear=f"no significant difference to {reference} for {{names}}",
    )
    if not clauses:
        return ""
    if missing := [line.label for line in lines if line.rise is None]:
        clauses.append(f"no value for {listed(missing)}, since not every seed rises so far")
    later = _clauses(
        [(line.label, line.change, line.change_p) for line in lines],
        up="rises significantly for {names}",
        down="falls significantly for {names}",
        unclear="does not change significantly for {names}",
    )
    trained = pair.trained.key
    return (
        f"At equal training reward ({trained.reward} on {trained.split} prompts risen by {t.fixed(height.rise, 3)}, by "
        f"the learning curves): {'; '.join(clauses)}. From there to the end of training the difference to {reference} "
        f"{'; it '.join(later)}."
    )


def _clauses(tests: Iterable[tuple[str, Estimate | None, float | None]], **templates: str) -> list[str]:
    """A clause for each outcome of the differences that have a test."""
    tested = [Contrast(label, found, p) for label, found, p in tests if found is not None and p is not None]
    return outcome_sentences(tested, templates)


def _rows(pair: CurvePair, lines: Sequence[RewardLine], height: Level, options: CurveOptions) -> tuple[t.Row, ...]:
    digits = t.digits_for(
        value for line in lines for value in (line.final.value, line.rise.value if line.rise else 0.0)
    )
    rows = []
    for line in lines:
        timed = reach([own for own, _ in pair.arms[line.label]], options.axis, height.rise, options.level)
        cells = (
            t.word(line.label),
            reached_cell(timed),
            reach_cell(timed, options.axis),
            t.estimate(line.rise, digits, signed=True),
            t.estimate(line.difference, digits, signed=True),
            t.p_value(line.difference_p),
            t.estimate(line.final, digits, signed=True),
            t.estimate(line.change, digits, signed=True),
            t.p_value(line.change_p),
        )
        rows.append(t.Row(cells))
    return tuple(rows)


def _notes(setting: Setting, trained: CurvePanel, options: CurveOptions) -> tuple[str, ...]:
    return (
        f"Each run is read where its own curve of {trained.key.reward} on {trained.key.split} prompts, "
        f"{steps_words(trained, MEAN)}, first reaches X, in a straight line between its points. A method with a seed "
        "that never does has no value.",
        f"Evaluation during training: {sampler_words(trained.key.sampler)}; the same prompts and noise at every point.",
        f"Training: {training_words(setting)}.",
        f"±: half-width of the {100 * options.level:g} % interval over training seeds (Student's t), on these prompts. "
        "Differences are paired by seed; p is of the t interval beside it, adjusted by Holm over the column's block.",
        "X to end: how that difference changes from X to the end of training; methods go unequally far beyond X.",
    )


def _power(sizes: Sequence[str], reference: str) -> tuple[str, ...]:
    if not sizes:
        return ()
    return (
        f"Power: the uncorrected test of a difference to {reference} finds with probability .8, on these prompts, a "
        f"true difference (median over the methods) of {'; '.join(sizes)}. Corrected for the block, it takes more.",
    )
