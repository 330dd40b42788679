"""Does the winner depend on what is counted?

Papers match methods by images. Per image one method asks three rewards where another asks one, and takes many
optimiser steps where another takes few, so the same methods are compared once for each thing that can be held equal.
"""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Any

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.estimates.time_estimate import training_work
from sdpo_bench.ledger import AXES
from sdpo_bench.results.study_findings import Findings, Plot
from sdpo_bench.settings import DEFAULT_MODEL
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.statistics.ranking import rank_with_ties
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference, known
from sdpo_bench.sweep.suite import Suite

METHODS = ("sdpo", "ddpo", "d3po")
REFERENCE = METHODS[0]
COUNTED = tuple(axis for axis in AXES if axis != "seconds")


class Budget(Study):
    """The same methods matched by images, reward calls, denoiser calls, optimiser steps and seconds."""

    name = "budget"
    question = "Does the ranking of the methods depend on which cost is held equal?"

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
                "ranking changes where a pair is shown one way round on one axis and the other way on another.",
                "Ranks on one axis show ties (Holm-adjusted intervals against the best).",
            ),
            tuple(suites),
        )

    def follow_up(self, request: StudyRequest, trainings: Trainings) -> list[Suite]:
        reference = trainings.arms[Arm(REFERENCE, tr.one_reward(request), "images")]
        seconds = tr.mean_of(run.seconds for run in reference if not run.why_not)
        return [_suite(request, "seconds", round(seconds, 3))] if seconds > 0 else []

    def findings(self, bench: Bench) -> Findings:
        trainings = bench.trainings
        axes = list(dict.fromkeys(arm.variant for arm in trainings.arms))
        gains = {axis: _gains(trainings, axis, tr.one_reward(bench.request)) for axis in axes}
        pairs = family(
            known(
                {
                    f"{axis}: {a} - {b}": difference(found[a], found[b])
                    for axis, found in gains.items()
                    for a, b in combinations(found, 2)
                }
            )
        )
        ranks = {axis: rank_with_ties(_common(found)) for axis, found in gains.items() if found}
        arms = {m: Arm(m, tr.one_reward(bench.request), "images") for m in METHODS}
        return Findings(
            (*conclusion(ranks, pairs), *seed_caution(pairs.values())),
            (_rank_table(trainings, ranks, tr.one_reward(bench.request)), _pair_table(axes, pairs)),
            (_plot(trainings, arms),),
        )


def _amounts(request: StudyRequest) -> dict[str, int]:
    """What the reference uses on each counted axis."""
    images = request.amount(640, least=tr.EPOCH, multiple=tr.EPOCH)
    resolved = resolve(
        Request(
            REFERENCE,
            tr.one_reward(request),
            request.model or DEFAULT_MODEL,
            request.preset,
            0,
            {**request.overrides, "budget.images": images},
        )
    )
    work = training_work(resolved)
    assert work is not None
    return {axis: int(getattr(work, axis)) for axis in COUNTED}


def _suite(request: StudyRequest, axis: str, amount: float) -> Suite:
    return tr.training_suite(
        f"budget.{axis}", request, METHODS, [tr.one_reward(request)], {axis: amount}, variants={axis: {}}
    )


def _gains(trainings: Trainings, axis: str, reward: str) -> dict[str, Matrix]:
    return known({m: trainings.gain(arm) for m in METHODS if (arm := Arm(m, reward, axis)) in trainings.arms})


