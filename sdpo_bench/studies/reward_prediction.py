"""Are the rewards of unasked denoising steps what SDPO predicts from three queries?

The dense reward of SDPO is asked at three steps and filled in by latent similarity elsewhere. Here every step of the
base model's trajectories is decoded and scored, so that the prediction meets the truth. A diffusion model and
a flow-matching one are asked on the same prompts, seeds and noise, so that one can be tested against the other. Each is
sampled as its preset trains it, and the samplers keep unlike shares of noise; so the flow model is sampled a second
time, with the other one's share.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sdpo_bench.results.study_findings import Findings, Plot, banded, line
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, family, listed, seed_caution
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.studies.shared import step_rewards as s
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest
from sdpo_bench.studies.shared.models_compared import ModelsCompared, Place, differences, with_spread
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

EVEN = (5, 9)
USABLE = 0.5
"""Correlation with the true reward among trajectories of one prompt, below which a prediction counts as failed."""
MATCHED = "with matched noise"
"""Words for the model sampled with the other model's share of old noise."""
RIVALS = (s.LAST, s.SAME_QUERIES, s.MIDDLE, "linear, ends (2)")


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


def _views(bench: Bench, model: str, *, named: bool) -> "list[_Reward]":
    """What was measured on one model, by reward."""
    request, sampled = replace(bench.request, model=model), {}
    for steps in study_steps(request):
        bench.say(f"{model}: sampling and scoring every step at T = {steps}")
        sampled[steps] = sample_truth(request, steps, bench.runtime)
    return _by_reward(request, sampled, f"{model}, " if named else "")


def _by_reward(request: StudyRequest, sampled: Mapping[int, Sampled], title: str) -> "list[_Reward]":
    prompts, seeds = study_prompts(request), request.chosen_seeds
    return [_Reward(reward, sampled, seeds, prompts, title + reward) for reward in study_rewards(request)]


def _matched(bench: Bench, by_model: "Mapping[str, list[_Reward]]") -> "list[_Reward]":
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
    by_model: "Mapping[str, list[_Reward]]",
    matched: "list[_Reward]",
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


def _kept(views: "list[_Reward]") -> dict[int, float]:
    return {steps: float(sampled.kept.mean()) for steps, sampled in views[0].sampled.items()}


def models_compared(by_model: "Mapping[str, list[_Reward]]") -> ModelsCompared:
    """The second model minus the first."""
    (reference, first), (model, second) = by_model.items()
    found, constant = _differences(first, second)
    return ModelsCompared(model, reference, s.SDPO, found, constant)


def _differences(first: "list[_Reward]", second: "list[_Reward]") -> tuple[dict[Place, Matrix], list[tuple[str, int]]]:
    """Second minus first, and the rewards and T where a true reward never varies."""
    found: dict[Place, Matrix] = {}
    constant = []
    for a, b in zip(first, second, strict=True):
        found |= differences(a.reward, b.with_spread, a.with_spread)
        constant += [(a.reward, steps) for steps in a.sampled if 0 in (a.spread[steps], b.spread[steps])]
    return found, constant


# -- analysis ------------------------------------------------------------------------------------------------


def as_matrix(values: np.ndarray, sampled: Sampled, seeds: tuple[int, ...], prompts: list[str]) -> Matrix:
    """``[n]`` numbers of trajectories as means of each seed and prompt."""
    shape = (len(seeds), len(prompts))
    cell = np.ravel_multi_index((sampled.seeds, sampled.prompts), shape)
    means = np.bincount(cell, values, minlength=shape[0] * shape[1]) / np.bincount(cell, minlength=shape[0] * shape[1])
    return Matrix(means.reshape(shape), seeds, tuple(prompts))


def _spread(truth: np.ndarray) -> float:
    """Standard deviation; exactly 0 for equal numbers, whose mean may be rounded."""
    return float(truth.std(ddof=1)) if np.ptp(truth) > 0 else 0.0


