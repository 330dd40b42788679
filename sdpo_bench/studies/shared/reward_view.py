"""What one reward's numbers say on one model: errors of every rule, their tests, sentences and plots."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdpo_bench.results.study_findings import Plot, banded, line
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.contrasts import Contrast, family, listed
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.studies.shared import step_rewards as s
from sdpo_bench.studies.shared.models_compared import with_spread
from sdpo_bench.studies.shared.true_rewards import Sampled

EVEN = (5, 9)
USABLE = 0.5
"""Correlation with the true reward among trajectories of one prompt, below which a prediction counts as failed."""
RIVALS = (s.LAST, s.SAME_QUERIES, s.MIDDLE, "linear, ends (2)")


def as_matrix(values: np.ndarray, sampled: Sampled, seeds: tuple[int, ...], prompts: list[str]) -> Matrix:
    """``[n]`` numbers of trajectories as means of each seed and prompt."""
    shape = (len(seeds), len(prompts))
    cell = np.ravel_multi_index((sampled.seeds, sampled.prompts), shape)
    means = np.bincount(cell, values, minlength=shape[0] * shape[1]) / np.bincount(cell, minlength=shape[0] * shape[1])
    return Matrix(means.reshape(shape), seeds, tuple(prompts))


def _spread(truth: np.ndarray) -> float:
    """Standard deviation; exactly 0 for equal numbers, whose mean may be rounded."""
    return float(truth.std(ddof=1)) if np.ptp(truth) > 0 else 0.0


class RewardView:
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
                texts.append(f"T = {steps} (step{'s' * (len(failed) > 1)} {ranges(failed)} of {judged} judged)")
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
                _cost_lines({n: (accuracy[n].queries, self.error(most, n)) for n in self.matrices[most]}),
            ),
            Chart(
                "Error by number of steps",
                "denoising steps T",
                "mean absolute error, sd",
                [
                    banded(name, sorted(self.sampled), [self.error(n, name) for n in sorted(self.sampled)])
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

    def error(self, steps: int, rule: str) -> Estimate | None:
        """Mean absolute error with its interval; None where it is not finite."""
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


def ranges(steps: list[int]) -> str:
    """``0-3, 7``."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
