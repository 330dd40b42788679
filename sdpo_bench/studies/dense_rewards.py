"""Which reward for each step is worth its cost: predicted, queried, completed, branched, or none but the final one?

SDPO learns from a reward of every denoising step. Predicted ones cost three queries, full ones a query a step, and
completions further denoiser calls for each state as well. Methods are compared at equal images in papers, where such
calls are free; here the same kinds are compared at equal denoiser calls and at equal reward calls too. The second
count is the one that prediction saves: predicted, full and sparse rewards need the same denoiser calls.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from sdpo_bench.results.study_findings import Findings, Plot
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import (
    Contrast,
    contrast_cells,
    family,
    listed,
    outcome_sentences,
    seed_caution,
)
from sdpo_bench.statistics.matrices import Endpoint, Matrix
from sdpo_bench.studies.shared import reward_budgets as budgets
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import MORE_SEEDS, Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.reward_budgets import AXES, COSTS, IMAGES_AXIS, KINDS, PREDICTED, SPARSE
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference

REFERENCES = (SPARSE, PREDICTED)
"""What the others are compared with: the final reward alone, and SDPO's own."""
ENDPOINTS: tuple[Endpoint, ...] = ("mean", "few")
BILL = (*AXES, "optimiser_steps")


class DenseRewards(Study):
    """Predicted, full, completion, branch and sparse rewards at equal images, denoiser calls and reward calls."""

    name = "dense-rewards"
    question = (
        "Which step rewards help: predicted, queried at every step, or of completions, and does the answer depend on "
        "whether images, denoiser calls or reward calls are held equal?"
    )

    def design(self, request: StudyRequest) -> Design:
        request = replace(request, seeds=request.seeds or MORE_SEEDS)
        bills = budgets.bills(request)
        suites = budgets.suites(request, bills)
        return Design(
            (*tr.suite_facts(request, suites), *budgets.facts(request, bills)),
            (
                "Endpoint: mean over step counts of the gain over the base model.",
                f"Two families for each model: every dense kind minus {SPARSE}, and every other one minus "
                f"{PREDICTED}, at equal {listed(map(budgets.said, AXES))}; a comparison that is the same pair of runs "
                "at two budgets counts once. Crossed intervals of the paired difference, Holm.",
                f"Two further families for each model, against {SPARSE} and against {PREDICTED}: each of these "
                f"differences at equal {listed(map(budgets.said, COSTS))} minus the same one at equal images, paired "
                "by seed and prompt; where the reference's runs are shared, it is what the kind itself gains or loses. "
                "Crossed intervals, Holm.",
                "All kinds have one learning rate and clip range, so the study compares them at these settings, and "
                "not each at its best ones.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward, bills = bench.trainings, tr.one_reward(bench.request), budgets.bills(bench.request)
        arms = {model: budgets.arms(model, reward, bills[model]) for model in bills}
        contrasts, changes = {}, {}
        for model, reference in product(arms, REFERENCES):
            contrasts[model, reference] = family(_differences(trainings, arms[model], reference))
            changes[model, reference] = family(_changes(trainings, arms[model], reference))
        every = [contrast for found in (*contrasts.values(), *changes.values()) for contrast in found.values()]
        tables = []
        for reference in REFERENCES:
            tables += [_difference_table(arms, contrasts, reference), _change_table(arms, changes, reference)]
        return Findings(
            (
                *conclusion(contrasts, changes),
                *(f"{model}: {_limit_words(bench.request, model)}" for model in arms),
                *seed_caution(every),
            ),
            (_gain_table(trainings, arms), *tables),
            (_plot(trainings, arms),),
        )


def _limit_words(request: StudyRequest, model: str) -> str:
    """What the study cannot say."""
    chosen = budgets.chosen_words(request, model)
    return f"every kind has the same learning rate and clip range ({chosen}); none is compared at its own best ones."


# -- tests ---------------------------------------------------------------------------------------------------


def _same_pair(arms: Mapping[tuple[str, str], Arm], axis: str, kind: str, reference: str) -> bool:
    """Whether the comparison is made of the runs of equal images, and is in the family already."""
    return axis != IMAGES_AXIS and all(arms[axis, one] == arms[IMAGES_AXIS, one] for one in (kind, reference))


def _others(reference: str) -> list[str]:
    """Kinds that are compared with a reference; the pair of both references is in the first family alone."""
    return [kind for kind in KINDS if kind != reference and not (reference == PREDICTED and kind == SPARSE)]


def _label(axis: str, kind: str) -> str:
    return f"{kind} at equal {budgets.said(axis)}"


def _minus(
    trainings: Trainings, arms: Mapping[tuple[str, str], Arm], axis: str, kind: str, reference: str
) -> Matrix | None:
    """Mean gain of a kind minus the reference's ``[S, P]``."""
    own, other = (trainings.gain(arms[axis, one]) for one in (kind, reference))
    return difference(own, other)


def _differences(trainings: Trainings, arms: Mapping[tuple[str, str], Arm], reference: str) -> dict[str, Matrix | None]:
    """Each kind minus the reference on every axis."""
    differences = {}
    for axis, kind in product(AXES, _others(reference)):
        if not _same_pair(arms, axis, kind, reference):
            differences[_label(axis, kind)] = _minus(trainings, arms, axis, kind, reference)
    return differences


def _changes(trainings: Trainings, arms: Mapping[tuple[str, str], Arm], reference: str) -> dict[str, Matrix | None]:
    """Each difference to the reference on the axes of cost, minus the same one at equal images."""
    changes = {}
    for axis, kind in product(COSTS, _others(reference)):
        if not _same_pair(arms, axis, kind, reference):
            there, images = (_minus(trainings, arms, one, kind, reference) for one in (axis, IMAGES_AXIS))
            changes[_label(axis, kind)] = difference(there, images)
    return changes


def conclusion(
    contrasts: Mapping[tuple[str, str], Mapping[str, Contrast]],
    changes: Mapping[tuple[str, str], Mapping[str, Contrast]],
) -> list[str]:
    """For each model and reference: which kinds learn more or less, and what another axis makes of the difference."""
    texts = []
    for (model, reference), found in contrasts.items():
        templates = {
            "up": f"{model}: significantly more is learnt than with {reference} by {{names}}.",
            "down": f"{model}: significantly less is learnt than with {reference} by {{names}}.",
            "unclear": f"{model}: no significant difference to {reference} for {{names}}.",
        }
        texts += outcome_sentences(found.values(), templates)
        texts += _change_sentences(model, reference, changes[model, reference])
    return texts or ["No training ended with usable scores."]


def _change_sentences(model: str, reference: str, changes: Mapping[str, Contrast]) -> list[str]:
    """Whether the difference to the reference depends on what is held equal: a test of its own."""
    texts = []
    for outcome, words in (
        ("up", "significantly higher than"),
        ("down", "significantly lower than"),
        ("unclear", "not significantly different from"),
    ):
        names = [label + c.size_words for label, c in changes.items() if c.outcome == outcome]
        if names:
            texts.append(f"{model}: the difference to {reference} is {words} that at equal images for {listed(names)}.")
    return texts


# -- tables and plot -----------------------------------------------------------------------------------------


def _gain_table(trainings: Trainings, arms: Mapping[str, Mapping[tuple[str, str], Arm]]) -> t.Table:
    columns = (
        t.Column("kind", "step rewards", numeric=False),
        t.Column("gain", "mean gain"),
        t.Column("few", "few-step mean", help="1, 2 and 4 steps"),
        *(t.Column(axis, budgets.said(axis)) for axis in BILL),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for model, own in arms.items():
        for axis in AXES:
            rows = [_gain_row(trainings, own[axis, kind], kind) for kind in KINDS]
            groups.append(t.Group(f"{model}, equal {budgets.said(axis)}", tuple(rows)))
    notes = (
        "Gain over the base model in reward units, ± half its 95 % crossed interval. Cost: mean over runs. Kinds that "
        f"use as much as {PREDICTED} at equal images have the same runs where that is held equal.",
    )
    return t.Table("gains", "Gain of each kind", columns, tuple(groups), notes, tr.failure_notes(trainings))


def _gain_row(trainings: Trainings, arm: Arm, kind: str) -> t.Row:
    runs = trainings.arms[arm]
    gains = [t.estimate(tr.crossed(trainings.gain(arm, one)), 3, signed=True) for one in ENDPOINTS]
    bill = [t.count(amount) for amount in tr.mean_bill(runs, BILL)]
    return t.Row((t.word(kind), *gains, *bill, tr.seeds_cell(runs)), kind == PREDICTED)


def _difference_table(
    arms: Mapping[str, Mapping[tuple[str, str], Arm]],
    contrasts: Mapping[tuple[str, str], Mapping[str, Contrast]],
    reference: str,
) -> t.Table:
    note = (
        f"Paired difference of the mean gains. Bold: significantly different from 0 in the family against {reference}."
    )
    return _table_by_axis(f"minus-{reference}", f"Minus {reference}", AXES, arms, contrasts, reference, note)


def _change_table(
    arms: Mapping[str, Mapping[tuple[str, str], Arm]],
    changes: Mapping[tuple[str, str], Mapping[str, Contrast]],
    reference: str,
) -> t.Table:
    note = "Difference of paired differences. Bold: significantly different from 0 in the family of these changes."
    title = f"Minus {reference}, minus the same at equal images"
    return _table_by_axis(f"change-{reference}", title, COSTS, arms, changes, reference, note)


def _table_by_axis(
    name: str,
    title: str,
    axes: tuple[str, ...],
    arms: Mapping[str, Mapping[tuple[str, str], Arm]],
    contrasts: Mapping[tuple[str, str], Mapping[str, Contrast]],
    reference: str,
    note: str,
) -> t.Table:
    """A row for each kind, two columns for each axis."""
    columns = [t.Column("kind", "step rewards", numeric=False)]
    for axis in axes:
        columns += [t.Column(axis, f"equal {budgets.said(axis)}"), t.Column(f"{axis}_p", "Holm p")]
    groups = []
    for model, own in arms.items():
        rows = []
        for kind in _others(reference):
            cells: list[t.Cell] = [t.word(kind)]
            for axis in axes:
                if _same_pair(own, axis, kind, reference):
                    cells += [t.word("same runs"), t.Cell(t.DASH)]
                else:
                    cells += contrast_cells(contrasts[model, reference].get(_label(axis, kind)))
            rows.append(t.Row(tuple(cells)))
        groups.append(t.Group(model, tuple(rows)))
    return t.Table(name, title, tuple(columns), tuple(groups), (note,), ())


def _plot(trainings: Trainings, arms: Mapping[str, Mapping[tuple[str, str], Arm]]) -> Plot:
    charts = []
    for model, own in arms.items():
        for axis in AXES:
            by_kind = {kind: own[axis, kind] for kind in KINDS}
            charts.append(tr.gain_chart(trainings, by_kind, f"{model}, equal {budgets.said(axis)}"))
    caption = "Gain over the base model; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("kinds", caption, tuple(charts), columns=3, size=(3.8, 3.0))
