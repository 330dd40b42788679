"""Does the winner depend on what is counted?

Papers match methods by images. Per image one method asks three rewards where another asks one, and takes many
optimiser steps where another takes few, so the same methods are compared once for each thing that can be held equal.
"""

from collections.abc import Mapping
from itertools import combinations

from sdpo_bench.estimates.time_estimate import training_work
from sdpo_bench.ledger import AXES
from sdpo_bench.results.study_findings import Findings, Plot
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.statistics.letters import letter_display
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference, mean_of
from sdpo_bench.sweep.suite import Suite

METHODS = ("sdpo", "ddpo", "d3po")
REFERENCE = METHODS[0]
BILL = ("images", "reward_calls", "denoiser_calls", "optimiser_steps")
COUNTED = tuple(axis for axis in AXES if axis != "seconds")


class Budget(Study):
    """The same methods matched by images, reward calls, denoiser calls, optimiser steps and seconds."""

    name = "budget"
    question = "Does the order of the methods depend on which cost is held equal?"

    def design(self, request: StudyRequest) -> Design:
        amounts = _amounts(request)
        suites = [_suite(request, axis, amount) for axis, amount in amounts.items()]
        axes = ", ".join(f"{amount:,} {axis.replace('_', ' ')}" for axis, amount in amounts.items())
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("budget", f"what {REFERENCE} uses for {amounts['images']:,} images, one axis at a time: {axes}"),
                (
                    "seconds",
                    f"as many as {REFERENCE} has trained at equal images here (mean over seeds); "
                    f"{len(METHODS) * len(request.chosen_seeds)} more trainings, planned when that is known",
                ),
            ),
            (
                "Endpoint: mean over step counts of the gain over the base model.",
                "Family: every pair of methods on every axis; crossed intervals of the paired difference, Holm. The "
                "ranking changes where a pair differs significantly one way round on one axis and the other "
                "way on another.",
                "Letters on one axis: methods that share one do not differ significantly in that family.",
            ),
            tuple(suites),
        )

    def follow_up(self, request: StudyRequest, trainings: Trainings) -> list[Suite]:
        reference = trainings.arms[Arm(REFERENCE, tr.one_reward(request), "images")]
        seconds = mean_of(run.seconds for run in reference if not run.why_not)
        return [_suite(request, "seconds", round(seconds, 3))] if seconds > 0 else []

    def findings(self, bench: Bench) -> Findings:
        trainings, reward = bench.trainings, tr.one_reward(bench.request)
        axes = list(dict.fromkeys(arm.variant for arm in trainings.arms))
        gains = {axis: _gains(trainings, axis, reward) for axis in axes}
        differences = {}
        for axis, by_method in gains.items():
            for a, b in combinations(by_method, 2):
                differences[f"{axis}: {a} - {b}"] = difference(by_method[a], by_method[b])
        pairs = family(differences)
        letters = {axis: letters_on(axis, by_method, pairs) for axis, by_method in gains.items() if by_method}
        return Findings(
            (*conclusion(letters, pairs), *seed_caution(pairs.values())),
            (_axis_table(trainings, letters, reward), _pair_table(axes, pairs)),
            (_plot(trainings, reward),),
        )


def _amounts(request: StudyRequest) -> dict[str, int]:
    """What the reference uses on each counted axis."""
    images = request.amount(640, least=tr.EPOCH, multiple=tr.EPOCH)
    overrides = {**request.overrides, "budget.images": images}
    work = training_work(tr.resolved_training(request, REFERENCE, tr.one_reward(request), overrides))
    assert work is not None
    return {axis: int(getattr(work, axis)) for axis in COUNTED}


def _suite(request: StudyRequest, axis: str, amount: float) -> Suite:
    return tr.training_suite(
        f"budget.{axis}", request, METHODS, [tr.one_reward(request)], {axis: amount}, variants={axis: {}}
    )


def _gains(trainings: Trainings, axis: str, reward: str) -> dict[str, Matrix]:
    """By method; those without a usable run are left out."""
    arms = [arm for method in METHODS if (arm := Arm(method, reward, axis)) in trainings.arms]
    return {arm.method: gain for arm in arms if (gain := trainings.gain(arm)) is not None}


def letters_on(axis: str, gains: Mapping[str, Matrix], pairs: Mapping[str, Contrast]) -> dict[str, str]:
    """Letters of the methods on one axis, the highest mean gain first; from the family of all pairs and axes."""
    apart = set()
    for a, b in combinations(gains, 2):
        contrast = pairs.get(f"{axis}: {a} - {b}")
        if contrast is not None and contrast.shown:
            apart.add(frozenset((a, b)))
    return letter_display(sorted(gains, key=lambda method: -gains[method].values.mean()), apart)


def order(letters: Mapping[str, str]) -> str:
    """Methods with their letters, highest mean first; by name where no two differ, so that these read alike."""
    if len(set(letters.values())) == 1:
        names = sorted(letters)
        return f"{listed(names)} do not differ significantly" if len(names) > 1 else f"{names[0]} alone"
    return ", ".join(f"{method} {own}" for method, own in letters.items())


