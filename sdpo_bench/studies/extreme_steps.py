"""What does each method learn, from one denoising step to two hundred, and where does it do harm?

A mean over step counts hides failures. Here every method is trained at each number of steps with the same number of
images (fewer above 50 steps), judged at all of them, and every kind of harm that its runs show is listed. A gain that
is not significant is reported as such, not as a failure.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

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
IMAGES, LONG_IMAGES = 2048, 512
"""Images of a training up to T = :data:`LONG_FROM`, and above, where an image costs 100 to 200 denoiser calls."""
LONG_FROM = 50
FLAT = 0.5
"""Contrast below this share of the base model's counts as flat pictures."""
DOMINANT = 0.5
"""A step with a larger share of the squared gradient drowns the others (of three or more)."""


class ExtremeSteps(Study):
    """Training and evaluation at T = 1, 2, 4, 10, 20, 50, 100 and 200: where each method gains or does harm."""

    name = "extreme-steps"
    question = (
        "At which numbers of denoising steps does each method gain, at which does it do harm, in "
        "training or in evaluation, and how?"
    )

    def design(self, request: StudyRequest) -> Design:
        refused = refusals(request)
        suites = _suites(request, refused)
        cannot = tr.refusal_words(refused)
        return Design(
            (
                *tr.suite_facts(request, list(suites)),
                ("trained at T", ", ".join(map(str, _steps(request)))),
                (
                    "budget",
                    f"{_images(request, 1):,} images a training up to T = {LONG_FROM}, "
                    f"{_images(request, LONG_FROM + 1):,} above; T on either side of it are not compared",
                ),
                *([("cannot train", cannot)] if cannot else []),
            ),
            (
                "Endpoint: gain over the base model at the trained T. A family for each method and number of images: "
                "its T against no gain; crossed intervals, Holm.",
                "Carrying over (T trained x T judged) is an exploratory grid for each method: Benjamini-Hochberg.",
                "Failures by rule: a run that ended or diverged; a significant loss at its own T; a "
                f"significant loss at another T; pictures with less than {FLAT:g} times the base model's "
                f"contrast; a step with more than {DOMINANT:g} of the squared gradient, of three or more steps "
                "(a warning). A gain that is not significant is no failure.",
            ),
            suites,
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward, steps = bench.trainings, tr.one_reward(bench.request), _steps(bench.request)
        refused = refusals(bench.request)
        arms = {(m, k): Arm(m, reward, f"T{k}") for m, k in product(METHODS, steps) if (m, k) not in refused}
        own = own_gains(trainings, arms)
        grid = {m: exploratory(_grid(trainings, arms, m, steps)) for m in METHODS}
        failed = {}
        for (m, k), arm in arms.items():
            failed[m, k] = failures(trainings, arm, k, own.get(_name(m, k)), grid[m])
        return Findings(
            (*conclusion(failed, own), *_refused_sentences(refused), *seed_caution(own.values())),
            (
                _own_table(trainings, arms, own, failed, refused),
                *(_grid_table(arms, m, grid[m], steps) for m in METHODS),
            ),
            (_plot(trainings, arms, steps),),
        )


def _name(method: str, steps: int) -> str:
    return f"{method} at T = {steps}"


def _steps(request: StudyRequest) -> tuple[int, ...]:
    """Numbers of steps to train and judge at: those asked for with ``--set eval.steps``, or all."""
    given = request.overrides.get("eval.steps")
    return STEPS if given is None else tuple(tr.step_counts(given))


def _images(request: StudyRequest, steps: int) -> int:
    """Images of a training at T = ``steps``."""
    images = LONG_IMAGES if steps > LONG_FROM else IMAGES
    return request.amount(images, least=tr.EPOCH, multiple=tr.EPOCH)


def refusals(request: StudyRequest) -> dict[tuple[str, int], str]:
    """Why a method cannot train, by (method, T); the engine says so.

    Raises:
        UsageError: the user set T, or no method can train at any.
    """
    if "schedule.steps" in request.overrides:
        raise UsageError("--set schedule.steps: this study varies it. Use --set eval.steps=1,4,50 for fewer.")
    cells, reward = list(product(METHODS, _steps(request))), tr.one_reward(request)
    found = {(m, k): tr.why_not(request, m, reward, {"schedule.steps": k}) for m, k in cells}
    refused = {cell: reason for cell, reason in found.items() if reason}
    if len(refused) == len(cells):
        raise UsageError(f"{tr.refusal_words(refused)}. Use --set eval.steps=1,4 or more step counts.")
    return refused


def _suites(request: StudyRequest, refused: Mapping[tuple[str, int], str]) -> tuple[Suite, ...]:
    """One suite for each number of images, and one more for T at which fewer methods can train."""
    judged = {"steps": list(_steps(request)), "images_per_prompt": 1, "train": "few-animals"}
    reward = tr.one_reward(request)
    suites = []
    for name, steps in _by_length(_steps(request)).items():
        budget = {"images": _images(request, steps[0])}
        for methods, counts in _by_methods(steps, refused).items():
            own = name if methods == METHODS else f"{name}.{'-'.join(methods)}"
            variants = {f"T{k}": {"schedule": {"steps": k}} for k in counts}
            suites.append(tr.training_suite(own, request, methods, [reward], budget, judged, variants=variants))
    return tuple(suites)


def _by_methods(steps: Iterable[int], refused: Mapping[tuple[str, int], str]) -> dict[tuple[str, ...], list[int]]:
    """Numbers of steps by the methods that can train there, most methods first; without those where none can."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for k in steps:
        methods = tuple(method for method in METHODS if (method, k) not in refused)
        if methods:
            groups.setdefault(methods, []).append(k)
    return dict(sorted(groups.items(), key=lambda group: -len(group[0])))


def _by_length(steps: Iterable[int]) -> dict[str, list[int]]:
    """Numbers of steps that have the same number of images, by the name of their suite; without empty ones."""
    groups: dict[str, list[int]] = {}
    for k in steps:
        groups.setdefault("extreme-steps.long" if k > LONG_FROM else "extreme-steps", []).append(k)
    return groups


def own_gains(trainings: Trainings, arms: Mapping[tuple[str, int], Arm]) -> dict[str, Contrast]:
    """Gain at the trained T of every method and T: a family for each method and number of images."""
    own: dict[str, Contrast] = {}
    for method in METHODS:
        for steps in _by_length(k for m, k in arms if m == method).values():
            own |= family({_name(method, k): trainings.gain(arms[method, k], k) for k in steps})
    return own


def _grid(
    trainings: Trainings, arms: Mapping[tuple[str, int], Arm], method: str, steps: Iterable[int]
) -> dict[str, Matrix | None]:
    own = {k: arm for (m, k), arm in arms.items() if m == method}
    return {f"{k} > {judged}": trainings.gain(own[k], judged) for k, judged in product(own, steps)}


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
    """For each method: where it gains, where nothing is significant, and what harm it does."""
    texts = []
    for method in METHODS:
        by_steps = {k: ways for (m, k), ways in failed.items() if m == method}
        contrasts = {k: own[_name(method, k)] for k in by_steps if _name(method, k) in own}
        up = [k for k, contrast in contrasts.items() if contrast.up]
        if up:
            texts.append(f"{method} gains significantly, trained and judged at T = {listed(up)}.")
        unclear = [f"{k}{c.interval_words}" for k, c in contrasts.items() if not c.shown]
        if unclear:
            texts.append(f"{method}, trained and judged at T = {listed(unclear)}: no significant gain or loss.")
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


def _refused_sentences(refused: Mapping[tuple[str, int], str]) -> list[str]:
    words = tr.refusal_words(refused)
    return [f"{words}, so nothing trains there."] if words else []


# -- tables and plot -----------------------------------------------------------------------------------------


def _own_table(
    trainings: Trainings,
    arms: Mapping[tuple[str, int], Arm],
    own: Mapping[str, Contrast],
    failed: Mapping[tuple[str, int], list[Failure]],
    refused: Mapping[tuple[str, int], str],
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
        rows = [_refused_row(k, len(columns)) for m, k in refused if m == method]
        for (m, k), arm in arms.items():
            if m == method:
                rows.append(_own_row(trainings, arm, k, own.get(_name(m, k)), failed[m, k]))
        groups.append(t.Group(method, tuple(rows)))
    notes = (
        "Gain over the base model when judged at the trained T; bold: significantly different from 0. Compare "
        "rows only where the number of images is the same.",
    )
    return t.Table("own", "Trained and judged at T", columns, tuple(groups), notes, tr.failure_notes(trainings))


def _refused_row(steps: int, columns: int) -> t.Row:
    return t.Row((t.count(steps), t.word("cannot train"), *[t.Cell(t.DASH)] * (columns - 2)))


def _own_row(trainings: Trainings, arm: Arm, steps: int, own: Contrast | None, failed: list[Failure]) -> t.Row:
    runs = trainings.arms[arm]
    counts = [t.count(amount) for amount in tr.mean_bill(runs, ("images", "optimiser_steps"))]
    tuned, base = trainings.pictures(arm, "contrast") if own else (math.nan, math.nan)
    contrast, share = t.number(tuned / base, 2), t.number(_largest_share(runs)[0] or math.nan, 2)
    words = t.word("; ".join(f.words for f in failed if not f.warning))
    return t.Row((t.count(steps), *contrast_cells(own), *counts, contrast, share, tr.seeds_cell(runs), words))


def _grid_table(
    arms: Mapping[tuple[str, int], Arm], method: str, grid: Mapping[str, Contrast], steps: Iterable[int]
) -> t.Table:
    counts = list(steps)
    columns = (t.Column("trained", "trained at T"), *(t.Column(f"k{k}", f"judged at {k}") for k in counts))
    rows = []
    for k in [k for m, k in arms if m == method]:
        cells = [contrast_cells(grid.get(f"{k} > {judged}"))[0] for judged in counts]
        rows.append(t.Row((t.count(k), *cells)))
    notes = ("Gain over the base model; bold: significantly different from 0 after Benjamini-Hochberg over the grid.",)
    title = f"{method}: trained at T, judged at every step count"
    return t.plain_table(f"grid-{method}", title, columns, rows, notes)


def _plot(trainings: Trainings, arms: Mapping[tuple[str, int], Arm], steps: tuple[int, ...]) -> Plot:
    own = []
    for method in METHODS:
        trained = [k for k in steps if (method, k) in arms]
        own.append(banded(method, trained, [tr.crossed(trainings.gain(arms[method, k], k)) for k in trained]))
    charts = [Chart("Trained and judged at T", "denoising steps T", "gain", own, steps=True, zero=True)]
    for method in METHODS:
        by_steps = {f"trained at T = {k}": arms[method, k] for k in steps if (method, k) in arms}
        charts.append(tr.gain_chart(trainings, by_steps, f"{method}, judged at every step count"))
    caption = "Gain over the base model; bands: 95 % crossed intervals over seeds and prompts."
    return Plot("steps", caption, tuple(charts), columns=3, size=(3.8, 3.0))
