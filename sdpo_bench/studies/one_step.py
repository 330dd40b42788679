"""Which methods improve pictures of a single denoising step, and at how many steps should they train for that?

A few-step model is most useful at one step, where a method that needs the likelihood of a random step may have none to
learn from. Every method trains at T = 1, 2 and 4 with equal images, and again with equal denoiser calls, which give
short trajectories more images. Whether a method can train at a T is asked of the engine, not known here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

from sdpo_bench.results.study_findings import Findings, Plot, banded
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.studies.shared import one_step_arms as oa
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import MORE_SEEDS, Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.one_step_arms import LONG, SHORT, STEPS, Cell, LeftOut, Place, said
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference

REFERENCE = "sdpo"
"""Compared at T = LONG, where it can train on both models."""
NEVER_COMPARED = "drpo"
"""DrPO trains SD-Turbo at one step and was not compared with SDPO by its authors."""
ONE = 1
"""Number of steps at which the pictures are judged; the endpoint."""
BILL = {
    "images": "images",
    "denoiser_calls": "denoiser calls",
    "reward_calls": "reward calls",
    "optimiser_steps": "optimiser steps",
}
POWER = "a power of 80 % before adjustment"


class OneStep(Study):
    """Trained at T = 1, 2 and 4 with equal images and equal denoiser calls: which methods improve one-step pictures?"""

    name = "one-step"
    question = (
        "Which methods improve pictures of a single denoising step, on a diffusion and on a flow-matching model, and "
        "is it better to train at that one step or at more?"
    )

    def design(self, request: StudyRequest) -> Design:
        tr.check_judged(request, (ONE, LONG))
        request = _with_defaults(request)
        out = oa.left_out(request)
        suites = oa.suites(request, out)
        amounts = ", ".join(f"{amount:,} {said(axis)}" for axis, amount in oa.amounts(request).items())
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("trained at T", listed(STEPS)),
                ("budget", f"one axis at a time, alike at every T: {amounts}"),
                *oa.facts(request, out),
            ),
            (
                "Endpoint: gain over the base model in pictures of one step.",
                "A family for each model and budget: every method at every T against no gain; crossed intervals, Holm.",
                f"A family for each model and budget: T = {SHORT} minus T = {LONG} of every method that is trained at "
                "both; crossed intervals of the paired difference, Holm.",
                "A family for each model and budget: every other method, at the smallest T that it is trained at, "
                f"minus {REFERENCE} at T = {LONG}, paired by seed; crossed intervals, Holm.",
                f"What is not significant stands with the difference that is found with {POWER}.",
                "At equal images the denoiser calls differ between methods and T. At equal denoiser calls the images "
                "and reward calls do: groups with a shared start "
                f"({listed(oa.sharing_start(request)) or 'none here'}) have many more of both, the most at small T. "
                "The table has all costs.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, request = bench.trainings, _with_defaults(bench.request)
        out = oa.left_out(request)
        arms = {cell: oa.arm(cell, tr.one_reward(request)) for cell in oa.cells(request, out)}
        own = own_gains(trainings, arms)
        shorter = shorter_or_longer(trainings, arms)
        against = against_reference(trainings, arms)
        families = [*shorter.values(), *against.values()]
        return Findings(
            (
                *conclusion(own, shorter, out),
                *reference_sentences(against, arms),
                *seed_caution([*own.values(), *(c for found in families for c in found.values())]),
            ),
            (_own_table(trainings, arms, own, out), _length_table(shorter), _against_table(against, arms)),
            (_plot(trainings, arms),),
        )


def _with_defaults(request: StudyRequest) -> StudyRequest:
    """The request with this study's own seeds where it names none."""
    return replace(request, seeds=request.seeds or MORE_SEEDS)


# -- tests ---------------------------------------------------------------------------------------------------


