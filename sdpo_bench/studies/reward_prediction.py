"""Are the rewards of unasked denoising steps what SDPO predicts from three queries?

The dense reward of SDPO is asked at three steps and filled in by latent similarity elsewhere. Here every step of the
base model's trajectories is decoded and scored, so that the prediction meets the truth. A diffusion model and
a flow-matching one are asked on the same prompts, seeds and noise, so that one can be tested against the other. Each is
sampled as its preset trains it, and the samplers keep unlike shares of noise; so the flow model is sampled a second
time, with the other one's share.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from sdpo_bench.results.study_findings import Findings
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import listed, seed_caution
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.shared import step_rewards as s
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.models_compared import ModelsCompared, Place, differences
from sdpo_bench.studies.shared.reward_view import RIVALS, USABLE, RewardView, ranges
from sdpo_bench.studies.shared.sampler_noise import matched_eta
from sdpo_bench.studies.shared.samplers_compared import Arm, SamplersCompared
from sdpo_bench.studies.shared.true_rewards import (
    Sampled,
    sample_truth,
    study_members,
    study_models,
    study_prompts,
    study_rewards,
    study_sampler,
    study_steps,
)

MATCHED = "with matched noise"
"""Words for the model sampled with the other model's share of old noise."""


class RewardPrediction(Study):
    """True rewards at every denoising step against SDPO's latent-similarity prediction and simple alternatives."""

    name = "reward-prediction"
    question = (
        "SDPO asks the reward at three denoising steps and predicts the others by latent similarity. How good is the "
        "prediction, on which steps and at how many of them, is it better than simpler or cheaper ways, and is it "
        "better or worse on a flow-matching model than on a diffusion model, each with the sampler it is trained with?"
    )

    def design(self, request: StudyRequest) -> Design:
        prompts, members = study_prompts(request), study_members(request)
        rewards, counts, seeds = study_rewards(request), study_steps(request), request.chosen_seeds
        trajectories, models = len(seeds) * len(prompts) * members, study_models(request)
        return Design(
            (
                ("model", f"{listed(models)}, not trained"),
                *_samplers(request, models),
                ("rewards", ", ".join(rewards)),
                ("denoising steps T", ", ".join(map(str, counts))),
                ("seeds", f"{', '.join(map(str, seeds))} (of the sampling noise)"),
                ("prompts", str(len(prompts))),
                ("trajectories", f"{members} of each prompt and seed, {trajectories} at each T{_each(models)}"),
                ("truth", "the reward of the decoded predicted original of every step"),
            ),
            (
                "Endpoint: mean absolute error over all steps (asked ones have none), in standard deviations of the "
                "true reward over all steps and trajectories of that T; one number for each seed and prompt.",
                f"Family, one for each reward{_each(models)}: SDPO's prediction against {listed(RIVALS)} at every T; "
                "crossed seed x prompt intervals of the paired difference, Holm over the family.",
                *_models_statistics(models),
                f"Prediction fails at a step where Spearman's correlation with the truth, among trajectories of the "
                f"same prompt that were not asked there, is below {USABLE}: advantages are made from such differences.",
            ),
            denoiser_calls=(len(models) + (len(models) > 1)) * trajectories * sum(counts),
        )

    def findings(self, bench: Bench) -> Findings:
        models = study_models(bench.request)
        by_model = {model: _views(bench, model, named=len(models) > 1) for model in models}
        views = [view for own in by_model.values() for view in own]
        conclusion = [sentence for view in views for sentence in view.sentences()]
        tables = [_accuracy_table(views)]
        ranked = views
        if len(models) > 1:
            compared, matched = models_compared(by_model), _matched(bench, by_model)
            samplers = samplers_compared(compared, by_model, matched, study_samplers(bench.request, models))
            summaries = [sentence for view in matched for sentence in view.summary()]
            conclusion = [*compared.sentences(), *samplers.sentences(), *conclusion, *summaries]
            compared_tables = [compared.table(), samplers.table()] if compared.contrasts else []
            tables = [*compared_tables, samplers.noise_table(), *tables]
            ranked = [*views, *matched]
        tables.append(_prediction_table(ranked))
        contrasts = [contrast for view in views for contrast in view.contrasts.values()]
        return Findings(
            (*conclusion, *seed_caution(contrasts)),
            tuple(tables),
            tuple(plot for view in views for plot in view.plots()),
        )


