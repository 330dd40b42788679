"""Which methods improve pictures of a single denoising step, and at how many steps should they train for that?

A few-step model is most useful at one step, where a method that needs the likelihood of a random step may have none to
learn from. Every method trains at T = 1, 2 and 4 with equal images, and again with equal denoiser calls, which give
short trajectories more images. Whether a method can train at a T is asked of the engine, not known here.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, NamedTuple

from sdpo_bench.results.study_findings import Findings, Plot, banded
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference
from sdpo_bench.sweep.suite import Suite

MODELS = ("emoji-turbo", "emoji-flow")
METHODS = ("nft", "awm", "drpo", "refl", "draft", "sdpo", "grpo")
STEPS = (1, 2, 4)
SHORT, LONG = STEPS[0], STEPS[-1]
REFERENCE = "sdpo"
NEVER_COMPARED = "drpo"
"""DrPO trains SD-Turbo at one step and was not compared with SDPO by its authors."""
AMOUNTS = {"images": 1024, "denoiser_calls": 12288}
"""What every training may use, one axis at a time: 16 epochs; about the mean bill of these at the three T."""
ONE = 1
"""Number of steps at which the pictures are judged; the endpoint."""
JUDGED = {"steps": [ONE, LONG], "images_per_prompt": 2}
OWN = {"draft": {"method": {"steps": 1}}}
"""DRaFT differentiates the last step alone (its default), because a preset's further ones are not there at T = 1."""


class Cell(NamedTuple):
    """What the runs of one arm share."""

    model: str
    axis: str
    method: str
    steps: int