def conclusion(letters: Mapping[str, Mapping[str, str]], pairs: Mapping[str, Contrast]) -> list[str]:
    """The order on each axis, and whether any pair is significant both ways round."""
    by_order: dict[str, list[str]] = {}
    for axis, by_method in letters.items():
        by_order.setdefault(order(by_method), []).append(axis.replace("_", " "))
    texts = [f"At equal {listed(axes)}: {words}." for words, axes in by_order.items()]
    open_pairs = [c.words.replace("_", " ") for c in pairs.values() if c.interval_words]
    if open_pairs:
        texts.append(f"Not significant after correction, though the interval excludes 0: {'; '.join(open_pairs)}.")
    axes: dict[str, dict[str, list[str]]] = {}
    for label, contrast in pairs.items():
        axis, _, pair = label.partition(": ")
        if contrast.shown:
            axes.setdefault(pair, {"up": [], "down": []})[contrast.outcome].append(axis.replace("_", " "))
    contradictions = {pair: by_outcome for pair, by_outcome in axes.items() if all(by_outcome.values())}
    for pair, by_outcome in contradictions.items():
        a, b = pair.split(" - ")
        texts.append(
            f"The ranking CHANGES: {a} is ahead of {b} at equal {listed(by_outcome['up'])}, behind it at equal "
            f"{listed(by_outcome['down'])}."
        )
    if contradictions:
        return texts
    if len({_significant(axis, pairs) for axis in letters}) > 1:
        return [
            *texts,
            "What is significant differs between axes, but no pair of methods is significant both ways round.",
        ]
    same = "The same is significant on every axis, which does not say that the axis makes no difference."
    return [*texts, same] if texts else ["Nothing can be compared."]


def _significant(axis: str, pairs: Mapping[str, Contrast]) -> frozenset[tuple[str, str]]:
    """Pairs that differ significantly on an axis, each with its direction."""
    own = {label.partition(": ")[2]: c for label, c in pairs.items() if label.partition(": ")[0] == axis}
    return frozenset((pair, contrast.outcome) for pair, contrast in own.items() if contrast.shown)


def _axis_table(trainings: Trainings, letters: Mapping[str, Mapping[str, str]], reward: str) -> t.Table:
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("letters", "letters", numeric=False, help="Methods that share one do not differ significantly"),
        t.Column("gain", "mean gain"),
        *(t.Column(axis, axis.replace("_", " ")) for axis in BILL),
        t.Column("seconds", "seconds"),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for axis in dict.fromkeys(arm.variant for arm in trainings.arms):
        rows = [_axis_row(trainings, Arm(m, reward, axis), letters.get(axis, {})) for m in METHODS]
        groups.append(t.Group(f"equal {axis.replace('_', ' ')}", tuple(rows)))
    notes = (
        "Gain over the base model, mean over step counts, ± half its 95 % crossed interval; costs: mean over runs. "
        "Seconds are those of this machine, shared with whatever else ran on it.",
    )
    return t.Table(
        "axes",
        "The same comparison at each equal cost",
        columns,
        tuple(groups),
        notes,
        tr.failure_notes(trainings),
    )


def _axis_row(trainings: Trainings, arm: Arm, letters: Mapping[str, str]) -> t.Row:
    runs, own = trainings.arms[arm], letters.get(arm.method, "")
    gain = t.estimate(tr.crossed(trainings.gain(arm)), 3, signed=True, strong="a" in own)
    counts = [t.count(amount) for amount in tr.mean_bill(runs, BILL)]
    seconds = t.number(tr.mean_seconds(runs), 1)
    return t.Row((t.word(arm.method), t.word(own), gain, *counts, seconds, tr.seeds_cell(runs)))


def _pair_table(axes: list[str], pairs: Mapping[str, Contrast]) -> t.Table:
    columns = [t.Column("pair", "pair", numeric=False)]
    for axis in axes:
        columns += [t.Column(axis, f"equal {axis.replace('_', ' ')}"), t.Column(f"{axis}_p", "Holm p")]
    rows = []
    for a, b in combinations(METHODS, 2):
        cells = [t.word(f"{a} - {b}")]
        for axis in axes:
            cells += contrast_cells(pairs.get(f"{axis}: {a} - {b}"))
        rows.append(t.Row(tuple(cells)))
    notes = (
        "Paired difference of the mean gains. Bold: significantly different from 0 in the family of all pairs "
        "and axes.",
    )
    return t.plain_table("pairs", "Pairs of methods", columns, rows, notes)


def _plot(trainings: Trainings, reward: str) -> Plot:
    arms = {method: Arm(method, reward, "images") for method in METHODS}
    charts = [tr.gain_chart(trainings, arms, "Gain at equal images")]
    for axis in dict.fromkeys(arm.variant for arm in trainings.arms):
        if axis in COUNTED:
            arms = {method: Arm(method, reward, axis) for method in METHODS}
            title = f"Trained to equal {axis.replace('_', ' ')}"
            charts.append(tr.curve_chart(trainings, arms, "reward_mean", axis, title, "mean training reward"))
    caption = (
        "Left: gain over the base model, 95 % crossed intervals. Others: mean reward of the sampled training images "
        "against the cost that was held equal, mean over seeds, band from lowest to highest."
    )
    return Plot("axes", caption, tuple(charts), columns=3, size=(3.8, 3.0))
