"""Does NFT blur a distilled model, and by which measure?

The authors of DiffusionNFT say that their method does not support step-distilled models, and users report blurred
pictures; others train one without trouble. Here the same training is given to a distilled flow model and to the model
that it was distilled from, at few steps and at as many as NFT's own settings sample with. Both sample by the ODE, as
DiffusionNFT does and as the pictures are judged: at few steps a stochastic sampler would give the undistilled model
pictures that are not its own, and the comparison would be one of samplers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import UsageError
from sdpo_bench.results.study_findings import Findings, Plot, banded
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import MORE_SEEDS, Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.picture_measures import BLUR, MEASURES, change
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference
from sdpo_bench.sweep.suite import Suite

METHOD = "nft"
MODELS = {"distilled": "emoji-flow", "undistilled": "emoji-flow-base"}
PRESET = "embedded-flow"
"""One for both, so that they differ in nothing but the weights."""
STEPS = (4, 10)
"""T in training: the distilled model's own, and the one of DiffusionNFT's experiments."""
SAMPLER = {"sde": "ode"}
"""Settings of the schedule in training: no step draws noise (DiffusionNFT, config/nft.py: deterministic, dpm2)."""
IMAGES = 3840
BILL = ("images", "denoiser_calls", "optimiser_steps")
JUDGED = {"steps": [1, 2, 4, 10, 16], "images_per_prompt": 2, "rewards": ["emoji-accuracy"]}


class Cell(NamedTuple):
    kind: str
    """Key of :data:`MODELS`."""
    steps: int


class NFTOnDistilled(Study):
    """NFT on a distilled model and on the one before its distillation: does it blur, and by which measure?"""

    name = "nft-on-distilled"
    question = (
        "Does NFT blur a step-distilled model, does it blur the model before its distillation too, by which measure, "
        "and do the trained reward and an independent accuracy show it?"
    )

    def design(self, request: StudyRequest) -> Design:
        tr.check_judged(request, STEPS)
        request = _with_defaults(request)
        suites = _suites(request)
        models = ", ".join(f"{name} ({kind})" for kind, name in MODELS.items())
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("compared", models),
                ("trained at T", listed(STEPS)),
                ("sampler in training", _sampler_words(request)),
                ("budget", f"{_images(request):,} images for every training"),
                ("settings", _setting_words(request)),
                ("measures", "; ".join(f"{name} in {one.unit}" for name, one in MEASURES.items())),
            ),
            (
                "Endpoint: change against the base model of the same weights, on the same prompts and noise, judged at "
                "the trained T.",
                "Family 1: every measure of both models at each T against no change. Family 2: distilled minus "
                "undistilled, every measure at each T. Crossed intervals over seeds and prompts, Holm in each.",
                f"A model is said to blur by {' or by '.join(BLUR)} where that falls significantly. Sharpness falls "
                "with contrast too, and noise left in pictures raises both. What is not significant has the change "
                "that would be found with a power of 80 %, before adjustment.",
                "Other step counts are in the tables without tests.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward = bench.trainings, tr.one_reward(bench.request)
        arms = {cell: _arm(cell, reward) for cell in _cells()}
        changes = {
            (cell, name): change(trainings, arm, cell.steps, name) for (cell, arm) in arms.items() for name in MEASURES
        }
        own = family({_label(cell, name): matrix for (cell, name), matrix in changes.items()})
        differences = {}
        for steps, name in product(STEPS, MEASURES):
            distilled, undistilled = (changes[Cell(kind, steps), name] for kind in MODELS)
            differences[_pair_label(steps, name)] = difference(distilled, undistilled)
        apart = family(differences)
        return Findings(
            (*conclusion(own, apart), *seed_caution([*own.values(), *apart.values()])),
            (
                _change_table(trainings, own),
                _pair_table(apart),
                _cost_table(trainings, arms),
                *(_step_table(trainings, arms, name) for name in MEASURES),
            ),
            (_plot(trainings, arms),),
        )


def _with_defaults(request: StudyRequest) -> StudyRequest:
    """The request with this study's own seeds and preset where it names none.

    Raises:
        UsageError: it names a model.
    """
    if request.model:
        raise UsageError(
            f"--model {request.model}: this study compares {listed(MODELS.values())}. Leave it out; train another "
            f"model with sdpo-bench run --method {METHOD} --model {request.model}."
        )
    return replace(request, seeds=request.seeds or MORE_SEEDS, preset=request.preset or PRESET)


def _images(request: StudyRequest) -> int:
    return request.amount(IMAGES, least=tr.EPOCH, multiple=tr.EPOCH)


def _cells() -> list[Cell]:
    return [Cell(kind, steps) for kind, steps in product(MODELS, STEPS)]


def _variant(cell: Cell) -> str:
    return f"{cell.kind} T{cell.steps}"


def _arm(cell: Cell, reward: str) -> Arm:
    return Arm(METHOD, reward, _variant(cell))


def _suites(request: StudyRequest) -> list[Suite]:
    suites = []
    for kind, model in MODELS.items():
        suites.append(
            tr.training_suite(
                f"nft-on-distilled.{kind}",
                request,
                [METHOD],
                [tr.one_reward(request)],
                {"images": _images(request)},
                JUDGED,
                model,
                variants={_variant(Cell(kind, steps)): {"schedule": {"steps": steps, **SAMPLER}} for steps in STEPS},
                **{"for": tr.unsearched(request, [METHOD], model)},
            )
        )
    return suites


def _setting_words(request: StudyRequest) -> str:
    model = next(iter(MODELS.values()))
    config = tr.resolved_training(request, METHOD, tr.one_reward(request), request.overrides, model).config
    words = f"learning rate {config.update.lr:g}, preset {request.preset}"
    if METHOD not in tr.unsearched(request, [METHOD], model):
        return f"{words}, whose section for {METHOD} is used"
    return f"{words}, which has no section for {METHOD}: not searched, {tr.UPDATES} optimiser steps an epoch"


def _sampler_words(request: StudyRequest) -> str:
    model = next(iter(MODELS.values()))
    resolved = tr.resolved_training(request, METHOD, tr.one_reward(request), request.overrides, model)
    return (
        f"the ODE in Euler steps (schedule.sde = {SAMPLER['sde']}) for both models at every T, deterministic as in "
        f"DiffusionNFT, whose solver is of second order; pictures are judged by {sampler_id(resolved.config.eval)}"
    )


# -- tests ---------------------------------------------------------------------------------------------------


def _label(cell: Cell, name: str) -> str:
    return f"{name} of the {cell.kind} model at T = {cell.steps}"


def _pair_label(steps: int, name: str) -> str:
    return f"{name} at T = {steps}"


def conclusion(own: Mapping[str, Contrast], apart: Mapping[str, Contrast]) -> list[str]:
    """Whether each model blurs, what the other measures say of the same runs, and whether the models differ."""
    texts = []
    for cell in _cells():
        found = {name: own[_label(cell, name)] for name in MEASURES if _label(cell, name) in own}
        if found:
            texts.append(_cell_sentence(cell, found))
    for outcome, words in (
        ("up", "falls less, or rises more, on the distilled model"),
        ("down", "falls more, or rises less, on the distilled model"),
    ):
        if names := [contrast.words for contrast in apart.values() if contrast.outcome == outcome]:
            texts.append(f"Significant difference: {listed(names)} {words}.")
    if unclear := [contrast.words for contrast in apart.values() if contrast.outcome == "unclear"]:
        texts.append(f"Between the models there is no significant difference in {listed(unclear)}.")
    return texts or ["No training ended with usable scores."]


def _cell_sentence(cell: Cell, found: Mapping[str, Contrast]) -> str:
    """E.g. ``The distilled model at T = 4 BLURS by sharpness, not significantly by ...: sharpness falls ...``."""
    verbs = {"up": "rises significantly", "down": "falls significantly", "unclear": "does not change significantly"}
    judged = [name for name in BLUR if name in found]
    names = [*judged, *(name for name in found if name not in BLUR)]
    parts = [f"{name} {verbs[found[name].outcome]}{found[name].size_words}" for name in names]
    return f"The {cell.kind} model at T = {cell.steps} {_verdict(judged, found)}: {'; '.join(parts)}."


def _verdict(judged: Sequence[str], found: Mapping[str, Contrast]) -> str:
    """Whether a model blurs, by the name of each measure that could say so."""
    if not judged:
        return f"has no {' and no '.join(BLUR)} to judge by"
    fallen = " and by ".join(name for name in judged if found[name].down)
    others = " or by ".join(name for name in judged if not found[name].down)
    if not fallen:
        return f"does not blur significantly by {others}"
    return f"BLURS by {fallen}" + (f", not significantly by {others}" if others else "")


# -- tables and plot -----------------------------------------------------------------------------------------

MEASURE_COLUMNS = (
    t.Column("measure", "measure", numeric=False),
    t.Column("unit", "unit", numeric=False),
    t.Column("change", "change"),
    t.Column("p", "Holm p"),
    t.Column("detectable", "would be found", help="change found with a power of 80 %, before adjustment"),
)


def _measure_row(name: str, contrast: Contrast | None) -> t.Row:
    findable = contrast.estimate.detectable() if contrast else None
    cells = (t.word(name), t.word(MEASURES[name].unit), *contrast_cells(contrast), t.number(findable, 3))
    return t.Row(cells)


def _change_table(trainings: Trainings, own: Mapping[str, Contrast]) -> t.Table:
    groups = []
    for cell in _cells():
        rows = [_measure_row(name, own.get(_label(cell, name))) for name in MEASURES]
        groups.append(t.Group(f"{cell.kind}, trained and judged at T = {cell.steps}", tuple(rows)))
    notes = (
        "Change against the base model of the same weights, ± half its 95 % crossed interval over seeds and prompts. "
        "Bold: significantly different from 0 in the family of all rows.",
        "Sharpness: mean difference of neighbouring pixels' luminance; contrast: its standard deviation.",
    )
    title = f"What {METHOD} changes at the trained T"
    return t.Table("changes", title, MEASURE_COLUMNS, tuple(groups), notes, tr.failure_notes(trainings))


def _pair_table(apart: Mapping[str, Contrast]) -> t.Table:
    groups = []
    for steps in STEPS:
        rows = [_measure_row(name, apart.get(_pair_label(steps, name))) for name in MEASURES]
        groups.append(t.Group(f"trained and judged at T = {steps}", tuple(rows)))
    notes = (
        "Paired difference of the changes, by seed and prompt. Bold: significantly different from 0 in this family.",
    )
    return t.Table("apart", "Distilled minus undistilled", MEASURE_COLUMNS, tuple(groups), notes, ())


def _cost_table(trainings: Trainings, arms: Mapping[Cell, Arm]) -> t.Table:
    columns = (
        t.Column("model", "model", numeric=False),
        t.Column("steps", "trained at T"),
        *(t.Column(axis, axis.replace("_", " ")) for axis in BILL),
        t.Column("seeds", "seeds"),
    )
    rows = []
    for cell, arm in arms.items():
        runs = trainings.arms[arm]
        bill = [t.count(amount) for amount in tr.mean_bill(runs, BILL)]
        rows.append(t.Row((t.word(cell.kind), t.count(cell.steps), *bill, tr.seeds_cell(runs))))
    return t.plain_table("cost", "Cost of a training", columns, rows, ("Mean over runs.",))


def _step_table(trainings: Trainings, arms: Mapping[Cell, Arm], name: str) -> t.Table:
    counts = _judged_steps(trainings, arms)
    columns = [t.Column("model", "model", numeric=False), t.Column("steps", "trained at T")]
    columns += [t.Column(f"k{k}", f"judged at {k}") for k in counts]
    rows = []
    for cell, arm in arms.items():
        found = [t.estimate(tr.crossed(change(trainings, arm, k, name)), 3, signed=True) for k in counts]
        rows.append(t.Row((t.word(cell.kind), t.count(cell.steps), *found)))
    notes = (f"Change in {MEASURES[name].unit}, ± half the 95 % crossed interval; not tested.",)
    return t.plain_table(
        f"steps-{name.replace('/', '-by-')}", f"Change of {name} at every step count", columns, rows, notes
    )


def _judged_steps(trainings: Trainings, arms: Mapping[Cell, Arm]) -> list[int]:
    found: set[int] = set()
    for arm in arms.values():
        if grids := trainings.grids(arm):
            found |= set(grids[0].steps)
    return sorted(found)


def _plot(trainings: Trainings, arms: Mapping[Cell, Arm]) -> Plot:
    charts, counts = [], _judged_steps(trainings, arms)
    for name, measure in MEASURES.items():
        series = []
        for cell, arm in arms.items():
            changes = [tr.crossed(change(trainings, arm, k, name)) for k in counts]
            series.append(banded(f"{cell.kind}, trained at T = {cell.steps}", counts, changes))
        charts.append(Chart(name, "denoising steps", measure.unit, series, steps=True, zero=True))
    caption = "Change against the base model of the same weights; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("changes", caption, tuple(charts), columns=3, size=(3.8, 3.0))
