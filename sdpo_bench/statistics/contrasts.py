"""Families of comparisons and the sentences they allow: where a study's conclusion comes from.

A study declares its family before it looks. Each member is a seed x prompt matrix whose mean is compared with 0; its
interval is the crossed one, its p value agrees with that interval and is adjusted by Holm over the family.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.statistics.ranking import benjamini_hochberg, holm

LEVEL = 0.95


@dataclass(frozen=True)
class Contrast:
    """One member of a family: a mean that is compared with 0."""

    label: str
    estimate: Estimate
    adjusted_p: float | None
    """Holm's, or Benjamini and Hochberg's where exploratory; None with one seed."""

    @property
    def shown(self) -> bool:
        """Whether the mean differs from 0 after adjustment."""
        return self.adjusted_p is not None and self.adjusted_p < 1 - LEVEL

    @property
    def outcome(self) -> str:
        """``up``, ``down`` or ``unclear``."""
        return "up" if self.up else "down" if self.down else "unclear"

    @property
    def words(self) -> str:
        """The label; where only the interval excludes 0, with the interval and the adjusted p."""
        return self.label + self.interval_words

    @property
    def interval_words(self) -> str:
        """Interval and adjusted p in brackets where only the interval excludes 0; else empty."""
        e = self.estimate
        if self.shown or self.adjusted_p is None or not e.excludes_zero:
            return ""
        return f" ({e.value:+.3g}, interval [{e.low:.3g}, {e.high:.3g}], but adjusted p = {self.adjusted_p:.2g})"

    @property
    def size_words(self) -> str:
        """Value, interval and adjusted p in brackets; where 0 is not excluded, the value that would have been found."""
        e = self.estimate
        if self.adjusted_p is None:
            return f" ({e.value:+.3g}, one seed, no interval)"
        findable = None if self.shown else e.detectable()
        power = f"; {findable:.3g} would be found with a power of 80 % before adjustment" if findable else ""
        return f" ({e.value:+.3g}, interval [{e.low:.3g}, {e.high:.3g}], adjusted {t.p_words(self.adjusted_p)}{power})"

    @property
    def up(self) -> bool:
        return self.shown and self.estimate.value > 0

    @property
    def down(self) -> bool:
        return self.shown and self.estimate.value < 0


def family(matrices: Mapping[str, Matrix | None]) -> dict[str, Contrast]:
    """Contrasts of a declared family by label, in the order given. A missing matrix is left out; one without an
    interval counts with p = 1."""
    return _adjusted(matrices, holm)


def exploratory(matrices: Mapping[str, Matrix | None]) -> dict[str, Contrast]:
    """Contrasts of an undeclared grid: Benjamini-Hochberg instead of Holm."""
    return _adjusted(matrices, benjamini_hochberg)


def _adjusted(
    matrices: Mapping[str, Matrix | None], adjust: Callable[[list[float | None]], Any]
) -> dict[str, Contrast]:
    estimates = {label: crossed_interval(m, LEVEL) for label, m in matrices.items() if m is not None}
    p_values = [estimate.p_value() for estimate in estimates.values()]
    contrasts = {}
    for (label, estimate), p, adjusted in zip(estimates.items(), p_values, adjust(p_values)):
        contrasts[label] = Contrast(label, estimate, None if p is None else float(adjusted))
    return contrasts


def listed(names: Iterable[object]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def outcome_sentences(contrasts: Iterable[Contrast], templates: Mapping[str, str]) -> list[str]:
    """One sentence for each outcome that occurs, in the order of the templates.

    Args:
        templates: by ``Contrast.outcome``; ``{names}`` stands for the contrasts that have it (:attr:`Contrast.words`).
    """
    contrasts, sentences = list(contrasts), []
    for outcome, template in templates.items():
        names = [contrast.words for contrast in contrasts if contrast.outcome == outcome]
        if names:
            sentences.append(template.format(names=listed(names)))
    return sentences


def seed_caution(contrasts: Iterable[Contrast]) -> list[str]:
    """One sentence on the limits of few seeds; none from 5 seeds on."""
    seeds = min((contrast.estimate.n_seeds for contrast in contrasts), default=0)
    if seeds == 1:
        return ["One seed: values without intervals, so nothing can be tested."]
    if 1 < seeds < 5:
        return [f"{seeds} seeds: what is not significant may still be there; 5 or more are advised."]
    return []


def contrast_cells(contrast: Contrast | None, digits: int = 3) -> tuple[t.Cell, t.Cell]:
    """Estimate and adjusted p for a table; strong where it is significant."""
    if contrast is None:
        return t.Cell(t.DASH), t.Cell(t.DASH)
    value = t.estimate(contrast.estimate, digits, signed=True, strong=contrast.shown)
    return value, t.p_value(contrast.adjusted_p)
