"""What studies of trainings share: how their suites are made, described, tabled and drawn."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpo_bench.config.presets import find_preset
from sdpo_bench.config.resolve import Request, Resolved, build_method, resolve
from sdpo_bench.errors import CannotTrain, UsageError
from sdpo_bench.plugins.registry import find
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.results.comparability import shown
from sdpo_bench.results.study_findings import Plot, banded
from sdpo_bench.settings import DEFAULT_MODEL, RunConfig
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart, Series, band
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, listed
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import FEW_STEPS, Endpoint, Matrix
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trained, Trainings, difference, mean_of, study_suite
from sdpo_bench.sweep.suite import Suite

EPOCH = 64
"""Images of an epoch of the embedded preset; budgets are multiples of it."""
UPDATES = 4
"""Optimiser steps an epoch of the methods with accumulated updates, under the embedded presets."""
JUDGED = {"steps": [1, 2, 4, 8, 16], "images_per_prompt": 2}

Arms = Mapping[str, Arm]
"""By the name that tables and sentences use."""


def one_reward(request: StudyRequest) -> str:
    """The only reward of a study that compares none, by the plugin's own name.

    Raises:
        UsageError: several were asked for, or an unknown one.
    """
    if len(request.rewards) > 1:
        raise UsageError(f"this study trains on one reward, got {', '.join(request.rewards)}.")
    return str(find("rewards", request.rewards[0] if request.rewards else "emoji-align").name)


def resolved_training(
    request: StudyRequest, method: str, reward: str, overrides: Mapping[str, Any], model: str = ""
) -> Resolved:
    """The configuration of one training of this request, with seed 0.

    Args:
        model: of a study of several.

    Raises:
        UsageError: settings that do not resolve.
    """
    model = model or request.model or DEFAULT_MODEL
    return resolve(Request(method, reward, model, request.preset, 0, dict(overrides)))


def check_judged(request: StudyRequest, needed: Iterable[int]) -> None:
    """Refuse an evaluation without the step counts that a study's endpoints are at.

    Raises:
        UsageError: ``--set eval.steps`` lacks one.
    """
    given = request.overrides.get("eval.steps")
    needed = sorted(set(needed))
    if given is not None and not set(needed) <= set(step_counts(given)):
        words = ",".join(map(str, needed))
        raise UsageError(
            f"--set eval.steps={given}: this study judges at {words} steps. Keep them: eval.steps={words}."
        )


def unsearched(request: StudyRequest, methods: Iterable[str], model: str) -> dict[str, dict[str, Any]]:
    """Tables of a suite file (``for``) of the methods that the model's preset has no section for.

    They get as many optimiser steps an epoch as the methods that it has one for, unless the user sets the minibatch.
    """
    tables: dict[str, dict[str, Any]] = {}
    for method in methods:
        found = resolved_training(request, method, one_reward(request), request.overrides, model)
        preset = find_preset(found.preset) if found.preset else None
        if preset is None or preset.settings_for(found.method.variant_of, method) != preset.common:
            continue
        tables[method] = {}
        if "update.minibatch" not in request.overrides:
            groups = found.config.sample.images_per_epoch // build_method(found.config, found.method).members
            tables[method] = {"update": {"minibatch": max(1, groups // UPDATES)}}
    return tables


def why_not(
    request: StudyRequest, method: str, reward: str, overrides: Mapping[str, Any], model: str = ""
) -> str | None:
    """The engine's reason why a training of this request cannot learn; None if it can.

    Raises:
        UsageError: settings that do not resolve for another reason.
    """
    try:
        resolved_training(request, method, reward, {**request.overrides, **overrides}, model)
    except CannotTrain as error:
        return error.reason
    return None


def refusal_words(refused: Mapping[tuple[str, int], str]) -> str:
    """What cannot train by (method, T), e.g. ``sdpo and grpo at T = 1: one denoising step is ...``."""
    grouped: dict[tuple[int, str], list[str]] = {}
    for (method, steps), reason in refused.items():
        grouped.setdefault((steps, reason), []).append(method)
    return "; ".join(f"{listed(methods)} at T = {steps}: {reason}" for (steps, reason), methods in grouped.items())


def step_counts(value: Any) -> list[int]:
    """Numbers of steps from a list or from ``"1,4"``, ascending."""
    words = value if isinstance(value, list | tuple) else str(value).split(",")
    return sorted(int(word) for word in words)


def training_suite(
    name: str,
    request: StudyRequest,
    methods: Sequence[str],
    rewards: Sequence[str],
    budget: Mapping[str, Any],
    judged: Mapping[str, Any] = JUDGED,
    model: str = "",
    **tables: Any,
) -> Suite:
    """A suite of this request's model and seeds; tables as in a suite file.

    Args:
        model: of a study of several.
    """
    cells = {
        "method": list(methods),
        "reward": list(rewards),
        "model": model or request.model or DEFAULT_MODEL,
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
    """Models, rewards, seeds, prompts, steps and evaluation of what will be trained.

    Raises:
        UsageError: settings that do not resolve.
    """
    by_model: dict[str, RunConfig] = {}
    for one in suites:
        if one.models[0] not in by_model:
            overrides = one.overrides(one.methods[0], next(iter(one.variants)))
            request_of = Request(one.methods[0], one.rewards[0], one.models[0], one.preset, 0, overrides)
            by_model[one.models[0]] = resolve(request_of).config
    config = next(iter(by_model.values()))
    rewards = dict.fromkeys(reward for suite in suites for reward in suite.rewards)
    methods = dict.fromkeys(method for suite in suites for method in suite.methods)
    cells = sum(len(s.methods) * len(s.rewards) * len(s.models) * len(s.variants) * len(s.seeds) for s in suites)
    varied = any("schedule.steps" in settings for suite in suites for settings in suite.variants.values())
    return (
        ("model" if len(by_model) == 1 else "models", ", ".join(by_model)),
        ("methods", ", ".join(methods)),
        ("rewards", ", ".join(rewards)),
        ("seeds", f"{', '.join(map(str, request.chosen_seeds))} (training)"),
        ("prompts", f"{len(load_prompts(config.eval.train))} ({config.eval.train}), in training and evaluation"),
        ("training steps T", "varied" if varied else _by_model({m: c.schedule.steps for m, c in by_model.items()})),
        ("step weight", _by_model({m: c.update.step_weight for m, c in by_model.items()})),
        ("evaluation", f"{shown(config.eval.steps)} steps, {config.eval.images_per_prompt} images a prompt"),
        ("trainings", str(cells)),
    )


def _by_model(values: Mapping[str, Any]) -> str:
    """A value that all models share, or each model's own."""
    if len(set(values.values())) == 1:
        return str(next(iter(values.values())))
    return ", ".join(f"{value} ({model})" for model, value in values.items())


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
    title: str,
) -> t.Table:
    """One row an arm: gain over the base model at each step count and on the mean, and its contrast with the
    reference arm."""
    all_steps: set[int] = set()
    for arm in arms.values():
        if grids := trainings.grids(arm):
            all_steps |= set(grids[0].steps)
    steps = sorted(all_steps)
    few = set(FEW_STEPS) < all_steps
    columns = (
        t.Column("arm", "arm", numeric=False),
        *(t.Column(f"k{k}", f"{k} step{'s' * (k != 1)}", help="gain over the base model") for k in steps),
        *([t.Column("few", "few-step mean", help="1, 2 and 4 steps")] if few else []),
        t.Column("mean", "mean"),
        t.Column("against", f"minus {reference}", help="paired difference of the mean gain"),
        t.Column("p", "Holm p"),
        t.Column("seeds", "seeds"),
    )
    rows = []
    for label, arm in arms.items():
        means: list[Endpoint] = ["few", "mean"] if few else ["mean"]
        endpoints: list[Endpoint] = [*steps, *means]
        gains = [crossed(trainings.gain(arm, k)) for k in endpoints]
        cells = [t.estimate(gain, 3, signed=True) for gain in gains]
        contrast, seeds = contrast_cells(against.get(label)), seeds_cell(trainings.arms[arm])
        rows.append(t.Row((t.word(label), *cells, *contrast, seeds), label == reference))
    notes = (
        "Gain over the base model in reward units on the same prompts and noise, ± half its 95 % crossed interval "
        "over seeds and prompts. Bold: significantly different from the reference (grey row) after Holm's adjustment.",
        f"mean: over {', '.join(map(str, steps))} steps; not comparable with means over other step counts"
        f"{', as in suites; the few-step mean (1, 2 and 4 steps) is' if few else ''}.",
    )
    return t.plain_table("gains", title, columns, rows, notes, failure_notes(trainings))