def _common(found: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """Matrices cut to the seeds that all have, so that they can be paired; those of no common seed are left out."""
    shared = set.intersection(*(set(m.seeds) for m in found.values()))
    keep = [seed for seed in next(iter(found.values())).seeds if seed in shared]
    if not keep:
        name, first = next(iter(found.items()))
        return {name: first}
    return {
        name: Matrix(m.values[[m.seeds.index(seed) for seed in keep]], tuple(keep), m.prompts, m.measure, name)
        for name, m in found.items()
    }


def order(ranks: Mapping[str, int]) -> str:
    """``sdpo > d3po = ddpo``; those that tie stand by name, so that equal findings read alike."""
    methods = sorted(ranks, key=lambda method: (ranks[method], method))
    text = methods[0]
    for before, after in pairwise(methods):
        text += f" {'=' if ranks[before] == ranks[after] else '>'} {after}"
    return text


def conclusion(ranks: Mapping[str, Mapping[str, int]], pairs: Mapping[str, Contrast]) -> list[str]:
    """The order on each axis, and whether any pair is shown both ways round."""
    by_order: dict[str, list[str]] = {}
    for axis, found in ranks.items():
        by_order.setdefault(order(found), []).append(axis.replace("_", " "))
    texts = [f"At equal {listed(axes)}: {words}." for words, axes in by_order.items()]
    ways: dict[str, dict[bool, list[str]]] = {}
    for label, contrast in pairs.items():
        axis, _, pair = label.partition(": ")
        if contrast.shown:
            ways.setdefault(pair, {}).setdefault(contrast.up, []).append(axis.replace("_", " "))
    turned = {pair: found for pair, found in ways.items() if len(found) == 2}
    for pair, way in turned.items():
        a, b = pair.split(" - ")
        texts.append(
            f"The ranking CHANGES: {a} is ahead of {b} at equal {listed(way[True])}, behind it at equal "
            f"{listed(way[False])}."
        )
    if turned:
        return texts
    if len(by_order) > 1:
        return [*texts, "What is shown differs between axes, but no pair of methods is shown both ways round."]
    return [*texts, "The ranking does not depend on the axis here."] if texts else ["Nothing can be compared."]


def _rank_table(trainings: Trainings, ranks: Mapping[str, Mapping[str, int]], reward: str) -> t.Table:
    bill = ("images", "reward_calls", "denoiser_calls", "optimiser_steps")
    columns = (
        t.Column("method", "method", numeric=False),
        t.Column("rank", "rank"),
        t.Column("gain", "mean gain"),
        *(t.Column(axis, axis.replace("_", " ")) for axis in bill),
        t.Column("seconds", "seconds"),
        t.Column("seeds", "seeds"),
    )
    groups = []
    for axis in dict.fromkeys(arm.variant for arm in trainings.arms):
        rows = [_rank_row(trainings, Arm(m, reward, axis), ranks.get(axis, {}), bill) for m in METHODS]
        groups.append(t.Group(f"equal {axis.replace('_', ' ')}", tuple(rows)))
    notes = (
        "Gain over the base model, mean over step counts, ± half its 95 % crossed interval; bill: mean over runs. "
        "Seconds are those of this machine, shared with whatever else ran on it.",
    )
    return t.Table(
        "axes",
        "The same comparison at each equal cost",
        columns,
        tuple(groups),
        notes,
        tuple(tr.failure_notes(trainings)),
    )


def _rank_row(trainings: Trainings, arm: Arm, ranks: Mapping[str, int], bill: tuple[str, ...]) -> t.Row:
    runs = trainings.arms[arm]
    used = [tr.mean_of(float(run.bill[axis]) for run in runs if run.bill) for axis in bill]
    gain = t.estimate(tr.crossed(trainings.gain(arm)), 3, signed=True, strong=ranks.get(arm.method) == 1)
    seconds = t.number(tr.mean_of(run.seconds for run in runs if run.bill), 1)
    return t.Row(
        (
            t.word(arm.method),
            t.count(ranks.get(arm.method)),
            gain,
            *(t.count(x) for x in used),
            seconds,
            tr.seeds_cell(runs),
        )
    )


def _pair_table(axes: list[str], pairs: Mapping[str, Contrast]) -> t.Table:
    columns = [t.Column("pair", "pair", numeric=False)]
    for axis in axes:
        columns += [t.Column(axis, f"equal {axis.replace('_', ' ')}"), t.Column(f"{axis}_p", "Holm p")]
    rows = []
    for a, b in combinations(METHODS, 2):
        cells: list[Any] = []
        for axis in axes:
            cells += contrast_cells(pairs.get(f"{axis}: {a} - {b}"))
        rows.append(t.Row((t.word(f"{a} - {b}"), *cells)))
    notes = ("Paired difference of the mean gains. Bold: shown to differ from 0 in the family of all pairs and axes.",)
    return t.Table("pairs", "Pairs of methods", tuple(columns), (t.Group("", tuple(rows)),), notes)


def _plot(trainings: Trainings, arms: tr.Arms) -> Plot:
    charts = [tr.gain_chart(trainings, arms, "Gain at equal images")]
    reward = next(iter(arms.values())).reward
    for axis in dict.fromkeys(arm.variant for arm in trainings.arms):
        if axis in COUNTED:
            mine = {m: Arm(m, reward, axis) for m in METHODS}
            words = f"Trained to equal {axis.replace('_', ' ')}"
            charts.append(tr.curve_chart(trainings, mine, "reward_mean", axis, words, "mean training reward"))
    caption = (
        "Left: gain over the base model, 95 % crossed intervals. Others: mean reward of the sampled training images "
        "against the cost that was held equal, mean over seeds, band from lowest to highest."
    )
    return Plot("axes", caption, tuple(charts), columns=3, size=(3.8, 3.0))
