"""A comparison in words, tables and JSON. The verdict comes first, its evidence follows."""

from dataclasses import replace
from typing import Any

from sdpo_bench.reporting.console import print_tables
from sdpo_bench.reporting.tables.compare import Comparison, Duel, Outcome
from sdpo_bench.reporting.tables.method_tables import interval_words, panel_notes
from sdpo_bench.results.comparability import value_words
from sdpo_bench.results.endpoints import endpoint_words
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate
from sdpo_bench.system.console_text import clean


def heading(duel: Duel) -> str:
    """Which panel a verdict is about."""
    role = "trained on" if duel.panel.trained else "held out"
    return f"{duel.panel.key.reward} ({role}), {duel.panel.key.split} prompts"


WIN_WORDS = (
    "wins: how often an image of the first side scores higher than the second side's image of the same training seed, "
    "prompt, step count and noise, ties one half. It conditions on that image and does not see by how much: a side can "
    "win most images and have the lower mean."
)


def duel_table(comparison: Comparison, duel: Duel, name: str) -> t.Table:
    """A, B and their paired difference at every step count and over all."""
    a, b = comparison.a.name, comparison.b.name
    values = [value for outcome in duel.outcomes for value in (outcome.a, outcome.b)]
    digits = t.digits_for(values)
    columns = (
        t.Column("endpoint", "steps", numeric=False),
        t.Column("a", a),
        t.Column("b", b),
        t.Column("difference", f"{a} - {b}"),
        t.Column("win_rate", f"wins of {a}"),
        t.Column("adjusted_p", "p"),
    )
    rows = tuple(_row(outcome, digits) for outcome in duel.outcomes)
    group = (t.Group("", rows),)
    return t.Table(name, heading(duel), columns, group, tuple(_notes(duel)), tuple(_cautions(duel)))


def _row(outcome: Outcome, digits: int) -> t.Row:
    label = t.Cell(str(outcome.endpoint), outcome.endpoint)
    return t.Row(
        (
            label,
            t.number(outcome.a, digits),
            t.number(outcome.b, digits),
            t.estimate(outcome.difference, digits, signed=True),
            t.share(outcome.win_rate),
            t.p_value(outcome.adjusted_p),
        )
    )


def _notes(duel: Duel) -> list[str]:
    notes = panel_notes(duel.panel)
    if duel.primary.difference.n_seeds > 1:
        notes.append(interval_words(duel.primary.difference.level))
        notes.append(_p_words(duel))
    notes.append(WIN_WORDS)
    return notes


def _p_words(duel: Duel) -> str:
    others = len(duel.outcomes) - 1
    text = "p: of the interval beside it; sentence and verdict have the same."
    if not others:
        return text
    return (
        f"{text} The primary endpoint ({duel.primary.endpoint}) is one test declared beforehand, without correction; "
        f"the other {others} rows are exploratory: Benjamini-Hochberg over these."
    )


def _cautions(duel: Duel) -> list[str]:
    counts = [count for count in duel.panel.counts.values() if len(count.scored) < count.total]
    texts = [*(count.words() for count in counts), duel.seeds_left_out, duel.primary.difference.note]
    return [f"{text[0].upper()}{text[1:]}." for text in texts if text]


def primary_lines(comparison: Comparison, duel: Duel) -> list[str]:
    """The primary endpoint in full sentences: difference, its p and size, and the interval over seeds."""
    difference, where = duel.primary.difference, endpoint_words(duel.primary.endpoint)
    lines = [f"{comparison.a.name} - {comparison.b.name} {where}: {_bare(difference)}"]
    if duel.effect is not None:
        lines[0] += f", or {duel.effect.value:+.2f} of the base model's standard deviations"
    if difference.n_seeds == 1 and duel.image_error is not None:
        text = f"Standard error over the images of these two checkpoints: {duel.image_error:.2g}."
        return [*lines, f"{text} It says nothing about the methods ({ONE_SEED})."]
    if duel.primary.adjusted_p is not None:
        lines[0] += f"; {t.p_words(duel.primary.adjusted_p)}"
    detectable = difference.detectable()
    if detectable is not None and not difference.excludes_zero:
        lines.append(
            f"No significant difference is not equality: this comparison would find a difference of {detectable:.2g} "
            "with probability .8, and misses smaller ones more often."
        )
    low, high = duel.seed_level.low, duel.seed_level.high
    if low is not None and high is not None:
        lines.append(f"On this prompt set, over seeds alone: [{low:.3g}, {high:.3g}].")
    return lines


