"""Does the step-shuffled order help, or the optimiser steps that come with it?

Step-shuffled updates take T times more optimiser steps from the same images than accumulated ones. The published
comparison changes both at once; here each is held equal in turn, and both together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.results.study_findings import Findings
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, family, listed, seed_caution
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import training_tables as tr
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.trainings import Arm, Trainings, difference
from sdpo_bench.sweep.suite import Suite

STEPS = 4
SHUFFLED, LARGE, SMALL, EARLY = "shuffled", "accumulated", "accumulated-small", "shuffled-early"
COMPARISONS = {
    "equal images": (SHUFFLED, LARGE),
    "equal optimiser steps": (EARLY, LARGE),
    "equal images and optimiser steps": (SHUFFLED, SMALL),
}
"""Shuffled and accumulated arm of each comparison."""
GENERALISATION = "step generalisation"
VERDICTS = {"up": "learns more", "down": "learns less", "unclear": "does not differ significantly"}


@dataclass(frozen=True)
class Geometry:
    """Sizes that make the comparisons equal."""

    steps: int
    groups: int
    """Prompt groups of an epoch, all in one optimiser step of the large windows."""
    images: int
    optimiser_steps: int
    """What accumulated updates take for ``images``."""


class UpdateOrder(Study):
    """Step-shuffled against accumulated updates at equal images, at equal optimiser steps, and at both."""

    name = "update-order"
    question = (
        "Is it the step-shuffled order of updates that helps, or the T times more optimiser steps that come with it, "
        "and does it help at step counts other than the trained one?"
    )

    def design(self, request: StudyRequest) -> Design:
        g = geometry(request)
        suites = _suites(request, g)
        return Design(
            (
                *tr.suite_facts(request, suites),
                ("budget", f"{g.images:,} images, or {g.optimiser_steps} optimiser steps ({EARLY})"),
                (SHUFFLED, f"{g.steps} optimiser steps an epoch, {g.groups} groups at one step each"),
                (LARGE, f"1 optimiser step an epoch, {g.groups} groups at all {g.steps} steps"),
                (
                    SMALL,
                    f"{g.steps} optimiser steps an epoch, {g.groups // g.steps} groups at all {g.steps} steps: "
                    "as many terms in each optimiser step as shuffled",
                ),
                (
                    EARLY,
                    f"shuffled, ended after {g.optimiser_steps} optimiser steps, so with {g.steps} times fewer images",
                ),
            ),
            (
                "Endpoint: mean over step counts of the gain over the base model; step generalisation: mean gain at "
                f"the step counts other than T = {g.steps} minus the gain at T.",
                "Family: shuffled against accumulated in the three comparisons, on both endpoints; crossed intervals "
                "of the paired difference, Holm over the six.",
            ),
            tuple(suites),
        )

    def findings(self, bench: Bench) -> Findings:
        trainings, reward = bench.trainings, tr.one_reward(bench.request)
        arms = {name: Arm("sdpo", reward, name) for name in (SHUFFLED, LARGE, SMALL, EARLY)}
        steps = geometry(bench.request).steps
        contrasts = family(_differences(trainings, arms, steps))
        reference = family(tr.against_reference(trainings, arms, SHUFFLED))
        return Findings(
            (*conclusion(contrasts), *seed_caution(contrasts.values())),
            (
                _comparison_table(contrasts),
                tr.gain_table(trainings, arms, reference, SHUFFLED, title="Gain of each arm"),
                bill_table(trainings, arms),
            ),
            (tr.training_plot(trainings, arms),),
        )


def geometry(request: StudyRequest) -> Geometry:
    """Sizes of the arms.

    Raises:
        UsageError: T does not divide the number of groups, so no window sizes give equal optimiser steps.
    """
    # Window sizes are the study's own; these divide every epoch, so that the rest resolves.
    overrides = {"schedule.steps": STEPS, **request.overrides, "update.minibatch": 1, "update.accumulation": 1}
    config = tr.resolved_training(request, "sdpo", tr.one_reward(request), overrides).config
    steps, epoch = config.schedule.steps, config.sample.images_per_epoch
    groups = epoch // 2
    if steps < 2 or groups % steps:
        raise UsageError(
            f"schedule.steps = {steps} must divide the {groups} pairs of an epoch (sample.images_per_epoch = {epoch}), "
            "or no window size gives both orders the same optimiser steps. Use e.g. --set schedule.steps=2."
        )
    epochs = max(steps, round(request.amount(40 * epoch) / epoch))  # so that a T-th of them is at least one
    return Geometry(steps, groups, epochs * epoch, epochs * config.update.inner_epochs)


def _suites(request: StudyRequest, g: Geometry) -> list[Suite]:
    def update(order: str, minibatch: int) -> dict[str, Any]:
        return {"update": {"order": order, "minibatch": minibatch, "accumulation": 1}}

    shuffled = update("step-shuffled", g.groups)
    variants = {
        SHUFFLED: shuffled,
        LARGE: update("accumulated", g.groups),
        SMALL: update("accumulated", g.groups // g.steps),
    }
    common: dict[str, Any] = {"schedule": {"steps": STEPS}}
    rewards = [tr.one_reward(request)]
    return [
        tr.training_suite(
            "update-order", request, ["sdpo"], rewards, {"images": g.images}, variants=variants, **common
        ),
        tr.training_suite(
            "update-order.early",
            request,
            ["sdpo"],
            rewards,
            {"optimiser_steps": g.optimiser_steps},
            variants={EARLY: shuffled},
            **common,
        ),
    ]


def _differences(trainings: Trainings, arms: tr.Arms, steps: int) -> dict[str, Matrix | None]:
    """Shuffled minus accumulated in every comparison, on both endpoints."""
    differences: dict[str, Matrix | None] = {}
    for words, (a, b) in COMPARISONS.items():
        differences[words] = difference(trainings.gain(arms[a]), trainings.gain(arms[b]))
        away_a, away_b = (generalisation(trainings, arms[name], steps) for name in (a, b))
        differences[f"{words}, {GENERALISATION}"] = difference(away_a, away_b)
    return differences


def generalisation(trainings: Trainings, arm: Arm, steps: int) -> Matrix | None:
    """Mean gain at the other step counts minus that at ``steps``; None where T was not judged or nothing else was."""
    grids = trainings.grids(arm)
    if grids is None or steps not in grids[0].steps:
        return None
    own = trainings.gain(arm, steps)
    away = [gain for k in grids[0].steps if k != steps and (gain := trainings.gain(arm, k)) is not None]
    if own is None or not away:
        return None
    return Matrix(sum(gain.values for gain in away) / len(away) - own.values, own.seeds, own.prompts)


def conclusion(contrasts: Mapping[str, Contrast]) -> list[str]:
    """What the three comparisons say, and what they say together."""
    texts = []
    for words in COMPARISONS:
        if contrast := contrasts.get(words):
            verdict = VERDICTS[contrast.outcome]
            if contrast.interval_words:
                verdict += f", though the interval excludes 0 (adjusted {t.p_words(contrast.adjusted_p)})"
            texts.append(f"At {words} the step-shuffled order {verdict}: {contrast.estimate.words()}.")
    images, both = contrasts.get("equal images"), contrasts.get("equal images and optimiser steps")
    if images and both:
        texts.append(_together(images, both))
    shown = [w for w in COMPARISONS if (c := contrasts.get(f"{w}, {GENERALISATION}")) and c.shown]
    for words in shown:
        better = "better" if contrasts[f"{words}, {GENERALISATION}"].up else "worse"
        texts.append(f"At {words} its gain carries over {better} to step counts other than the trained one.")
    if not shown:
        labels = [f"{w}, {GENERALISATION}" for w in COMPARISONS]
        near = [c.words for label in labels if (c := contrasts.get(label)) and c.interval_words]
        more = f" (though of {listed(near)})" if near else ""
        texts.append(
            f"How the gain carries over to other step counts does not depend significantly on the order{more}."
        )
    return texts


def _together(images: Contrast, both: Contrast) -> str:
    if both.up and not images.shown:
        return (
            "With equal images and optimiser steps the step-shuffled order is the better one, though not significantly "
            f"with equal images alone{images.interval_words}."
        )
    if images.up and both.up:
        return "The order itself helps: its lead remains when the optimiser steps are equal too."
    if images.shown and not both.shown:
        whose = "Its lead" if images.up else "The accumulated order's lead"
        return (
            f"{whose} at equal images is not significant when the optimiser steps are equal too{both.interval_words}, "
            "so the number of optimiser steps may be all there is to it."
        )
    if both.down:
        return "With equal images and optimiser steps the accumulated order is the better one."
    if not images.shown:
        return f"The two orders do not differ significantly when images are equal{images.interval_words}."
    return "The order matters, but not in one direction."


def _comparison_table(contrasts: Mapping[str, Contrast]) -> t.Table:
    columns = (
        t.Column("comparison", "shuffled minus accumulated", numeric=False),
        t.Column("gain", "mean gain"),
        t.Column("p", "Holm p"),
        t.Column("generalisation", GENERALISATION),
        t.Column("p2", "Holm p"),
    )
    rows = []
    for words in COMPARISONS:
        gain, away = (contrast_cells(contrasts.get(label)) for label in (words, f"{words}, {GENERALISATION}"))
        rows.append(t.Row((t.word(words), *gain, *away)))
    notes = (
        "Reward units, ± half the 95 % crossed interval over seeds and prompts. Bold: significantly different from 0.",
    )
    return t.plain_table("comparisons", "Step-shuffled against accumulated", columns, rows, notes)


BILL = ("images", "optimiser_steps", "denoiser_calls", "reward_calls")


def bill_table(trainings: Trainings, arms: tr.Arms) -> t.Table:
    """What each arm has used, mean over its runs."""
    columns = (
        t.Column("arm", "arm", numeric=False),
        *(t.Column(axis, axis.replace("_", " ")) for axis in BILL),
        t.Column("seconds", "seconds", help="of training on this machine"),
    )
    rows = []
    for label, arm in arms.items():
        runs = trainings.arms[arm]
        counts = [t.count(amount) for amount in tr.mean_bill(runs, BILL)]
        rows.append(t.Row((t.word(label), *counts, t.number(tr.mean_seconds(runs), 1))))
    return t.plain_table("bill", "What each arm used (mean over seeds)", columns, rows)
