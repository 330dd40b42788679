"""Families of comparisons and the sentences they allow: where a study's conclusion comes from.

A study declares its family before it looks. Each member is a seed x prompt matrix whose mean is compared with 0; its
interval is the crossed one, its p value agrees with that interval and is adjusted by Holm over the family.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
    def up(self) -> bool:
        return self.shown and self.estimate.value > 0

    @property
    def down(self) -> bool:
        return self.shown and self.estimate.value < 0


def family(matrices: Mapping[str, Matrix]) -> dict[str, Contrast]:
    """Contrasts of a declared family by label, in the order given. One without an interval counts
    with p = 1."""
    return _adjusted(matrices, holm)


def exploratory(matrices: Mapping[str, Matrix]) -> dict[str, Contrast]:
    """Contrasts of an undeclared grid: Benjamini-Hochberg instead of Holm."""
    return _adjusted(matrices, benjamini_hochberg)


def _adjusted(matrices: Mapping[str, Matrix], adjust: Callable[[Sequence[float | None]], Any]) -> dict[str, Contrast]:
    estimates = {label: crossed_interval(matrix, LEVEL) for label, matrix in matrices.items()}
    p = {label: estimate.p_value() for label, estimate in estimates.items()}
    adjusted = adjust(list(p.values()))
    return {
        label: Contrast(label, estimates[label], None if p[label] is None else float(new))
        for label, new in zip(estimates, adjusted)
    }


def listed(names: Iterable[object]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sorted_out(contrasts: Iterable[Contrast], up: str, down: str, open_: str) -> list[str]:
    """One sentence for each outcome that occurs: ``{names}`` in the templates are the labels that have it."""
    contrasts = list(contrasts)
    groups = [
        (up, [c for c in contrasts if c.up]),
        (down, [c for c in contrasts if c.down]),
        (open_, [c for c in contrasts if not c.shown]),
    ]
    return [template.format(names=listed(c.label for c in members)) for template, members in groups if members]


def seed_caution(contrasts: Iterable[Contrast]) -> list[str]:
    """One sentence on the limits of few seeds; none from 5 seeds on."""
    seeds = min((contrast.estimate.n_seeds for contrast in contrasts), default=0)
    if seeds == 1:
        return ["One seed: values without intervals, so nothing can be shown."]
    return [f"{seeds} seeds: what is not shown may still be there; 5 or more are advised."] if 1 < seeds < 5 else []


def contrast_cells(contrast: Contrast | None, digits: int = 3) -> tuple[t.Cell, t.Cell]:
    """Estimate and adjusted p for a table; strong where it is shown."""
    if contrast is None:
        return t.Cell(t.DASH), t.Cell(t.DASH)
    value = t.estimate(contrast.estimate, digits, signed=True, strong=contrast.shown)
    return value, t.p_value(contrast.adjusted_p)