class OneStep(Study):
    """Trained at T = 1, 2 and 4 with equal images and equal denoiser calls: which methods improve one-step pictures?"""

    name = "one-step"
    question = (
        "Which methods improve pictures of a single denoising step, on a diffusion and on a flow-matching model, and "
        "is it better to train at that one step or at more?"
    )

    def design(self, request: StudyRequest) -> Design:
        tr.check_judged(request, (ONE, LONG))
        refused = refusals(request)
        suites = _suites(request, refused)
        amounts = ", ".join(f"{amount:,} {_said(axis)}" for axis, amount in _amounts(request).items())
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("trained at T", listed(STEPS)),
                ("budget", f"one axis at a time, alike at every T: {amounts}"),
                *((f"cannot train ({model})", words) for model, words in _refusal_words(refused).items()),
                *_setting_facts(request),
            ),
            (
                "Endpoint: gain over the base model in pictures of one step.",
                "A family for each model, budget and method: its T against no gain; crossed intervals, Holm.",
                f"A family for each model and budget: T = {SHORT} minus T = {LONG} of every method that can train at "
                "both; crossed intervals of the paired difference, Holm.",
                f"A family for each model and budget: every other method minus {REFERENCE}, each at the smallest T of "
                "the study that it can train at, paired by seed; crossed intervals, Holm.",
                "At equal images the compute differs between methods and T; at equal denoiser calls the images do.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, refused = bench.trainings, refusals(bench.request)
        arms = {cell: _arm(cell, tr.one_reward(bench.request)) for cell in _cells(bench.request, refused)}
        own = own_gains(trainings, arms)
        shorter = shorter_or_longer(trainings, arms)
        against = against_reference(trainings, arms)
        families = [*shorter.values(), *against.values()]
        return Findings(
            (
                *conclusion(own, shorter, refused),
                *reference_sentences(against, arms),
                *seed_caution([*own.values(), *(c for found in families for c in found.values())]),
            ),
            (_own_table(trainings, arms, own, refused), _length_table(shorter), _against_table(against, arms)),
            (_plot(trainings, arms),),
        )


def _said(axis: str) -> str:
    return axis.replace("_", " ")


def _models(request: StudyRequest) -> tuple[str, ...]:
    return (request.model,) if request.model else MODELS


def _amounts(request: StudyRequest) -> dict[str, int]:
    return {axis: request.amount(amount, least=tr.EPOCH, multiple=tr.EPOCH) for axis, amount in AMOUNTS.items()}


def refusals(request: StudyRequest) -> dict[tuple[str, str, int], str]:
    """Why a method cannot train, by (model, method, T); the engine says so."""
    refused = {}
    for model, method, steps in product(_models(request), METHODS, STEPS):
        overrides = {"schedule.steps": steps}
        overrides |= {f"method.{key}": value for key, value in OWN.get(method, {}).get("method", {}).items()}
        if reason := tr.why_not(request, method, tr.one_reward(request), overrides, model):
            refused[model, method, steps] = reason
    return refused


def _refusal_words(refused: Mapping[tuple[str, str, int], str]) -> dict[str, str]:
    """What cannot train by model, e.g. ``sdpo and grpo at T = 1: one denoising step is ...``."""
    grouped: dict[str, dict[tuple[str, int], str]] = {}
    for (model, method, steps), reason in refused.items():
        grouped.setdefault(model, {})[method, steps] = reason
    return {model: tr.refusal_words(found) for model, found in grouped.items()}


def _setting_facts(request: StudyRequest) -> list[tuple[str, str]]:
    """Which settings no search has chosen."""
    found = {model: list(tr.unsearched(request, METHODS, model)) for model in _models(request)}
    return [
        (
            f"not searched ({model})",
            f"{listed(methods)}: no section in the preset, so its common learning rate, the method's own defaults and "
            f"{tr.UPDATES} optimiser steps an epoch",
        )
        for model, methods in found.items()
        if methods
    ]


def _variant(model: str, axis: str, steps: int) -> str:
    return f"{model} T{steps}, equal {_said(axis)}"


def _arm(cell: Cell, reward: str) -> Arm:
    return Arm(cell.method, reward, _variant(cell.model, cell.axis, cell.steps))


def _cells(request: StudyRequest, refused: Mapping[tuple[str, str, int], str]) -> list[Cell]:
    """All that is trained, in the order of the tables."""
    axes = product(_models(request), AMOUNTS, METHODS, STEPS)
    return [Cell(*cell) for cell in axes if (cell[0], cell[2], cell[3]) not in refused]


def _suites(request: StudyRequest, refused: Mapping[tuple[str, str, int], str]) -> list[Suite]:
    """One suite for each model, T and budget, of the methods that can train there."""
    suites = []
    for model, (axis, amount), steps in product(_models(request), _amounts(request).items(), STEPS):
        methods = [method for method in METHODS if (model, method, steps) not in refused]
        suites.append(
            tr.training_suite(
                f"one-step.{model}.{axis}.T{steps}",
                request,
                methods,
                [tr.one_reward(request)],
                {axis: amount},
                JUDGED,
                model,
                variants={_variant(model, axis, steps): {"schedule": {"steps": steps}}},
                **{"for": _own_tables(request, methods, model)},
            )
        )
    return suites


def _own_tables(request: StudyRequest, methods: Iterable[str], model: str) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = tr.unsearched(request, methods, model)
    for method in methods:
        if method in OWN:
            tables[method] = {**tables.get(method, {}), **OWN[method]}
    return tables


# -- tests ---------------------------------------------------------------------------------------------------


def own_gains(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[Cell, Contrast]:
    """Gain in one-step pictures of every arm: a family for each model, budget and method."""
    found: dict[Cell, Contrast] = {}
    for model, axis, method in dict.fromkeys(cell[:3] for cell in arms):
        own = {cell.steps: cell for cell in arms if cell[:3] == (model, axis, method)}
        contrasts = family({f"T = {k}": trainings.gain(arms[cell], ONE) for k, cell in own.items()})
        found |= {cell: contrasts[f"T = {k}"] for k, cell in own.items() if f"T = {k}" in contrasts}
    return found


def shorter_or_longer(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[tuple[str, str], dict[str, Contrast]]:
    """One-step gain of training at the shortest T minus that at the longest, by model and budget, then by method."""
    found = {}
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        differences = {}
        for method in METHODS:
            short, long = (Cell(model, axis, method, k) for k in (SHORT, LONG))
            if short in arms and long in arms:
                differences[method] = difference(trainings.gain(arms[short], ONE), trainings.gain(arms[long], ONE))
        found[model, axis] = family(differences)
    return found


def shortest(arms: Iterable[Cell], model: str, axis: str, method: str) -> Cell | None:
    """The method's cell of the smallest T that it can train at: a choice that needs no score."""
    own = [cell for cell in arms if cell[:3] == (model, axis, method)]
    return min(own, key=lambda cell: cell.steps, default=None)


def against_reference(trainings: Trainings, arms: Mapping[Cell, Arm]) -> dict[tuple[str, str], dict[str, Contrast]]:
    """One-step gain of every other method minus the reference's, by model and budget, then by method."""
    found = {}
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        cells = {method: shortest(arms, model, axis, method) for method in METHODS}
        gains = {method: trainings.gain(arms[cell], ONE) for method, cell in cells.items() if cell}
        reference = gains.pop(REFERENCE, None)
        found[model, axis] = family({method: difference(gain, reference) for method, gain in gains.items()})
    return found


def reference_sentences(
    against: Mapping[tuple[str, str], Mapping[str, Contrast]], arms: Mapping[Cell, Arm]
) -> list[str]:
    """By model and budget: the methods that differ from the reference, and in any case what is known of DrPO."""
    outcomes = {"up": "significantly better", "down": "significantly worse", "unclear": "a difference is not shown"}
    texts = []
    for (model, axis), contrasts in against.items():
        reference = shortest(arms, model, axis, REFERENCE)
        for method, contrast in contrasts.items():
            own = shortest(arms, model, axis, method)
            if own and reference and (contrast.shown or method == NEVER_COMPARED):
                pair = f"{method} (T = {own.steps}) against {REFERENCE} (T = {reference.steps})"
                words = outcomes[contrast.outcome] + _size_words(contrast)
                texts.append(f"{model}, equal {_said(axis)}, one-step pictures, {pair}: {words}.")
    return texts


def _size_words(contrast: Contrast) -> str:
    """Difference with interval and adjusted p, and the difference found with a power of 80 % where none is shown."""
    e, p = contrast.estimate, contrast.adjusted_p
    if p is None:
        return f" ({e.value:+.3g}, one seed, no interval)"
    findable = None if contrast.shown else e.detectable()
    power = f"; a difference of {findable:.3g} is found with a power of 80 % before adjustment" if findable else ""
    return f" ({e.value:+.3g}, interval [{e.low:.3g}, {e.high:.3g}], adjusted p = {p:.2g}{power})"


def conclusion(
    own: Mapping[Cell, Contrast],
    shorter: Mapping[tuple[str, str], Mapping[str, Contrast]],
    refused: Mapping[tuple[str, str, int], str],
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
                texts.append(f"{model}, equal {_said(axis)}: {words.format(named)}.")
        texts += _length_sentences(model, axis, shorter[model, axis])
    texts += [f"{model}: {words}, so these cannot train there." for model, words in _refusal_words(refused).items()]
    return texts or ["No training ended with usable scores."]


def _by_method(cells: Mapping[Cell, Contrast], outcome: str) -> str:
    """Methods with the T at which they have an outcome, e.g. ``nft (T = 1 and 2)``."""
    steps: dict[str, list[str]] = {}
    for cell, contrast in cells.items():
        if contrast.outcome == outcome:
            steps.setdefault(cell.method, []).append(f"{cell.steps}{contrast.interval_words}")
    return listed(f"{method} (T = {listed(places)})" for method, places in steps.items())


def _length_sentences(model: str, axis: str, contrasts: Mapping[str, Contrast]) -> list[str]:
    where, texts = f"{model}, equal {_said(axis)}: training at T = {SHORT} rather than {LONG}", []
    for outcome, words in (
        ("up", "is significantly better for one-step pictures with"),
        ("down", "is significantly worse for one-step pictures with"),
        ("unclear", "makes no significant difference with"),
    ):
        methods = [method + c.interval_words for method, c in contrasts.items() if c.outcome == outcome]
        if methods:
            texts.append(f"{where} {words} {listed(methods)}.")
    return texts


# -- tables and plot -----------------------------------------------------------------------------------------


def _own_table(
    trainings: Trainings,
    arms: Mapping[Cell, Arm],
    own: Mapping[Cell, Contrast],
    refused: Mapping[tuple[str, str, int], str],
) -> t.Table:
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("steps", "trained at T"),
        t.Column("gain", "gain at 1 step"),
        t.Column("p", "Holm p"),
        t.Column("longer", f"gain at {LONG} steps"),
        t.Column("images", "images"),
        t.Column("calls", "denoiser calls"),
        t.Column("updates", "optimiser steps"),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        rows = []
        for method, steps in product(METHODS, STEPS):
            cell = Cell(model, axis, method, steps)
            if cell in arms:
                rows.append(_own_row(trainings, cell, arms[cell], own.get(cell)))
            elif (model, method, steps) in refused:
                dashes = [t.Cell(t.DASH)] * (len(columns) - 3)
                rows.append(t.Row((t.word(method), t.count(steps), t.word("cannot train"), *dashes)))
        groups.append(t.Group(f"{model}, equal {_said(axis)}", tuple(rows)))
    notes = (
        "Gain over the base model in reward units, ± half its 95 % crossed interval over seeds and prompts. Bold: "
        "significantly different from 0 in the family of the method's T. Cost: mean over runs.",
    )
    return t.Table("own", "One-step pictures", columns, tuple(groups), notes, tr.failure_notes(trainings))


def _own_row(trainings: Trainings, cell: Cell, arm: Arm, contrast: Contrast | None) -> t.Row:
    runs = trainings.arms[arm]
    longer = t.estimate(tr.crossed(trainings.gain(arm, LONG)), 3, signed=True)
    bill = [t.count(amount) for amount in tr.mean_bill(runs, ("images", "denoiser_calls", "optimiser_steps"))]
    name, steps = t.word(cell.method), t.count(cell.steps)
    return t.Row((name, steps, *contrast_cells(contrast), longer, *bill, tr.seeds_cell(runs)))


def _length_table(shorter: Mapping[tuple[str, str], Mapping[str, Contrast]]) -> t.Table:
    columns = [t.Column("method", "method", numeric=False)]
    for model, axis in shorter:
        key = f"{model}_{axis}"
        columns += [t.Column(key, f"{model}, equal {_said(axis)}"), t.Column(f"{key}_p", "Holm p")]
    rows = []
    for method in METHODS:
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
        t.Column("difference", f"minus {REFERENCE}"),
        t.Column("p", "Holm p"),
    )
    groups = []
    for (model, axis), contrasts in against.items():
        rows = []
        for method, contrast in contrasts.items():
            cell = shortest(arms, model, axis, method)
            steps = t.count(cell.steps) if cell else t.Cell(t.DASH)
            rows.append(t.Row((t.word(method), steps, *contrast_cells(contrast))))
        groups.append(t.Group(f"{model}, equal {_said(axis)}", tuple(rows)))
    notes = ("Paired difference of the gains at one step. Bold: significantly different from 0 in the group's family.",)
    return t.Table("against", f"One-step pictures, minus {REFERENCE}", columns, tuple(groups), notes, ())


def _plot(trainings: Trainings, arms: Mapping[Cell, Arm]) -> Plot:
    charts = []
    for model, axis in dict.fromkeys(cell[:2] for cell in arms):
        series = []
        for method in METHODS:
            steps = [k for k in STEPS if Cell(model, axis, method, k) in arms]
            gains = [tr.crossed(trainings.gain(arms[Cell(model, axis, method, k)], ONE)) for k in steps]
            series.append(banded(method, steps, gains))
        title = f"{model}, equal {_said(axis)}"
        charts.append(Chart(title, "trained at T", "gain at 1 step", series, steps=True, zero=True))
    caption = "Gain over the base model in one-step pictures; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("one-step", caption, tuple(charts), columns=2, size=(3.8, 3.0))