def failure_notes(trainings: Trainings) -> tuple[str, ...]:
    """One caution for each training without usable scores."""
    return tuple(f"{run.job.label}: {run.why_not}" for run in trainings.failures())


def crossed(matrix: Matrix | None) -> Estimate | None:
    return None if matrix is None else crossed_interval(matrix)


def against_reference(trainings: Trainings, arms: Arms, reference: str) -> dict[str, Matrix | None]:
    """Mean gain of each arm minus the reference's by label, for a family of contrasts."""
    reference_gain = trainings.gain(arms[reference])
    others = {label: arm for label, arm in arms.items() if label != reference}
    return {label: difference(trainings.gain(arm), reference_gain, label) for label, arm in others.items()}


def gain_chart(trainings: Trainings, arms: Arms, title: str = "Gain over the base model") -> Chart:
    """Gain against the number of denoising steps."""
    series = []
    for label, arm in arms.items():
        if grids := trainings.grids(arm):
            steps = grids[0].steps
            series.append(banded(label, steps, [crossed(trainings.gain(arm, k)) for k in steps]))
    return Chart(title, "denoising steps", "reward gain", series, steps=True, zero=True)


def curve_chart(trainings: Trainings, arms: Arms, key: str, axis: str, title: str, y_label: str) -> Chart:
    """A number of the training log against a number of the bill: mean over seeds, band from lowest to highest."""
    series = []
    for label, arm in arms.items():
        curves = [curve for run in trainings.arms[arm] if (curve := log_curve(run, key, axis))[0]]
        if not curves:
            continue
        x, y = band(curves)
        if len(x):
            low, high = (y.min(0).tolist(), y.max(0).tolist()) if len(curves) > 1 else ([], [])
            series.append(Series(label, x.tolist(), y.mean(0).tolist(), low, high))
    return Chart(title, axis.replace("_", " "), y_label, series)


def log_curve(run: Trained, key: str, axis: str) -> tuple[list[float], list[float]]:
    """Bill and number of each epoch of a log; ``key`` may lead into a table (``pictures.contrast``)."""
    x, y = [], []
    for row in run.log:
        value: Any = row
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            x.append(float(row["bill"][axis]))
            y.append(float(value))
    return x, y


def training_plot(trainings: Trainings, arms: Arms) -> Plot:
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
    return Plot("training", caption, charts, columns=3, size=(3.8, 3.0))


def mean_bill(runs: Iterable[Trained], axes: Iterable[str]) -> list[float]:
    """What the runs used on each axis of the bill, mean over those that trained."""
    trained = [run for run in runs if run.bill]
    return [mean_of(float(run.bill[axis]) for run in trained) for axis in axes]


def mean_seconds(runs: Iterable[Trained]) -> float:
    """Seconds of training, mean over the runs that trained."""
    return mean_of(run.seconds for run in runs if run.bill)
