"""Kinds of step rewards: what each trains with and costs, and the budgets at which they are compared.

A kind is held to a budget of images, or of what the predicted rewards use of a cost for these images. Where a kind uses
as much of that cost for as many images, its runs at equal images are shared.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import Work, training_work
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.trainings import Arm
from sdpo_bench.sweep.suite import Suite

MODELS = ("emoji-turbo", "emoji-flow")
METHOD = "sdpo"
SPARSE, PREDICTED = "sparse", "predicted"
KINDS = (PREDICTED, "full", "completion", "branch", SPARSE)
"""Values of ``method.reward``."""
OWN_CREDIT = ("completion", "branch")
"""Kinds whose papers give a step its own reward alone: the normalised gain of that step (DenseGRPO, arXiv 2601.20218),
the reward that belongs to the step that branched (TempFlow-GRPO, arXiv 2508.04324). They train with a discount of 0:
with one near 1, gains add up to the final reward minus a baseline, and a branch gets the rewards of later branches."""
IMAGES = 5120
IMAGES_AXIS = "images"
COSTS = ("denoiser_calls", "reward_calls")
"""Budgets that are held equal in place of the images, each at the predicted rewards' bill."""
AXES = (IMAGES_AXIS, *COSTS)
CHOSEN = {
    "embedded": "searched with predicted rewards alone",
    "embedded-flow": "not searched, set by hand with predicted rewards",
}
"""How the presets' learning rate and clip range of SDPO were found (docs/embedded-preset.md)."""


def said(axis: str) -> str:
    """An axis in a sentence."""
    return axis.replace("_", " ")


def models(request: StudyRequest) -> tuple[str, ...]:
    """The model that was asked for, or the study's own."""
    return (request.model,) if request.model else MODELS


def images(request: StudyRequest) -> int:
    """Budget at equal images."""
    return request.amount(IMAGES, least=tr.EPOCH, multiple=tr.EPOCH)


def settings(kind: str) -> dict[str, dict[str, Any]]:
    """What a kind trains with, as tables of a suite file."""
    tables: dict[str, dict[str, Any]] = {"method": {"reward": kind}}
    return tables | {"advantage": {"gamma": 0.0}} if kind in OWN_CREDIT else tables


def resolved(request: StudyRequest, model: str, kind: str) -> Resolved:
    """One training at equal images.

    Raises:
        UsageError: settings that do not resolve.
    """
    own = {f"{table}.{key}": value for table, keys in settings(kind).items() for key, value in keys.items()}
    overrides = {**request.overrides, **own, "budget.images": images(request)}
    return tr.resolved_training(request, METHOD, tr.one_reward(request), overrides, model)


def bills(request: StudyRequest) -> dict[str, dict[str, Work]]:
    """What each kind uses at equal images, by model.

    Raises:
        UsageError: a kind that the schedule has no place for, or a setting that the study varies.
    """
    for key in ("method.reward", "advantage.gamma"):
        if key in request.overrides:
            raise UsageError(f"--set {key}: this study varies that setting itself.")
    found: dict[str, dict[str, Work]] = {}
    for model, kind in product(models(request), KINDS):
        work = training_work(resolved(request, model, kind))
        assert work is not None
        found.setdefault(model, {})[kind] = work
    return found


def repeated(bills: Mapping[str, Work], axis: str) -> list[str]:
    """Kinds that cost as much of an axis as the reference: there they would be the runs of equal images again."""
    return [kind for kind in KINDS if bills[kind].used(axis) == bills[PREDICTED].used(axis)]


def facts(request: StudyRequest, bills: Mapping[str, Mapping[str, Work]]) -> tuple[tuple[str, str], ...]:
    """Budgets, settings and costs as the design declares them."""
    return (
        ("budget", f"{images(request):,} images; or as many {listed(map(said, COSTS))} as {PREDICTED} uses for them"),
        ("discount", _discount_words(request)),
        *((f"settings of every kind ({model})", _setting_words(request, model)) for model in bills),
        *((f"cost at equal images ({model})", _bill_words(bills[model])) for model in bills),
        *(
            (f"at equal {said(axis)}", "; ".join(_budget_words(model, bills[model], axis) for model in bills))
            for axis in COSTS
        ),
    )


def _discount_words(request: StudyRequest) -> str:
    gammas = {}
    for model in models(request):
        advantage = resolved(request, model, PREDICTED).config.advantage
        assert advantage is not None
        gammas[model] = f"{advantage.gamma:g} ({model})"
    return (
        f"advantage.gamma = 0 for {listed(OWN_CREDIT)}, since DenseGRPO and TempFlow-GRPO give a step the reward of "
        f"that step alone; SDPO's own for the others: {', '.join(gammas.values())}"
    )


def chosen_words(request: StudyRequest, model: str) -> str:
    """Who chose the learning rate and the clip range."""
    if {"update.lr", "method.clip_range"} & set(request.overrides):
        return "set by the user"
    return CHOSEN.get(resolved(request, model, PREDICTED).preset, "not searched")


def _setting_words(request: StudyRequest, model: str) -> str:
    config = resolved(request, model, PREDICTED).config
    values = f"learning rate {config.update.lr:g}, clip range {config.method.settings['clip_range']:g}"
    return f"{values}: {chosen_words(request, model)}"


def _bill_words(bills: Mapping[str, Work]) -> str:
    return ", ".join(
        f"{kind} {work.denoiser_calls:,} denoiser calls and {work.reward_calls:,} reward calls"
        for kind, work in bills.items()
    )


def _budget_words(model: str, bills: Mapping[str, Work], axis: str) -> str:
    same = repeated(bills, axis)
    others = [kind for kind in KINDS if kind not in same]
    words = f"{model}: {listed(same)} as at equal images, the same runs"
    return f"{words}, {listed(others)} train again with {bills[PREDICTED].used(axis):,.0f}" if others else words


def variant(model: str, kind: str, axis: str) -> str:
    """Name of the runs of one kind at one budget."""
    return f"{model} {kind}, equal {said(axis)}"


def suites(request: StudyRequest, bills: Mapping[str, Mapping[str, Work]]) -> list[Suite]:
    """One suite for each model and budget, of the kinds that train there."""
    found = []
    for (model, own), axis in product(bills.items(), AXES):
        kinds = [kind for kind in KINDS if axis == IMAGES_AXIS or kind not in repeated(own, axis)]
        if not kinds:
            continue
        found.append(
            tr.training_suite(
                f"dense-rewards.{model}.{axis}",
                request,
                [METHOD],
                [tr.one_reward(request)],
                {axis: images(request) if axis == IMAGES_AXIS else int(own[PREDICTED].used(axis))},
                model=model,
                variants={variant(model, kind, axis): settings(kind) for kind in kinds},
            )
        )
    return found


def arms(model: str, reward: str, bills: Mapping[str, Work]) -> dict[tuple[str, str], Arm]:
    """Runs by (axis, kind); a kind that is not trained again has the runs of equal images."""
    found: dict[tuple[str, str], Arm] = {}
    for axis, kind in product(AXES, KINDS):
        own = IMAGES_AXIS if kind in repeated(bills, axis) else axis
        found[axis, kind] = Arm(METHOD, reward, variant(model, kind, own))
    return found
