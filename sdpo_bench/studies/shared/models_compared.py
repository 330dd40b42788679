"""The errors of one prediction on two models, paired by prompt and seed: on which model is the prediction better?

An error is a share of the standard deviation of its own model's true rewards. Two models have two such deviations, each
estimated from the same trajectories as the errors, so their sampling errors belong to the interval of the difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.contrasts import Contrast, contrast_cells, exploratory, family, listed
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.matrices import Matrix, paired

POWER = 0.8
OUTCOMES = {"up": "significantly larger", "down": "significantly smaller", "unclear": "not significantly different"}


class Place(NamedTuple):
    """Where two models are compared."""

    reward: str
    rule: str
    steps: int


def with_spread(error: Matrix, deviation: Matrix) -> Matrix:
    """Errors of a model in a form whose interval has the sampling error of the standard deviation too.

    The mean error is a ratio, ``mean |gap| / sd``. Each cell becomes its share of the ratio's first-order (Taylor)
    expansion, ``error - mean(error) (deviation / mean(deviation) - 1) / 2``; the mean over all cells stays the same.
    Source: Woodruff, "A simple method for approximating the variance of a complicated estimate", JASA 66 (1971).

    Args:
        error: of each seed and prompt, in standard deviations.
        deviation: mean squared deviation of the true reward from its mean over everything; same seeds and prompts; not
            0 everywhere.
    """
    mean = deviation.values.mean()
    return replace(error, values=error.values - error.values.mean() * (deviation.values / mean - 1) / 2)


class ModelsCompared:
    """Errors on one model minus errors on a reference model, by reward, rule and T."""

    def __init__(
        self,
        model: str,
        reference: str,
        main: str,
        differences: Mapping[Place, Matrix],
        constant: Sequence[tuple[str, int]] = (),
    ):
        """
        Args:
            main: the rule whose differences are the declared family; those of the others are exploratory.
            constant: reward and T where the true reward of one model never varies, which are not compared.
        """
        self.model, self.reference, self.main = model, reference, main
        self.constant = tuple(constant)
        declared = {place: m for place, m in differences.items() if place.rule == main}
        others = {place: m for place, m in differences.items() if place.rule != main}
        found = contrasts_by_place(declared, family) | contrasts_by_place(others, exploratory)
        self.contrasts: dict[Place, Contrast] = {place: found[place] for place in differences}

    @property
    def rewards(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.reward for place in self.contrasts))

    def declared(self, reward: str = "") -> dict[Place, Contrast]:
        """The family of the main rule, or its part of one reward."""
        return {p: c for p, c in self.contrasts.items() if p.rule == self.main and reward in ("", p.reward)}

    def sentences(self) -> list[str]:
        """The answer over the whole family, the numbers of each reward, and what is not compared."""
        answer = [self._answer()] if self.contrasts else []
        return [*answer, *map(self._of_reward, self.rewards), *self._not_compared()]

    def _not_compared(self) -> list[str]:
        if not self.constant:
            return []
        where = listed(_by_reward([Place(reward, self.main, steps) for reward, steps in self.constant]))
        return [
            f"Not compared: {where}. The true reward of at least one model never varies there, so its error has no "
            "standard deviation as a unit."
        ]

    def _answer(self) -> str:
        verdict = verdicts(self.declared(), self.reference)
        return f"On {self.model} latent similarity predicts step rewards {verdict}."

    def _of_reward(self, reward: str) -> str:
        texts = []
        for outcome, words in OUTCOMES.items():
            contrasts = self.declared(reward).items()
            found = [f"{place.steps} ({_numbers(c)})" for place, c in contrasts if c.outcome == outcome]
            if found:
                texts.append(f"{words} at T = {listed(found)}")
        where = f"{reward}, {self.model} minus {self.reference}"
        return f"{where}: the error of SDPO's prediction is {'; '.join(texts)}."

    def table(self) -> t.Table:
        """Differences of all rules at every T, one group a reward."""
        counts = sorted({place.steps for place in self.contrasts})
        columns = [t.Column("rule", "prediction (queries)", numeric=False)]
        for n in counts:
            columns.append(t.Column(f"t{n}", f"T = {n}", help=f"error on {self.model} minus error on {self.reference}"))
            columns.append(t.Column(f"p{n}", "p", help="adjusted"))
        notes = (
            f"Mean absolute error on {self.model} minus that on {self.reference}, each in standard deviations of its "
            "own model's true reward, paired by prompt and seed, ± half its 95 % crossed interval over seeds and "
            "prompts; the interval has the sampling errors of both standard deviations. Positive: worse on "
            f"{self.model}. Grey rows: the declared family (Holm over all rewards and T). Other rows: exploratory "
            "(Benjamini-Hochberg). Bold: significant.",
            *self._not_compared(),
        )
        title = f"Error of predicted step rewards: {self.model} minus {self.reference}"
        return t.Table("models", title, tuple(columns), tuple(self._group(r, counts) for r in self.rewards), notes)

    def _group(self, reward: str, counts: list[int]) -> t.Group:
        rules = dict.fromkeys(place.rule for place in self.contrasts if place.reward == reward)
        rows = []
        for rule in rules:
            found = [contrast_cells(self.contrasts.get(Place(reward, rule, n))) for n in counts]
            cells = [cell for pair in found for cell in pair]
            rows.append(t.Row((t.word(rule), *cells), rule == self.main))
        return t.Group(reward, tuple(rows))


def differences(
    reward: str, model: Mapping[int, Mapping[str, Matrix]], reference: Mapping[int, Mapping[str, Matrix]]
) -> dict[Place, Matrix]:
    """Paired differences of one reward from matrices by T and rule; a T or rule counts where both models have it.

    Raises:
        UsageError: other prompts or seeds.
    """
    found = {}
    for steps, rules in model.items():
        others = reference.get(steps, {})
        for rule, matrix in rules.items():
            if rule in others:
                found[Place(reward, rule, steps)] = paired(matrix, others[rule])
    return found


def contrasts_by_place(
    differences: Mapping[Place, Matrix], adjust: Callable[[Mapping[str, Matrix]], dict[str, Contrast]]
) -> dict[Place, Contrast]:
    """Tested differences; ``adjust`` is ``family`` or ``exploratory``."""
    found = adjust({_label(place): matrix for place, matrix in differences.items()})
    return {place: found[_label(place)] for place in differences}


def verdicts(contrasts: Mapping[Place, Contrast], reference: str) -> str:
    """For example ``significantly worse than on turbo for style at T = 5; 1 of 2 comparisons are not significant``."""
    texts = []
    for outcome, words in (("up", "worse"), ("down", "better")):
        places = _by_reward([place for place, c in contrasts.items() if c.outcome == outcome])
        if places:
            texts.append(f"significantly {words} than on {reference} for {listed(places)}")
    near = _near_words(contrasts)
    if not texts:
        neither = f"neither significantly better nor significantly worse than on {reference}"
        return f"{neither} in any of {len(contrasts)} comparisons, which is not equality{near}"
    open_ones = sum(c.outcome == "unclear" for c in contrasts.values())
    rest = f"; {open_ones} of {len(contrasts)} comparisons are not significant{near}" if open_ones else ""
    return " and ".join(texts) + rest


def _near_words(contrasts: Mapping[Place, Contrast]) -> str:
    """A clause with the comparisons of which only the interval excludes 0, each with both; empty without one."""
    near = [f"{p.reward} at T = {p.steps}{c.interval_words}" for p, c in contrasts.items() if c.interval_words]
    return f", though the interval excludes 0 for {listed(near)}" if near else ""


def _label(place: Place) -> str:
    return f"{place.reward}, {place.rule}, T = {place.steps}"


def _by_reward(places: list[Place]) -> list[str]:
    """For example ``emoji-align at T = 20 and 50``."""
    steps: dict[str, list[int]] = {}
    for place in places:
        steps.setdefault(place.reward, []).append(place.steps)
    return [f"{reward} at T = {listed(own)}" for reward, own in steps.items()]


def _numbers(contrast: Contrast) -> str:
    """Difference, interval and adjusted p; where it is not significant, the difference that would be found."""
    e = contrast.estimate
    if contrast.adjusted_p is None:
        return f"{e.value:+.2g}, one seed, no interval"
    text = f"{e.value:+.2g}, interval [{e.low:.2g}, {e.high:.2g}], adjusted {t.p_words(contrast.adjusted_p)}"
    return text if contrast.shown else text + _power_words(e)


def _power_words(estimate: Estimate) -> str:
    findable = estimate.detectable(POWER)
    if not findable:
        return ""
    return f"; power of {100 * POWER:.0f} % for a difference of {findable:.2g} before adjustment"