def _bare(estimate: Estimate) -> str:
    """The estimate in words, without its note."""
    if estimate.low is None:
        return f"{estimate.value:.3g} ({ONE_SEED}, {estimate.n_prompts} prompts)"
    return replace(estimate, note="").words()


def differing_lines(comparison: Comparison) -> list[str]:
    """Settings besides the seed in which the sides differ, and costs that their bills count differently."""
    return [*_differing_settings(comparison), *_differing_costs(comparison)]


def _differing_costs(comparison: Comparison) -> list[str]:
    if comparison.bill is None or comparison.a.arm is None or comparison.b.arm is None:
        return []
    (first, second), lines = comparison.bill.rows, []
    for column, a, b in zip(comparison.bill.columns, first.cells, second.cells):
        if column.key in ("images", "denoiser_calls", "optimiser_steps") and a.text != b.text:
            lines.append(f"{column.title}: {a.text} against {b.text}")
    return lines


def _differing_settings(comparison: Comparison) -> list[str]:
    a, b = comparison.a.arm, comparison.b.arm
    if a is None or b is None:
        return []
    lines = []
    for key, _, _ in comparison.differing:
        both = key in a.settings and key in b.settings  # other methods have other settings
        if key != "method.name" and (both or a.method == b.method):
            lines.append(f"{key}: {value_words(a.settings, key)} against {value_words(b.settings, key)}")
    return lines


def print_comparison(console: Any, comparison: Comparison) -> None:
    """Verdicts, tables, bills on a rich console without markup."""
    for duel in comparison.duels:
        console.print(clean(f"{heading(duel)}: {duel.verdict}."), style="bold")
        for line in primary_lines(comparison, duel):
            console.print(clean(line))
    print_tables(console, [duel_table(comparison, duel, f"duel-{i + 1}") for i, duel in enumerate(comparison.duels)])
    if lines := differing_lines(comparison):
        console.print("\nWhat differs", style="bold")
        for line in lines:
            console.print(clean(f"  {line}"))
    if comparison.bill is not None:
        print_tables(console, [comparison.bill])
    for notice in comparison.notices:
        console.print(clean(f"notice: {notice}"))


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "a": comparison.a.name,
        "b": comparison.b.name,
        "differing": [{"key": key, "a": a, "b": b} for key, a, b in comparison.differing],
        "panels": [_duel_data(comparison, duel) for duel in comparison.duels],
        "bill": t.table_data(comparison.bill) if comparison.bill else None,
        "notices": list(comparison.notices),
    }


def _duel_data(comparison: Comparison, duel: Duel) -> dict[str, Any]:
    return {
        **duel.panel.key._asdict(),
        "trained": duel.panel.trained,
        "verdict": duel.verdict,
        "prompts": len(duel.panel.prompts),
        "images_per_prompt": len(duel.panel.images),
        "seeds": list(_seeds(comparison, duel)),
        "primary": _outcome_data(duel.primary),
        "effect_size": duel.effect.value if duel.effect else None,
        "test": {"name": "t test over seeds and prompts", "p": duel.primary.adjusted_p, "smallest_p": 0.0},
        "seed_level_interval": [duel.seed_level.low, duel.seed_level.high],
        "endpoints": [_outcome_data(outcome) for outcome in duel.outcomes],
        "notes": [*_cautions(duel), *_notes(duel)],
    }


def _seeds(comparison: Comparison, duel: Duel) -> tuple[int, ...]:
    arms = [side.arm for side in (comparison.a, comparison.b) if side.arm is not None]
    sets = [set(duel.panel.arms[arm.label].seeds) for arm in arms]
    return tuple(sorted(set.intersection(*sets)))


def _outcome_data(outcome: Outcome) -> dict[str, Any]:
    d, w = outcome.difference, outcome.win_rate
    return {
        "endpoint": outcome.endpoint,
        "a": outcome.a,
        "b": outcome.b,
        "difference": d.value,
        "interval": [d.low, d.high],
        "win_rate": w.value,
        "win_rate_interval": [w.low, w.high],
        "p": outcome.p,
        "adjusted_p": outcome.adjusted_p,
        "seeds": d.n_seeds,
        "prompts": d.n_prompts,
    }