class _Reward:
    """What one reward's numbers say on one model."""

    def __init__(
        self, reward: str, sampled: Mapping[int, Sampled], seeds: tuple[int, ...], prompts: list[str], title: str
    ):
        self.reward, self.sampled, self.title = reward, sampled, title
        self.accuracy: dict[int, dict[str, s.Accuracy]] = {}
        self.matrices: dict[int, dict[str, Matrix]] = {}
        self.with_spread: dict[int, dict[str, Matrix]] = {}
        """The same means, for differences of models; no T whose true reward never varies."""
        self.spread = {steps: _spread(trajectories.truth[reward]) for steps, trajectories in sampled.items()}
        """Standard deviation of the true reward over all steps and trajectories, by T."""
        for steps, trajectories in sampled.items():
            truth, spread = trajectories.truth[reward], self.spread[steps]
            self.accuracy[steps] = {
                name: s.accuracy(rule, truth, trajectories.similarity, trajectories.prompts, spread or 1.0)
                for name, rule in s.rules(steps, EVEN).items()
            }
            self.matrices[steps] = {
                name: as_matrix(a.error, trajectories, seeds, prompts)
                for name, a in self.accuracy[steps].items()
                if a.not_finite == 0
            }
            if spread > 0:
                squares = ((truth - truth.mean()) ** 2).mean(axis=1)
                deviation = as_matrix(squares, trajectories, seeds, prompts)
                self.with_spread[steps] = {name: with_spread(m, deviation) for name, m in self.matrices[steps].items()}
        differences = {}
        for steps, matrices in self.matrices.items():
            for rival in RIVALS:
                differences[f"T = {steps}, {rival}"] = paired(matrices[s.SDPO], matrices[rival])
        self.contrasts = family(differences)

    def against(self, rival: str) -> dict[int, Contrast]:
        """SDPO's error minus the rival's, by T; negative: SDPO's is smaller."""
        return {steps: self.contrasts[f"T = {steps}, {rival}"] for steps in self.sampled}

    def failed_steps(self, steps: int) -> list[int]:
        """Steps at which the prediction fails."""
        return [int(i) for i in np.flatnonzero(self.accuracy[steps][s.SDPO].correlation < USABLE)]

    def summary(self) -> list[str]:
        """Error and failures, nothing about other ways of predicting."""
        return [f"{self.title}: {text}" for text in (self._misses(), self._failures())]

    def _misses(self) -> str:
        errors = ", ".join(f"{self.matrices[n][s.SDPO].values.mean():.2f} at T = {n}" for n in self.sampled)
        return f"SDPO's prediction misses the true reward by {errors} (standard deviations)."

    def sentences(self) -> list[str]:
        texts = [self._misses()]
        for rival, words in (
            (s.LAST, "the last reward alone"),
            (s.SAME_QUERIES, "a straight line through its queries"),
            (s.MIDDLE, "the middle step as its anchor"),
        ):
            texts.append(f"{_versus(self.against(rival), words)}.")
        texts += [self._failures(), self._cheapest(), self._official()]
        return [f"{self.title}: {text}" for text in texts]

    def _failures(self) -> str:
        texts = []
        for steps in self.sampled:
            judged = int(np.isfinite(self.accuracy[steps][s.SDPO].correlation).sum())
            if failed := self.failed_steps(steps):
                texts.append(f"T = {steps} (step{'s' * (len(failed) > 1)} {_ranges(failed)} of {judged} judged)")
        if not texts:
            return f"prediction fails at no step: its correlation with the truth is {USABLE} or more wherever judged."
        return f"prediction FAILS at {listed(texts)}: the correlation with the truth is below {USABLE}."

    def _cheapest(self) -> str:
        steps = max(self.sampled)
        errors = {n: (self.accuracy[steps][n].queries, float(m.values.mean())) for n, m in self.matrices[steps].items()}
        best = s.cheapest(errors, errors[s.SDPO][1])
        if best == s.SDPO:
            return f"at T = {steps} no cheaper way has as small an error as SDPO's."
        return (
            f"at T = {steps} the cheapest way with no larger error is '{best}' ({errors[best][1]:.2f} from "
            f"{errors[best][0]:.3g} queries, SDPO's {errors[s.SDPO][1]:.2f} from {errors[s.SDPO][0]:.3g})."
        )

    def _official(self) -> str:
        bad = [n for n in self.sampled if self.accuracy[n][s.OFFICIAL].not_finite > 0]
        if bad:
            return f"the official weights give NaN or infinite rewards at T = {listed(bad)}."
        means = {n: [by_rule[r].values.mean() for r in (s.OFFICIAL, s.SDPO)] for n, by_rule in self.matrices.items()}
        effects = []
        for words, sign in (("larger", 1), ("smaller", -1)):
            changed = [n for n, (official, own) in means.items() if sign * (official - own) > 5e-3]
            effects += [f"a {words} error at T = {listed(changed)}"] if changed else []
        where = f"have {listed(effects)}" if effects else "change the error by less than 0.005"
        return f"the official weights, which may be negative, {where}."

    def plots(self) -> list[Plot]:
        most = max(self.sampled)
        shown = (s.SDPO, s.SAME_QUERIES, s.MIDDLE, s.LAST)
        sampled, spread = self.sampled[most], self.spread[most]
        rule = s.rules(most, EVEN)[s.SDPO]
        predicted, asked = rule(sampled.truth[self.reward], sampled.similarity)
        bins = s.calibration(predicted[~asked], sampled.truth[self.reward][~asked])
        ends = [min(x for x, _ in bins), max(x for x, _ in bins)]
        accuracy = self.accuracy[most]
        charts = (
            Chart(
                f"Error by step, T = {most}",
                "denoising step, 0 is the noisiest",
                "mean absolute error, sd",
                [line(name, range(most), accuracy[name].by_step.tolist()) for name in shown],
            ),
            Chart(
                f"Correlation by step, T = {most}",
                "denoising step, 0 is the noisiest",
                "Spearman within prompt",
                [line(name, range(most), accuracy[name].correlation.tolist()) for name in shown],
                zero=True,
            ),
            Chart(
                f"Cost and accuracy, T = {most}",
                "reward queries of a trajectory",
                "mean absolute error, sd",
                _cost_lines({n: (accuracy[n].queries, self._error(most, n)) for n in self.matrices[most]}),
            ),
            Chart(
                "Error by number of steps",
                "denoising steps T",
                "mean absolute error, sd",
                [
                    banded(name, sorted(self.sampled), [self._error(n, name) for n in sorted(self.sampled)])
                    for name in shown
                ],
                steps=True,
            ),
            Chart(
                f"Calibration, T = {most}",
                "predicted reward",
                "true reward",
                [line(s.SDPO, [x for x, _ in bins], [y for _, y in bins]), line("equal", ends, list(ends))],
            ),
        )
        caption = (
            f"{self.title} (standard deviation {spread:.3g}): predicted against true rewards of the base model's "
            "trajectories. Bands: 95 % crossed intervals over seeds and prompts."
        )
        return [Plot(self.title.replace(", ", "-"), caption, charts, columns=3, size=(3.6, 2.8))]

    def _error(self, steps: int, rule: str) -> Estimate | None:
        matrix = self.matrices[steps].get(rule)
        return crossed_interval(matrix) if matrix else None