def own_gains(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[Cell, Contrast]:
    """Gain in one-step pictures of every arm: a family for each model and budget."""
    found: dict[Cell, Contrast] = {}
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        own = {f"{cell.method} at T = {cell.steps}": cell for cell in arms if cell[:2] == (model, axis)}
        contrasts = family({label: trainings.gain(arms[cell], ONE) for label, cell in own.items()})
        found |= {own[label]: contrast for label, contrast in contrasts.items()}
    return found


def shorter_or_longer(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[tuple[str, str], dict[str, Contrast]]:
    """One-step gain of training at the shortest T minus that at the longest, by model and budget, then by method."""
    found = {}
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        differences = {}
        for method in oa.METHODS:
            short, long = (Cell(model, axis, method, k) for k in (SHORT, LONG))
            if short in arms and long in arms:
                differences[method] = difference(trainings.gain(arms[short], ONE), trainings.gain(arms[long], ONE))
        found[model, axis] = family(differences)
    return found


def shortest(arms: Iterable[Cell], model: str, axis: str, method: str) -> Cell | None:
    """The method's cell of the smallest T that it is trained at: a choice that needs no score."""
    own = [cell for cell in arms if cell[:3] == (model, axis, method)]
    return min(own, key=lambda cell: cell.steps, default=None)


def against_reference(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[tuple[str, str], dict[str, Contrast]]:
    """One-step gain of every other method minus that of the reference at T = LONG, by model and budget, then by
    method."""
    found = {}
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        reference = Cell(model, axis, REFERENCE, LONG)
        others = {method: shortest(arms, model, axis, method) for method in oa.METHODS if method != REFERENCE}
        gains = {method: trainings.gain(arms[cell], ONE) for method, cell in others.items() if cell}
        base = trainings.gain(arms[reference], ONE) if reference in arms else None
        found[model, axis] = family({method: difference(gain, base) for method, gain in gains.items()})
    return found


def reference_sentences(
    against: Mapping[tuple[str, str], Mapping[str, Contrast]], arms: Mapping[Cell, Arm]
) -> list[str]:
    """By model and budget: the methods that differ from the reference, and in any case what is known of DrPO."""
    outcomes = {"up": "significantly better", "down": "significantly worse", "unclear": "no significant difference"}
    texts = []
    for (model, axis), contrasts in against.items():
        for method, contrast in contrasts.items():
            own = shortest(arms, model, axis, method)
            if own and (contrast.shown or method == NEVER_COMPARED):
                pair = f"{method} (T = {own.steps}) against {REFERENCE} (T = {LONG})"
                words = outcomes[contrast.outcome] + contrast.size_words
                texts.append(f"{model}, equal {said(axis)}, one-step pictures, {pair}: {words}.")
    return texts


def conclusion(
    own: Mapping[Cell, Contrast],
    shorter: Mapping[tuple[str, str], Mapping[str, Contrast]],
    out: LeftOut,
) -> list[str]:
    """For each model and budget: who improves one-step pictures, who harms them, and at which T to train."""
    texts = []
    for model, axis in shorter:
        cells = {cell: contrast for cell, contrast in own.items() if cell[:2] == (model, axis)}
        for outcome, words in (
            ("up", "one-step pictures gain significantly with {}"),
            ("down", "one-step pictures get significantly worse with {}"),
            ("unclear", "no significant change for {}"),
        ):
            if named := _by_method(cells, outcome):
                texts.append(f"{model}, equal {said(axis)}: {words.format(named)}{_bracket_words(named)}.")
        texts += _length_sentences(model, axis, shorter[model, axis])
    texts += [f"{model}: {words}, so nothing trains there." for model, words in oa.refused_by_model(out).items()]
    texts += [f"{model}: {words}, which is trained once." for model, words in oa.twins_by_model(out).items()]
    return texts or ["No training ended with usable scores."]


def _by_method(cells: Mapping[Cell, Contrast], outcome: str) -> str:
    """Methods with the T at which they have an outcome, e.g. ``nft (T = 1 and 2)`` or ``nft (T = 1 [0.1])``."""
    steps: dict[str, list[str]] = {}
    for cell, contrast in cells.items():
        if contrast.outcome == outcome:
            steps.setdefault(cell.method, []).append(f"{cell.steps}{_findable(contrast)}{contrast.interval_words}")
    return listed(f"{method} (T = {listed(places)})" for method, places in steps.items())


def _findable(contrast: Contrast) -> str:
    """The effect that an unclear contrast could have found, in square brackets; empty without an interval."""
    effect = None if contrast.shown else contrast.estimate.detectable()
    return "" if effect is None else f" [{effect:.3g}]"


def _bracket_words(text: str) -> str:
    return f"; [x]: a change of x is found with {POWER}" if "[" in text else ""


def _length_sentences(model: str, axis: str, contrasts: Mapping[str, Contrast]) -> list[str]:
    where, texts = f"{model}, equal {said(axis)}: training at T = {SHORT} rather than {LONG}", []
    for outcome, words in (
        ("up", "is significantly better for one-step pictures with"),
        ("down", "is significantly worse for one-step pictures with"),
        ("unclear", "makes no significant difference with"),
    ):
        methods = [method + _findable(c) + c.interval_words for method, c in contrasts.items() if c.outcome == outcome]
        if methods:
            named = listed(methods)
            texts.append(f"{where} {words} {named}{_bracket_words(named)}.")
    return texts


# -- tables and plot -----------------------------------------------------------------------------------------


def _own_table(
    trainings: Trainings,
    arms: Mapping[Cell, Arm],
    own: Mapping[Cell, Contrast],
    out: LeftOut,
) -> t.Table:
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("steps", "trained at T"),
        t.Column("gain", "gain at 1 step"),
        t.Column("p", "Holm p"),
        t.Column("longer", f"gain at {LONG} steps"),
        *(t.Column(axis, words) for axis, words in BILL.items()),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        rows = []
        for method, steps in product(oa.METHODS, STEPS):
            cell = Cell(model, axis, method, steps)
            if cell in arms:
                rows.append(_own_row(trainings, cell, arms[cell], own.get(cell)))
                continue
            twin = out.twins.get(Place(model, method, steps))
            dashes = [t.Cell(t.DASH)] * (len(columns) - 3)
            why = t.word(f"same as {twin}" if twin else "cannot train")
            rows.append(t.Row((t.word(method), t.count(steps), why, *dashes)))
        groups.append(t.Group(f"{model}, equal {said(axis)}", tuple(rows)))
    notes = (
        "Gain over the base model in reward units, ± half its 95 % crossed interval over seeds and prompts. Bold: "
        "significantly different from 0 in the group's family. Cost: mean over runs.",
    )
    return t.Table("own", "One-step pictures", columns, tuple(groups), notes, tr.failure_notes(trainings))


def _own_row(trainings: Trainings, cell: Cell, arm: Arm, contrast: Contrast | None) -> t.Row:
    runs = trainings.arms[arm]
    longer = t.estimate(tr.crossed(trainings.gain(arm, LONG)), 3, signed=True)
    bill = [t.count(amount) for amount in tr.mean_bill(runs, BILL)]
    name, steps = t.word(cell.method), t.count(cell.steps)
    return t.Row((name, steps, *contrast_cells(contrast), longer, *bill, tr.seeds_cell(runs)))


def _length_table(shorter: Mapping[tuple[str, str], Mapping[str, Contrast]]) -> t.Table:
    columns = [t.Column("method", "method", numeric=False)]
    for model, axis in shorter:
        key = f"{model}_{axis}"
        columns += [t.Column(key, f"{model}, equal {said(axis)}"), t.Column(f"{key}_p", "Holm p")]
    rows = []
    for method in oa.METHODS:
        cells = [cell for found in shorter.values() for cell in contrast_cells(found.get(method))]
        rows.append(t.Row((t.word(method), *cells)))
    notes = (
        "Paired difference of the gains at one step. Bold: significantly different from 0 in the column's family.",
    )
    return t.plain_table("length", f"Trained at T = {SHORT} minus trained at T = {LONG}", columns, rows, notes)


def _against_table(against: Mapping[tuple[str, str], Mapping[str, Contrast]], arms: Mapping[Cell, Arm]) -> t.Table:
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("steps", "trained at T"),
        t.Column("difference", f"minus {REFERENCE} at T = {LONG}"),
        t.Column("p", "Holm p"),
        t.Column("findable", "found with 80 %"),
    )
    groups = []
    for (model, axis), contrasts in against.items():
        rows = []
        for method, contrast in contrasts.items():
            cell = shortest(arms, model, axis, method)
            steps = t.count(cell.steps) if cell else t.Cell(t.DASH)
            findable = t.number(contrast.estimate.detectable(), 3)
            rows.append(t.Row((t.word(method), steps, *contrast_cells(contrast), findable)))
        groups.append(t.Group(f"{model}, equal {said(axis)}", tuple(rows)))
    notes = (
        "Paired difference of the gains at one step. Bold: significantly different from 0 in the group's family. "
        f"Last column: the difference that is found with {POWER}.",
    )
    return t.Table("against", f"One-step pictures, minus {REFERENCE} at T = {LONG}", columns, tuple(groups), notes, ())


def _plot(trainings: Trainings, arms: Mapping[Cell, Arm]) -> Plot:
    charts = []
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        series = []
        for method in oa.METHODS:
            steps = [k for k in STEPS if Cell(model, axis, method, k) in arms]
            gains = [tr.crossed(trainings.gain(arms[Cell(model, axis, method, k)], ONE)) for k in steps]
            series.append(banded(method, steps, gains))
        title = f"{model}, equal {said(axis)}"
        charts.append(Chart(title, "trained at T", "gain at 1 step", series, steps=True, zero=True))
    caption = "Gain over the base model in one-step pictures; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("one-step", caption, tuple(charts), columns=2, size=(3.8, 3.0))
