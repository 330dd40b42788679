"""What studies of trainings share: how their suites are made, described, tabled and drawn."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.comparability import shown
from sdpo_bench.results.study_findings import Plot, banded
from sdpo_bench.settings import DEFAULT_MODEL
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart, Series, band
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trained, Trainings, difference, known, study_suite
from sdpo_bench.sweep.suite import Suite

EPOCH = 64
"""Images of an epoch of the embedded preset; budgets are multiples of it."""
JUDGED = {"steps": [1, 2, 4, 8, 16], "images_per_prompt": 2}

Arms = Mapping[str, Arm]
"""By the name that tables and sentences use."""


def one_reward(request: StudyRequest, default: str = "emoji-align") -> str:
    """The only reward of a study that compares none, by the plugin's own name.

    Raises:
        UsageError: several were asked for, or an unknown one.
    """
    if len(request.rewards) > 1:
        raise UsageError(f"this study trains on one reward, got {', '.join(request.rewards)}.")
    return str(find("rewards", request.rewards[0] if request.rewards else default).name)


def training_suite(
    name: str,
    request: StudyRequest,
    methods: Sequence[str],
    rewards: Sequence[str],
    budget: Mapping[str, Any],
    judged: Mapping[str, Any] = JUDGED,
    **tables: Any,
) -> Suite:
    """A suite of this request's model and seeds; tables as in a suite file."""
    cells = {
        "method": list(methods),
        "reward": list(rewards),
        "model": request.model or DEFAULT_MODEL,
        "seed": list(request.chosen_seeds),
    }
    return study_suite(
        name,
        request.overrides,
        request.preset,
        cells,
        budget=dict(budget),
        eval=dict(judged),
        description=f"trainings of the study {name.partition('.')[0]}",
        **tables,
    )


def suite_facts(request: StudyRequest, suites: Sequence[Suite]) -> tuple[tuple[str, str], ...]:
    """Model, rewards, seeds, prompts, steps and evaluation of what will be trained.

    Raises:
        UsageError: settings that do not resolve.
    """
    first = suites[0]
    overrides = first.overrides(first.methods[0], next(iter(first.variants)))
    config = resolve(Request(first.methods[0], first.rewards[0], first.models[0], first.preset, 0, overrides)).config
    rewards = dict.fromkeys(reward for suite in suites for reward in suite.rewards)
    methods = dict.fromkeys(method for suite in suites for method in suite.methods)
    cells = sum(len(s.methods) * len(s.rewards) * len(s.models) * len(s.variants) * len(s.seeds) for s in suites)
    varied = any("schedule.steps" in settings for suite in suites for settings in suite.variants.values())
    return (
        ("model", config.model.name),
        ("methods", ", ".join(methods)),
        ("rewards", ", ".join(rewards)),
        ("seeds", f"{', '.join(map(str, request.chosen_seeds))} (training)"),
        ("prompts", f"{len(load_prompts(config.eval.train))} ({config.eval.train}), in training and evaluation"),
        ("training steps T", "varied" if varied else str(config.schedule.steps)),
        ("step weight", config.update.step_weight),
        ("evaluation", f"{shown(config.eval.steps)} steps, {config.eval.images_per_prompt} images a prompt"),
        ("trainings", str(cells)),
    )


# -- tables and plots ----------------------------------------------------------------------------------------


def seeds_cell(runs: Sequence[Trained]) -> t.Cell:
    """Usable runs of all that were started."""
    return t.seeds(sum(not run.why_not for run in runs), len(runs))


