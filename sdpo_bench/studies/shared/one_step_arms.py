"""What the study ``one-step`` trains: which method at which T, with which settings, and what it leaves out.

The engine says what cannot train. Two methods that are one algorithm at a T are trained once. All trainings take the
same number of optimiser steps for their images.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from sdpo_bench.config.batch_geometry import SIZES
from sdpo_bench.config.presets import find_preset, flatten
from sdpo_bench.config.resolve import Resolved, build_method
from sdpo_bench.estimates.time_estimate import optimiser_steps, trained_steps
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.trainings import Arm
from sdpo_bench.sweep.suite import Suite

MODELS = ("emoji-turbo", "emoji-flow")
METHODS = ("nft", "awm", "drpo", "refl", "draft", "sdpo", "grpo")
STEPS = (1, 2, 4)
SHORT, LONG = STEPS[0], STEPS[-1]
AMOUNTS = {"images": 2048, "denoiser_calls": 24576}
"""What every training may use, one axis at a time: 32 epochs; about the mean bill of these at the three T."""
JUDGED = {"steps": [SHORT, LONG], "images_per_prompt": 2}
OWN: dict[tuple[str, int], dict[str, Any]] = {("draft", 1): {"method": {"steps": 1}}}
"""By method and T. DRaFT differentiates the only step of T = 1, and as many as its preset says at a larger T."""
MEAN_REWARD: dict[str, dict[str, Any]] = {"refl": {"target": None}, "draft": {}}
"""Methods that minimise the mean of -R, with the own settings under which they do."""


class Cell(NamedTuple):
    """What the runs of one arm share."""

    model: str
    axis: str
    method: str
    steps: int


class Place(NamedTuple):
    """A training at both budgets."""

    model: str
    method: str
    steps: int


class LeftOut(NamedTuple):
    """Places that nothing is trained at."""

    refused: dict[Place, str]
    """The engine's reason why it cannot train."""
    twins: dict[Place, str]
    """The method that is the same algorithm there and is trained instead."""

    def __contains__(self, place: object) -> bool:
        return place in self.refused or place in self.twins


def said(axis: str) -> str:
    return axis.replace("_", " ")


def models(request: StudyRequest) -> tuple[str, ...]:
    return (request.model,) if request.model else MODELS


def amounts(request: StudyRequest) -> dict[str, int]:
    return {axis: request.amount(amount, least=tr.EPOCH, multiple=tr.EPOCH) for axis, amount in AMOUNTS.items()}


def left_out(request: StudyRequest) -> LeftOut:
    """What is not trained, and why.

    Raises:
        UsageError: settings that do not resolve for another reason than what a method can learn from.
    """
    refused, twins, reward = {}, {}, tr.one_reward(request)
    for model, steps in product(models(request), STEPS):
        seen: dict[str, Resolved] = {}
        for method in METHODS:
            place = Place(model, method, steps)
            own = {"schedule.steps": steps, **flatten(OWN.get((method, steps), {}))}
            if reason := tr.why_not(request, method, reward, own, model):
                refused[place] = reason
                continue
            resolved = _resolved(request, place, tables(request, place))
            twin = next((name for name, one in seen.items() if same_training(one, resolved)), None)
            if twin is None:
                seen[method] = resolved
            else:
                twins[place] = twin
    return LeftOut(refused, twins)


def tables(request: StudyRequest, place: Place) -> dict[str, dict[str, Any]]:
    """Settings of a method at one T besides those of its preset, as sections of a suite file."""
    own = OWN.get((place.method, place.steps), {})
    return {**own, **_equal_updates(request, place, own)}


