"""Where does each method fail, from one denoising step to two hundred, and how?

A mean over step counts hides failures. Here every method is trained at each number of steps with the same number of
denoiser calls, judged at all of them, and every way of failing that its runs show is listed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sdpo_bench.errors import UsageError
from sdpo_bench.results.study_findings import Findings, Plot, banded
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, exploratory, family, listed, seed_caution
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trained, Trainings
from sdpo_bench.sweep.suite import Suite

METHODS = ("sdpo", "ddpo")
STEPS = (1, 2, 4, 10, 20, 50, 100, 200)
CALLS = 7000
LEAST_CALLS = 2000
"""One pair of 200-step trajectories costs about 1,200."""
FLAT = 0.5
"""Contrast below this share of the base model's counts as flat pictures."""
DOMINANT = 0.5
"""A step with a larger share of the squared gradient drowns the others (of three or more)."""


class ExtremeSteps(Study):
    """Training and evaluation at T = 1, 2, 4, 10, 20, 50, 100 and 200: where each method fails, and how."""

    name = "extreme-steps"
    question = "At which numbers of denoising steps does each method fail, in training or in evaluation, and how?"

    def design(self, request: StudyRequest) -> Design:
        suite = _suite(request)
        return Design(
            (
                *tr.suite_facts(request, [suite]),
                ("trained at T", ", ".join(map(str, _steps(request)))),
                (
                    "budget",
                    f"{suite.common['budget.denoiser_calls']:,} denoiser calls for every training, so that long "
                    "trajectories are few (the table has the number of images)",
                ),
            ),
            (
                "Endpoint: gain over the base model at the trained T. Family: every method and T against no gain; "
                "crossed intervals, Holm.",
                "Carrying over (T trained x T judged) is an exploratory grid for each method: Benjamini-Hochberg.",
                f"Failures by rule: a run that ended or diverged; no gain shown at its own T; a shown loss at its own "
                f"T; a shown loss at another T; pictures with less than {FLAT:g} times the base model's contrast; a "
                f"step with more than {DOMINANT:g} of the squared gradient, of three or more steps (a warning).",
            ),
            (suite,),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward = bench.trainings, tr.one_reward(bench.request)
        arms = {(m, k): Arm(m, reward, f"T{k}") for m in METHODS for k in _steps(bench.request)}
        own = family({_name(m, k): trainings.gain(arm, k) for (m, k), arm in arms.items()})
        grid = {m: exploratory(_grid(trainings, arms, m)) for m in METHODS}
        failed = {}
        for (m, k), arm in arms.items():
            failed[m, k] = failures(trainings, arm, k, own.get(_name(m, k)), grid[m])
        return Findings(
            (*conclusion(failed, own), *seed_caution(own.values())),
            (_own_table(trainings, arms, own, failed), *(_grid_table(arms, m, grid[m]) for m in METHODS)),
            (_plot(trainings, arms, _steps(bench.request)),),
        )


def _name(method: str, steps: int) -> str:
    return f"{method} at T = {steps}"


def _steps(request: StudyRequest) -> tuple[int, ...]:
    """Numbers of steps to train and judge at: those asked for with ``--set eval.steps``, or all."""
    given = request.overrides.get("eval.steps")
    return STEPS if given is None else tuple(tr.step_counts(given))


def _suite(request: StudyRequest) -> Suite:
    if "schedule.steps" in request.overrides:
        raise UsageError("--set schedule.steps: this study varies it. Use --set eval.steps=1,4,50 for fewer.")
    calls = request.amount(CALLS, least=LEAST_CALLS)
    variants = {f"T{k}": {"schedule": {"steps": k}} for k in _steps(request)}
    judged = {"steps": list(_steps(request)), "images_per_prompt": 1, "train": "few-animals"}
    reward = tr.one_reward(request)
    return tr.training_suite(
        "extreme-steps", request, METHODS, [reward], {"denoiser_calls": calls}, judged, variants=variants
    )


def _grid(trainings: Trainings, arms: Mapping[tuple[str, int], Arm], method: str) -> dict[str, Matrix | None]:
    own = {k: arm for (m, k), arm in arms.items() if m == method}
    return {f"{k} > {judged}": trainings.gain(arm, judged) for k, arm in own.items() for judged in own}


@dataclass(frozen=True)
class Failure:
    """One way in which an arm fails; a warning is not counted as a failure."""

    words: str
    warning: bool = False


def failures(
    trainings: Trainings, arm: Arm, steps: int, own: Contrast | None, grid: Mapping[str, Contrast]
) -> list[Failure]:
    """Every failure that an arm's runs show, by the rules of the design."""
    runs, ways = trainings.arms[arm], []
    broken = [run for run in runs if run.why_not]
    if broken:
        reasons = dict.fromkeys(run.why_not for run in broken)
        ways.append(Failure(f"{len(broken)} of {len(runs)} runs gave no scores ({'; '.join(reasons)})"))
    if own is None:
        return ways
    if own.down:
        ways.append(Failure("worse than the base model at its own T"))
    elif own.adjusted_p is None:
        ways.append(Failure("1 seed, so no test", warning=True))
    elif not own.up:
        ways.append(Failure("no gain shown at its own T"))
    worse_at = [label.split(" > ")[1] for label, c in grid.items() if label.startswith(f"{steps} > ") and c.down]
    others = [k for k in worse_at if int(k) != steps]
    if others:
        ways.append(Failure(f"worse than the base model at {listed(others)} steps"))
    tuned, base = trainings.pictures(arm, "contrast")
    if math.isfinite(tuned) and tuned < FLAT * base:
        ways.append(Failure(f"flat pictures (contrast {tuned:.2g}, base model {base:.2g})"))
    share, step = _largest_share(runs)
    if steps > 2 and share > DOMINANT:
        ways.append(Failure(f"step {step} has {100 * share:.0f} % of the squared gradient", warning=True))
    return ways


def _largest_share(runs: tuple[Trained, ...]) -> tuple[float, int]:
    """The largest share of the squared gradient of one step in the last epoch, mean over runs, and that step."""
    rows = [run.log[-1].get("gradient_share_by_step") for run in runs if run.log]
    shares = [row for row in rows if isinstance(row, list) and row and all(isinstance(x, int | float) for x in row)]
    if not shares or len({len(row) for row in shares}) > 1:
        return 0.0, 0
    mean = np.mean(shares, axis=0)
    return float(mean.max()), int(mean.argmax())


def conclusion(failed: Mapping[tuple[str, int], list[Failure]], own: Mapping[str, Contrast]) -> list[str]:
    """For each method: where it works, and where it fails in which way."""
    texts = []
    for method in METHODS:
        by_steps = {k: ways for (m, k), ways in failed.items() if m == method}
        sound = [k for k, ways in by_steps.items() if all(f.warning for f in ways) and _name(method, k) in own]
        texts.append(
            f"{method} shows no failure when trained at T = {listed(sound)}."
            if sound
            else f"{method} fails in some way at every T."
        )
        kinds: dict[str, list[int]] = {}
        for k, ways in by_steps.items():
            for failure in ways:
                if not failure.warning:
                    kinds.setdefault(failure.words, []).append(k)
        texts += [f"{method}, trained at T = {listed(places)}: {words}." for words, places in kinds.items()]
        dominated = [k for k, ways in by_steps.items() if any(f.warning and "gradient" in f.words for f in ways)]
        if dominated:
            texts.append(f"{method}: one step has most of the gradient at T = {listed(dominated)}.")
    return texts


# -- tables and plot -----------------------------------------------------------------------------------------


def _own_table(
    trainings: Trainings,
    arms: Mapping[tuple[str, int], Arm],
    own: Mapping[str, Contrast],
    failed: Mapping[tuple[str, int], list[Failure]],
) -> t.Table:
    columns = (
        t.Column("steps", "T"),
        t.Column("gain", "gain at T"),
        t.Column("p", "Holm p"),
        t.Column("images", "images"),
        t.Column("updates", "optimiser steps"),
        t.Column("contrast", "contrast / base"),
        t.Column("share", "largest gradient share"),
        t.Column("seeds", "seeds"),
        t.Column("failures", "failures", numeric=False),
    )
    groups = []
    for method in METHODS:
        rows = []
        for (m, k), arm in arms.items():
            if m == method:
                rows.append(_own_row(trainings, arm, k, own.get(_name(m, k)), failed[m, k]))
        groups.append(t.Group(method, tuple(rows)))
    notes = ("Gain over the base model when judged at the trained T; bold: shown to differ from 0.",)
    return t.Table("own", "Trained and judged at T", columns, tuple(groups), notes, tr.failure_notes(trainings))


def _own_row(trainings: Trainings, arm: Arm, steps: int, own: Contrast | None, failed: list[Failure]) -> t.Row:
    runs = trainings.arms[arm]
    counts = [t.count(amount) for amount in tr.mean_bill(runs, ("images", "optimiser_steps"))]
    tuned, base = trainings.pictures(arm, "contrast") if own else (math.nan, math.nan)
    contrast, share = t.number(tuned / base, 2), t.number(_largest_share(runs)[0] or math.nan, 2)
    words = t.word("; ".join(f.words for f in failed if not f.warning))
    return t.Row((t.count(steps), *contrast_cells(own), *counts, contrast, share, tr.seeds_cell(runs), words))


def _grid_table(arms: Mapping[tuple[str, int], Arm], method: str, grid: Mapping[str, Contrast]) -> t.Table:
    counts = [k for m, k in arms if m == method]
    columns = (t.Column("trained", "trained at T"), *(t.Column(f"k{k}", f"judged at {k}") for k in counts))
    rows = []
    for k in counts:
        cells = [contrast_cells(grid.get(f"{k} > {judged}"))[0] for judged in counts]
        rows.append(t.Row((t.count(k), *cells)))
    notes = ("Gain over the base model; bold: shown to differ from 0 after Benjamini-Hochberg over the grid.",)
    title = f"{method}: trained at T, judged at every step count"
    return t.plain_table(f"grid-{method}", title, columns, rows, notes)


def _plot(trainings: Trainings, arms: Mapping[tuple[str, int], Arm], steps: tuple[int, ...]) -> Plot:
    own = [banded(m, steps, [tr.crossed(trainings.gain(arms[m, k], k)) for k in steps]) for m in METHODS]
    charts = [Chart("Trained and judged at T", "denoising steps T", "gain", own, steps=True, zero=True)]
    for method in METHODS:
        by_steps = {f"trained at T = {k}": arms[method, k] for k in steps}
        charts.append(tr.gain_chart(trainings, by_steps, f"{method}, judged at every step count"))
    caption = "Gain over the base model; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("steps", caption, tuple(charts), columns=3, size=(3.8, 3.0))
