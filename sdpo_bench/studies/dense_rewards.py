"""Which reward for each step is worth its cost: predicted, queried, completed, branched, or none but the final one?

SDPO learns from a reward of every denoising step. Predicted ones cost three queries, full ones a query a step, and
completions further denoiser calls for each state as well. Methods are compared at equal images in papers, where such
calls are free; here the same kinds are compared at equal denoiser calls too.
"""

from collections.abc import Mapping
from itertools import product

from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import Work, training_work
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
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference
from sdpo_bench.sweep.suite import Suite

MODELS = ("emoji-turbo", "emoji-flow")
METHOD = "sdpo"
SPARSE, PREDICTED = "sparse", "predicted"
KINDS = (PREDICTED, "full", "completion", "branch", SPARSE)
"""Values of ``method.reward``."""
REFERENCES = (SPARSE, PREDICTED)
"""What the others are compared with: the final reward alone, and SDPO's own."""
IMAGES = 5120
IMAGES_AXIS, CALLS_AXIS = AXES = ("images", "denoiser_calls")
ENDPOINTS: tuple[Endpoint, ...] = ("mean", "few")
BILL = ("images", "denoiser_calls", "reward_calls", "optimiser_steps")


class DenseRewards(Study):
    """Predicted, full, completion, branch and sparse rewards at equal images and at equal denoiser calls."""

    name = "dense-rewards"
    question = (
        "Which step rewards help: predicted, queried at every step, or of completions, and does it remain "
        "so when the denoiser calls that they cost are counted?"
    )

    def design(self, request: StudyRequest) -> Design:
        bills = _bills(request)
        suites = _suites(request, bills)
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("budget", f"{_images(request):,} images; or as many denoiser calls as {PREDICTED} uses for them"),
                *((f"cost at equal images ({model})", _bill_words(bills[model])) for model in bills),
                (
                    "at equal denoiser calls",
                    "; ".join(_calls_words(model, bills[model]) for model in bills),
                ),
            ),
            (
                "Endpoint: mean over step counts of the gain over the base model.",
                f"Two families for each model: every dense kind minus {SPARSE}, and every other one minus {PREDICTED}, "
                "at equal images and at equal denoiser calls; a comparison that is the same pair of runs on both "
                "counts once. Crossed intervals of the paired difference, Holm.",
                "Reward calls are not held equal; the table has them.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward, bills = bench.trainings, tr.one_reward(bench.request), _bills(bench.request)
        arms = {model: _arms(model, reward, bills[model]) for model in bills}
        contrasts = {
            (model, reference): family(_differences(trainings, arms[model], reference))
            for model, reference in product(arms, REFERENCES)
        }
        every = [contrast for found in contrasts.values() for contrast in found.values()]
        return Findings(
            (*conclusion(contrasts, arms), *seed_caution(every)),
            (_gain_table(trainings, arms), *(_difference_table(arms, contrasts, one) for one in REFERENCES)),
            (_plot(trainings, arms),),
        )


def _models(request: StudyRequest) -> tuple[str, ...]:
    return (request.model,) if request.model else MODELS


def _images(request: StudyRequest) -> int:
    return request.amount(IMAGES, least=tr.EPOCH, multiple=tr.EPOCH)


def _bills(request: StudyRequest) -> dict[str, dict[str, Work]]:
    """What each kind uses at equal images, by model.

    Raises:
        UsageError: a kind that the schedule has no place for.
    """
    if "method.reward" in request.overrides:
        raise UsageError("--set method.reward: this study varies that setting itself.")
    bills: dict[str, dict[str, Work]] = {}
    for model, kind in product(_models(request), KINDS):
        overrides = {**request.overrides, "method.reward": kind, "budget.images": _images(request)}
        work = training_work(tr.resolved_training(request, METHOD, tr.one_reward(request), overrides, model))
        assert work is not None
        bills.setdefault(model, {})[kind] = work
    return bills


def _repeated(bills: Mapping[str, Work]) -> list[str]:
    """Kinds that cost as many denoiser calls as the reference: at equal calls they would be the same runs again."""
    return [kind for kind in KINDS if bills[kind].denoiser_calls == bills[PREDICTED].denoiser_calls]


def _bill_words(bills: Mapping[str, Work]) -> str:
    return ", ".join(
        f"{kind} {work.denoiser_calls:,} denoiser calls and {work.reward_calls:,} reward calls"
        for kind, work in bills.items()
    )


def _calls_words(model: str, bills: Mapping[str, Work]) -> str:
    repeated = _repeated(bills)
    others = [kind for kind in KINDS if kind not in repeated]
    words = f"{model}: {listed(repeated)} are their runs at equal images"
    return f"{words}, {listed(others)} train again with {bills[PREDICTED].denoiser_calls:,} calls" if others else words


def _variant(model: str, kind: str, axis: str) -> str:
    return f"{model} {kind}, equal {axis.replace('_', ' ')}"


def _suites(request: StudyRequest, bills: Mapping[str, Mapping[str, Work]]) -> list[Suite]:
    suites = []
    for model, own in bills.items():
        again = [kind for kind in KINDS if kind not in _repeated(own)]
        budgets = {IMAGES_AXIS: (_images(request), KINDS), CALLS_AXIS: (own[PREDICTED].denoiser_calls, again)}
        for axis, (amount, kinds) in budgets.items():
            variants = {_variant(model, kind, axis): {"method": {"reward": kind}} for kind in kinds}
            if variants:
                suites.append(
                    tr.training_suite(
                        f"dense-rewards.{model}.{axis}",
                        request,
                        [METHOD],
                        [tr.one_reward(request)],
                        {axis: amount},
                        model=model,
                        variants=variants,
                    )
                )
    return suites


def _arms(model: str, reward: str, bills: Mapping[str, Work]) -> dict[tuple[str, str], Arm]:
    """Runs by (axis, kind); a kind that is not trained again has the same runs on both axes."""
    repeated = _repeated(bills)
    arms: dict[tuple[str, str], Arm] = {}
    for axis, kind in product(AXES, KINDS):
        own = IMAGES_AXIS if kind in repeated else axis
        arms[axis, kind] = Arm(METHOD, reward, _variant(model, kind, own))
    return arms


# -- tests ---------------------------------------------------------------------------------------------------


def _same_pair(arms: Mapping[tuple[str, str], Arm], axis: str, kind: str, reference: str) -> bool:
    """Whether the comparison is made of the runs of equal images, and is in the family already."""
    return axis != IMAGES_AXIS and all(arms[axis, one] == arms[IMAGES_AXIS, one] for one in (kind, reference))


def _others(reference: str) -> list[str]:
    """Kinds that are compared with a reference; the pair of both references is in the first family alone."""
    return [kind for kind in KINDS if kind != reference and not (reference == PREDICTED and kind == SPARSE)]


def _label(axis: str, kind: str) -> str:
    return f"{kind} at equal {axis.replace('_', ' ')}"


def _differences(trainings: Trainings, arms: Mapping[tuple[str, str], Arm], reference: str) -> dict[str, Matrix | None]:
    """Mean gain of each kind minus the reference's on both axes."""
    differences = {}
    for axis, kind in product(AXES, _others(reference)):
        if not _same_pair(arms, axis, kind, reference):
            own, other = (trainings.gain(arms[axis, one]) for one in (kind, reference))
            differences[_label(axis, kind)] = difference(own, other)
    return differences


def conclusion(
    contrasts: Mapping[tuple[str, str], Mapping[str, Contrast]], arms: Mapping[str, Mapping[tuple[str, str], Arm]]
) -> list[str]:
    """For each model: which kinds beat the final reward alone, how the others stand to the predicted, what turns."""
    texts = []
    for (model, reference), found in contrasts.items():
        templates = {
            "up": f"{model}: {{names}} learns significantly more than {reference}.",
            "down": f"{model}: {{names}} learns significantly less than {reference}.",
            "unclear": f"{model}: no significant difference to {reference} for {{names}}.",
        }
        texts += outcome_sentences(found.values(), templates)
        texts += [f"{model}: {words}" for words in _turned(found, arms[model], reference)]
    return texts or ["No training ended with usable scores."]


def _turned(found: Mapping[str, Contrast], arms: Mapping[tuple[str, str], Arm], reference: str) -> list[str]:
    """What is significant at equal images and not, or the other way round, once the denoiser calls are counted."""
    texts = []
    for kind in _others(reference):
        if _same_pair(arms, CALLS_AXIS, kind, reference):
            continue
        images, calls = (found.get(_label(axis, kind)) for axis in AXES)
        if images is None or calls is None or images.outcome == calls.outcome or not images.shown:
            continue
        ahead = "lead over" if images.up else "lag behind"
        turned = "turns round" if calls.shown else "does not remain significant"
        texts.append(f"the {ahead} {reference} that {kind} has at equal images {turned} at equal denoiser calls.")
    return texts


# -- tables and plot -----------------------------------------------------------------------------------------


def _gain_table(trainings: Trainings, arms: Mapping[str, Mapping[tuple[str, str], Arm]]) -> t.Table:
    columns = (
        t.Column("kind", "step rewards", numeric=False),
        t.Column("gain", "mean gain"),
        t.Column("few", "few-step mean", help="1, 2 and 4 steps"),
        *(t.Column(axis, axis.replace("_", " ")) for axis in BILL),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for model, own in arms.items():
        for axis in AXES:
            rows = [_gain_row(trainings, own[axis, kind], kind) for kind in KINDS]
            groups.append(t.Group(f"{model}, equal {axis.replace('_', ' ')}", tuple(rows)))
    notes = (
        "Gain over the base model in reward units, ± half its 95 % crossed interval. Cost: mean over runs. Kinds that "
        f"cost as many denoiser calls as {PREDICTED} have the same runs in both parts.",
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
    columns = [t.Column("kind", "step rewards", numeric=False)]
    for axis in AXES:
        columns += [t.Column(axis, f"equal {axis.replace('_', ' ')}"), t.Column(f"{axis}_p", "Holm p")]
    groups = []
    for model, own in arms.items():
        rows = []
        for kind in _others(reference):
            cells: list[t.Cell] = [t.word(kind)]
            for axis in AXES:
                if _same_pair(own, axis, kind, reference):
                    cells += [t.word("same runs"), t.Cell(t.DASH)]
                else:
                    cells += contrast_cells(contrasts[model, reference].get(_label(axis, kind)))
            rows.append(t.Row(tuple(cells)))
        groups.append(t.Group(model, tuple(rows)))
    notes = (
        f"Paired difference of the mean gains. Bold: significantly different from 0 in the family against {reference}.",
    )
    return t.Table(f"minus-{reference}", f"Minus {reference}", tuple(columns), tuple(groups), notes, ())


def _plot(trainings: Trainings, arms: Mapping[str, Mapping[tuple[str, str], Arm]]) -> Plot:
    charts = []
    for model, own in arms.items():
        for axis in AXES:
            by_kind = {kind: own[axis, kind] for kind in KINDS}
            charts.append(tr.gain_chart(trainings, by_kind, f"{model}, equal {axis.replace('_', ' ')}"))
    caption = "Gain over the base model; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("kinds", caption, tuple(charts), columns=2, size=(3.8, 3.0))