def _equal_updates(request: StudyRequest, place: Place, own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sizes with which a training takes ``UPDATES`` optimiser steps for ``EPOCH`` images; the user's own win.

    Shuffled updates take an optimiser step for each minibatch and random step. Where that does not divide ``UPDATES``,
    an epoch has fewer images, so that both numbers shrink alike.
    """
    if set(SIZES) & set(request.overrides):
        return {}
    resolved = _resolved(request, place, own)
    method = build_method(resolved.config, resolved.method)
    groups = tr.EPOCH // method.members
    whole = replace(resolved.config.update, minibatch=groups, accumulation=1)
    slots = optimiser_steps(replace(resolved.config, update=whole), method, groups)
    if tr.UPDATES % slots == 0:
        return {"update": {"minibatch": groups * slots // tr.UPDATES, "accumulation": 1}}
    images = tr.EPOCH * slots // tr.UPDATES
    return {
        "update": {"minibatch": images // method.members, "accumulation": 1},
        "sample": {"images_per_epoch": images},
    }


def _resolved(request: StudyRequest, place: Place, own: Mapping[str, Any]) -> Resolved:
    overrides = {**request.overrides, "schedule.steps": place.steps, **flatten(own)}
    return tr.resolved_training(request, place.method, tr.one_reward(request), overrides, place.model)


def same_training(a: Resolved, b: Resolved) -> bool:
    """Whether two trainings follow the same gradient: of the mean reward, through the same steps, of one picture.

    One method may score the last step's predicted original and the other the sample. Where that step draws nothing,
    they are one picture. DDIM's last step counts as random even at eta 0, since it lands beside its predicted original.
    """
    if not (_follows_mean_reward(a) and _follows_mean_reward(b)):
        return False
    rest = [{key: value for key, value in one.data.items() if key != "method"} for one in (a, b)]
    if rest[0] != rest[1]:
        return False
    schedule = a.config.schedule
    first, second = (build_method(one.config, one.method) for one in (a, b))
    if first.backprop(schedule.steps) != second.backprop(schedule.steps):
        return False
    return first.final_image == second.final_image or trained_steps(schedule, "official")[-1] == 0


def _follows_mean_reward(resolved: Resolved) -> bool:
    needed, settings = MEAN_REWARD.get(resolved.config.method.name), resolved.config.method.settings
    return needed is not None and all(settings[key] == value for key, value in needed.items())


def cells(request: StudyRequest, out: LeftOut) -> list[Cell]:
    """All that is trained, in the order of the tables."""
    every = [Cell(*one) for one in product(models(request), AMOUNTS, METHODS, STEPS)]
    return [cell for cell in every if Place(cell.model, cell.method, cell.steps) not in out]


def arm(cell: Cell, reward: str) -> Arm:
    return Arm(cell.method, reward, _variant(cell.model, cell.axis, cell.steps))


def _variant(model: str, axis: str, steps: int) -> str:
    return f"{model} T{steps}, equal {said(axis)}"


def suites(request: StudyRequest, out: LeftOut) -> list[Suite]:
    """One suite for each model, T and budget, of the methods that are trained there."""
    found = []
    for model, (axis, amount), steps in product(models(request), amounts(request).items(), STEPS):
        methods = [method for method in METHODS if Place(model, method, steps) not in out]
        found.append(
            tr.training_suite(
                f"one-step.{model}.{axis}.T{steps}",
                request,
                methods,
                [tr.one_reward(request)],
                {axis: amount},
                JUDGED,
                model,
                variants={_variant(model, axis, steps): {"schedule": {"steps": steps}}},
                **{"for": {method: tables(request, Place(model, method, steps)) for method in methods}},
            )
        )
    return found


# -- in words ------------------------------------------------------------------------------------------------


def refused_by_model(out: LeftOut) -> dict[str, str]:
    """What cannot train by model, e.g. ``sdpo and grpo at T = 1: one denoising step is ...``."""
    grouped: dict[str, dict[tuple[str, int], str]] = {}
    for place, reason in out.refused.items():
        grouped.setdefault(place.model, {})[place.method, place.steps] = reason
    return {model: tr.refusal_words(found) for model, found in grouped.items()}


def twins_by_model(out: LeftOut) -> dict[str, str]:
    """What is trained once by model, e.g. ``draft at T = 1 is the same algorithm as refl``."""
    grouped: dict[str, list[str]] = {}
    for (model, method, steps), twin in out.twins.items():
        grouped.setdefault(model, []).append(f"{method} at T = {steps} is the same algorithm as {twin}")
    return {model: listed(texts) for model, texts in grouped.items()}


def facts(request: StudyRequest, out: LeftOut) -> list[tuple[str, str]]:
    """What is left out by model, where settings come from, and how many optimiser steps there are."""
    found = [(f"cannot train ({model})", words) for model, words in refused_by_model(out).items()]
    for model, words in twins_by_model(out).items():
        why = (
            "both differentiate the same steps, and the last one draws nothing, so its predicted original is the sample"
        )
        found.append((f"trained once ({model})", f"{words}: {why}"))
    if set(SIZES) & set(request.overrides):
        found.append(("optimiser steps", "not held equal: set by the user"))
    else:
        found.append(("optimiser steps", f"{tr.UPDATES} for every {tr.EPOCH} images, alike for all methods and T"))
        found += _resized(request, out)
    found += [(f"settings ({model})", _origin(request, model)) for model in models(request)]
    for method, steps in OWN:
        changed = ", ".join(f"{key} = {value}" for key, value in flatten(OWN[method, steps]).items())
        found.append((f"set for {method} at T = {steps}", changed))
    return found


def _resized(request: StudyRequest, out: LeftOut) -> list[tuple[str, str]]:
    """Epochs that are shorter to have as many optimiser steps for their images."""
    found = []
    for place in map(Place._make, product(models(request), METHODS, STEPS)):
        if place not in out and "sample" in (own := tables(request, place)):
            images = own["sample"]["images_per_epoch"]
            updates = images * tr.UPDATES // tr.EPOCH
            words = f"{place.method} at T = {place.steps}: {images} images and {updates} optimiser steps"
            found.append((f"shorter epochs ({place.model})", words))
    return found


def _origin(request: StudyRequest, model: str) -> str:
    """Which methods have settings of their own in a model's preset, and how the preset says that it found them."""
    others = list(tr.unsearched(request, METHODS, model))
    sections = [method for method in METHODS if method not in others]
    resolved = tr.resolved_training(request, METHODS[0], tr.one_reward(request), request.overrides, model)
    if not resolved.preset:
        return "no preset: defaults, not searched"
    preset = find_preset(resolved.preset)
    words = [f"preset {preset.name} ({preset.description})"]
    if sections:
        steps = resolved.config.schedule.steps
        words.append(f"its own section, made at T = {steps}, for {listed(sections)}")
    if others:
        words.append(
            f"no section for {listed(others)}: not searched, its common learning rate and the method's defaults"
        )
    return "; ".join(words)


def sharing_start(request: StudyRequest) -> list[str]:
    """Methods whose groups start from one noise, so that their first step costs one denoiser call a group."""
    found = []
    for method in METHODS:
        resolved = tr.resolved_training(request, method, tr.one_reward(request), request.overrides, models(request)[0])
        if build_method(resolved.config, resolved.method).shared_noise:
            found.append(method)
    return found