def _each(models: tuple[str, ...]) -> str:
    return " and model" if len(models) > 1 else ""


def _samplers(request: StudyRequest, models: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Facts: the sampler of each model, and of the exploratory arm."""
    own = study_samplers(request, models)
    facts = [("sampler", "; ".join(f"{model}: {words}" for model, words in own.items()))]
    if len(models) > 1:
        reference, model = models
        facts.append(
            (
                "exploratory arm",
                f"{model} with sde cps at the eta that keeps, in every step, the mean share of old noise that a step "
                f"of {reference} keeps at the same T (mean over steps but the last); cps keeps cos(eta pi / 2)",
            )
        )
    return tuple(facts)


def study_samplers(request: StudyRequest, models: tuple[str, ...]) -> dict[str, str]:
    """The sampler of each model in words."""
    return {model: study_sampler(replace(request, model=model)) for model in models}


def _models_statistics(models: tuple[str, ...]) -> tuple[str, ...]:
    """How two models are compared; nothing where there is one."""
    if len(models) == 1:
        return ()
    reference, model = models
    return (
        f"Family over rewards and T: SDPO's prediction on {model} minus on {reference}, on the same prompts, seeds and "
        "noise; crossed seed x prompt intervals of the paired difference, which have the sampling errors of both "
        "standard deviations, Holm over the family. The other ways are compared alike as an exploratory grid "
        "(Benjamini-Hochberg). Each model is sampled as its preset trains it, so a difference is one of the model "
        "together with its sampler.",
        f"Exploratory, whether that difference is one of the samplers: the exploratory arm minus {reference}, and "
        f"minus {model} as its preset trains it; Benjamini-Hochberg over rewards and T of each.",
    )


def _views(bench: Bench, model: str, *, named: bool) -> list[RewardView]:
    """What was measured on one model, by reward."""
    request, sampled = replace(bench.request, model=model), {}
    for steps in study_steps(request):
        bench.say(f"{model}: sampling and scoring every step at T = {steps}")
        sampled[steps] = sample_truth(request, steps, bench.runtime)
    return _by_reward(request, sampled, f"{model}, " if named else "")


def _by_reward(request: StudyRequest, sampled: Mapping[int, Sampled], title: str) -> list[RewardView]:
    prompts, seeds = study_prompts(request), request.chosen_seeds
    return [RewardView(reward, sampled, seeds, prompts, title + reward) for reward in study_rewards(request)]


def _matched(bench: Bench, by_model: Mapping[str, list[RewardView]]) -> list[RewardView]:
    """The second model, sampled with the share of old noise that the first one's sampler keeps."""
    (_, first), (model, _) = by_model.items()
    sampled = {}
    for steps, reference in first[0].sampled.items():
        request = matched_request(bench.request, model, reference.kept)
        bench.say(f"{model}, {study_sampler(request)}: sampling and scoring every step at T = {steps}")
        sampled[steps] = sample_truth(request, steps, bench.runtime)
    return _by_reward(replace(bench.request, model=model), sampled, f"{model}, {MATCHED}, ")


def matched_request(request: StudyRequest, model: str, kept: np.ndarray) -> StudyRequest:
    """The request of a model whose steps keep the mean of these shares of old noise."""
    own = {"schedule.sde": "cps", "schedule.eta": matched_eta(kept)}
    return replace(request, model=model, overrides={**request.overrides, **own})


def samplers_compared(
    compared: ModelsCompared,
    by_model: Mapping[str, list[RewardView]],
    matched: list[RewardView],
    samplers: Mapping[str, str],
) -> SamplersCompared:
    """The second model at the first one's share of old noise against both as their presets train them."""
    (reference, first), (model, second) = by_model.items()
    etas = listed(f"{matched_eta(sampled.kept):g}" for sampled in first[0].sampled.values())
    arms = (
        Arm(reference, samplers[reference], _kept(first)),
        Arm(model, samplers[model], _kept(second)),
        Arm(f"{model} {MATCHED}", f"flow, sde cps, eta {etas}", _kept(matched)),
    )
    to_reference, to_itself = (_differences(views, matched)[0] for views in (first, second))
    return SamplersCompared(compared, arms, to_reference, to_itself)


def _kept(views: list[RewardView]) -> dict[int, float]:
    return {steps: float(sampled.kept.mean()) for steps, sampled in views[0].sampled.items()}


def models_compared(by_model: Mapping[str, list[RewardView]]) -> ModelsCompared:
    """The second model minus the first."""
    (reference, first), (model, second) = by_model.items()
    found, constant = _differences(first, second)
    return ModelsCompared(model, reference, s.SDPO, found, constant)


def _differences(
    first: list[RewardView], second: list[RewardView]
) -> tuple[dict[Place, Matrix], list[tuple[str, int]]]:
    """Second minus first, and the rewards and T where a true reward never varies."""
    found: dict[Place, Matrix] = {}
    constant = []
    for a, b in zip(first, second, strict=True):
        found |= differences(a.reward, b.with_spread, a.with_spread)
        constant += [(a.reward, steps) for steps in a.sampled if 0 in (a.spread[steps], b.spread[steps])]
    return found, constant


# -- tables --------------------------------------------------------------------------------------------------


def _accuracy_table(views: list[RewardView]) -> t.Table:
    counts = sorted(views[0].sampled)
    columns = (
        t.Column("rule", "prediction (queries)", numeric=False),
        *(t.Column(f"t{n}", f"T = {n}", help="mean absolute error in standard deviations") for n in counts),
    )
    groups = []
    for view in views:
        names = list(dict.fromkeys(name for n in counts for name in view.accuracy[n]))
        rows = [t.Row((t.word(name), *(_error_cell(view, n, name) for n in counts)), name == s.SDPO) for name in names]
        groups.append(t.Group(view.title, tuple(rows)))
    notes = (
        "Mean absolute error over all steps in standard deviations of the true reward, ± half its 95 % crossed "
        "interval over seeds and prompts; asked steps have no error. Bold: significantly different from SDPO's "
        "(grey row) in the declared family.",
    )
    return t.Table("accuracy", "Error of predicted step rewards", columns, tuple(groups), notes)


def _error_cell(view: RewardView, steps: int, rule: str) -> t.Cell:
    accuracy = view.accuracy[steps].get(rule)
    if accuracy is None:
        return t.Cell(t.DASH)
    if accuracy.not_finite:
        return t.word(f"{100 * accuracy.not_finite:.2g} % NaN")
    strong = rule in RIVALS and view.against(rule)[steps].shown
    return t.estimate(view.error(steps, rule), 3, strong=strong)


def _prediction_table(views: list[RewardView]) -> t.Table:
    columns = (
        t.Column("steps", "T"),
        t.Column("queries", "queries"),
        t.Column("bias", "bias", help="predicted minus true over unasked steps, standard deviations"),
        t.Column("slope", "slope", help="of the true on the predicted reward; 1 is calibrated"),
        t.Column("spearman", "Spearman", help="over all unasked steps and prompts"),
        t.Column("within", "within prompt", help="Spearman among trajectories of one prompt, mean over steps"),
        t.Column("last", "within, last alone", help="the same for the last reward alone"),
        t.Column("failed", "steps failed", numeric=False),
        t.Column("verdict", "verdict", numeric=False),
    )
    groups = [t.Group(v.title, tuple(_prediction_row(v, steps) for steps in sorted(v.sampled))) for v in views]
    notes = (f"A step fails where the correlation within prompts is below {USABLE}.",)
    return t.Table("prediction", "SDPO's prediction: bias, calibration, ranking", columns, tuple(groups), notes)


def _prediction_row(view: RewardView, steps: int) -> t.Row:
    own, failed = view.accuracy[steps][s.SDPO], view.failed_steps(steps)
    judged = int(np.isfinite(own.correlation).sum())
    if not judged:
        verdict = "nothing to judge"
    elif len(failed) == judged:
        verdict = "fails"
    else:
        verdict = "fails in part" if failed else "holds"
    return t.Row(
        (
            t.count(steps),
            t.number(own.queries, 2),
            t.number(own.bias, 3, signed=True),
            t.number(own.slope, 2),
            t.number(own.spearman, 2),
            t.number(own.within, 2),
            t.number(view.accuracy[steps][s.LAST].within, 2),
            t.word(f"{len(failed)} of {judged}" + (f": {ranges(failed)}" if failed else "")),
            t.word(verdict),
        )
    )