def gain_table(
    trainings: Trainings,
    arms: Arms,
    against: Mapping[str, Contrast],
    reference: str,
    *,
    name: str,
    title: str,
    digits: int = 3,
) -> t.Table:
    """One row an arm: gain over the base model at each step count and on the mean, and its contrast with the
    reference arm."""
    all_steps: set[int] = set()
    for arm in arms.values():
        if grids := trainings.cells(arm):
            all_steps |= set(grids[0].steps)
    steps = sorted(all_steps)
    columns = (
        t.Column("arm", "arm", numeric=False),
        *(t.Column(f"k{k}", f"{k} step{'s' * (k != 1)}", help="gain over the base model") for k in steps),
        t.Column("mean", "mean"),
        t.Column("against", f"minus {reference}", help="paired difference of the mean gain"),
        t.Column("p", "Holm p"),
        t.Column("seeds", "seeds"),
    )
    rows = []
    for label, arm in arms.items():
        gains = [*(crossed(trainings.gain(arm, k)) for k in steps), crossed(trainings.gain(arm))]
        cells = [t.estimate(gain, digits, signed=True) for gain in gains]
        runs = seeds_cell(trainings.arms[arm])
        rows.append(
            t.Row((t.word(label), *cells, *contrast_cells(against.get(label), digits), runs), label == reference)
        )
    notes = (
        "Gain over the base model in reward units on the same prompts and noise, ± half its 95 % crossed interval "
        "over seeds and prompts. Bold: shown to differ from the reference (grey row) after Holm's adjustment.",
    )
    return t.Table(name, title, columns, (t.Group("", tuple(rows)),), notes, tuple(failure_notes(trainings)))


def failure_notes(trainings: Trainings) -> list[str]:
    """One caution for each training without usable scores."""
    return [f"{run.cell.label}: {run.why_not}" for run in trainings.failures()]


def crossed(matrix: Any) -> Estimate | None:
    return None if matrix is None else crossed_interval(matrix)


def against_reference(trainings: Trainings, arms: Arms, reference: str, **options: Any) -> dict[str, Any]:
    """Each arm minus the reference as matrices by label, for a family of contrasts."""
    reference_gain = trainings.gain(arms[reference], **options)
    differences = {
        n: difference(trainings.gain(arm, **options), reference_gain, n) for n, arm in arms.items() if n != reference
    }
    return known(differences)


def gain_chart(trainings: Trainings, arms: Arms, title: str = "Gain over the base model") -> Chart:
    """Gain against the number of denoising steps."""
    series = []
    for label, arm in arms.items():
        if grids := trainings.cells(arm):
            steps = grids[0].steps
            series.append(banded(label, steps, [crossed(trainings.gain(arm, k)) for k in steps]))
    return Chart(title, "denoising steps", "reward gain", series, steps=True, zero=True)


def curve_chart(trainings: Trainings, arms: Arms, key: str, axis: str, title: str, y_label: str) -> Chart:
    """A number of the training log against a number of the bill: mean over seeds, band from lowest to highest."""
    series = []
    for label, arm in arms.items():
        curves = [curve(run, key, axis) for run in trainings.arms[arm]]
        series += curve_series(label, [c for c in curves if len(c[0])])
    return Chart(title, axis.replace("_", " "), y_label, series)


def curve(run: Trained, key: str, axis: str) -> tuple[list[float], list[float]]:
    """Bill and number of each epoch of a log; ``key`` may lead into a table (``pictures.contrast``)."""
    points = [(row["bill"][axis], _at(row, key)) for row in run.log]
    numbers = [(x, y) for x, y in points if y is not None]
    return [float(x) for x, _ in numbers], [float(y) for _, y in numbers]


def _at(row: Any, key: str) -> float | None:
    for part in key.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row if isinstance(row, int | float) else None


def curve_series(label: str, curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Series]:
    """One series with its band; none without a common range."""
    if not curves:
        return []
    x, y = band(curves)
    if not len(x):
        return []
    low, high = (y.min(0).tolist(), y.max(0).tolist()) if len(curves) > 1 else ([], [])
    return [Series(label, x.tolist(), y.mean(0).tolist(), low, high)]


def training_plot(trainings: Trainings, arms: Arms, name: str = "training") -> Plot:
    """Gain by step count, and the training reward against images and optimiser steps."""
    charts = (
        gain_chart(trainings, arms),
        curve_chart(trainings, arms, "reward_mean", "images", "Training reward", "mean reward"),
        curve_chart(trainings, arms, "reward_mean", "optimiser_steps", "Training reward", "mean reward"),
    )
    caption = (
        "Left: gain over the base model with 95 % crossed intervals over seeds and prompts. Others: mean reward of the "
        "sampled training images, mean over seeds, band from lowest to highest."
    )
    return Plot(name, caption, charts, columns=3, size=(3.8, 3.0))


def mean_of(values: Iterable[float]) -> float:
    """Mean of the finite ones; NaN without any."""
    numbers = [value for value in values if np.isfinite(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