def _cost_lines(errors: Mapping[str, tuple[float, Estimate | None]]) -> list[Any]:
    """Error against queries, one line for each family of rules."""
    lines = []
    for kind in ("similarity", "linear", "last"):
        best: dict[float, Estimate] = {}
        for name, (queries, error) in errors.items():
            if name.startswith(kind) and error and (queries not in best or error.value < best[queries].value):
                best[queries] = error
        label = s.LAST if kind == "last" else f"{kind}, best of its kind"
        lines.append(banded(label, sorted(best), [best[queries] for queries in sorted(best)]))
    return lines


def _versus(contrasts: Mapping[int, Contrast], words: str) -> str:
    verdicts = {"down": "better than", "up": "worse than", "unclear": "not significantly different from"}
    texts = []
    for outcome, verdict in verdicts.items():
        steps = [f"{n}{c.interval_words}" for n, c in contrasts.items() if c.outcome == outcome]
        if steps:
            texts.append(f"{verdict} {words} at T = {listed(steps)}")
    return "it is " + ", ".join(texts)


def _ranges(steps: list[int]) -> str:
    """``0-3, 7``."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


# -- tables --------------------------------------------------------------------------------------------------


def _accuracy_table(views: list[_Reward]) -> t.Table:
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


def _error_cell(view: _Reward, steps: int, rule: str) -> t.Cell:
    accuracy = view.accuracy[steps].get(rule)
    if accuracy is None:
        return t.Cell(t.DASH)
    if accuracy.not_finite:
        return t.word(f"{100 * accuracy.not_finite:.2g} % NaN")
    strong = rule in RIVALS and view.against(rule)[steps].shown
    return t.estimate(view._error(steps, rule), 3, strong=strong)


def _prediction_table(views: list[_Reward]) -> t.Table:
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


def _prediction_row(view: _Reward, steps: int) -> t.Row:
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
            t.word(f"{len(failed)} of {judged}" + (f": {_ranges(failed)}" if failed else "")),
            t.word(verdict),
        )
    )
