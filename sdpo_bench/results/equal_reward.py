"""Methods at equal training reward: what another curve shows when the trained one first reaches a height.

At equal budgets one method may have risen further than another on the training prompts, and unseen prompts can lose
again while these still gain. So scores at the end mix two questions. Here each run is read where its reward on the
training prompts has risen by the same amount.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo_bench.results.learning_curves import MEAN, CurvePanel, Level, level_of
from sdpo_bench.statistics.curves import SeedCurve, final_rise, over_seeds, rise_when
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.ranking import holm


@dataclass(frozen=True, eq=False)
class CurvePair:
    """The trained reward's curves on the training prompts, and other curves of the same runs."""

    trained: CurvePanel
    other: CurvePanel

    @property
    def arms(self) -> dict[str, tuple[tuple[SeedCurve, SeedCurve], ...]]:
        """By label: both curves of each seed that has both, means over step counts; sorted by label."""
        found = {}
        for label in sorted(self.trained.arms.keys() & self.other.arms.keys()):
            others = {curve.seed: curve for curve in self.other.arms[label][MEAN]}
            own = self.trained.arms[label][MEAN]
            if both := tuple((curve, others[curve.seed]) for curve in own if curve.seed in others):
                found[label] = both
        return found


@dataclass(frozen=True)
class RewardLine:
    """One method at that height."""

    label: str
    rise: Estimate | None
    """Of the other curve there; None where a seed never reaches it, since leaving it out would flatter the method."""
    final: Estimate
    """Of the other curve at its end."""
    difference: Estimate | None = None
    """To the reference method there, paired by seed."""
    difference_p: float | None = None
    """Holm's, over all methods that have a difference."""
    change: Estimate | None = None
    """Of that difference from there to the end of training, paired by seed."""
    change_p: float | None = None
    """Holm's, over all methods that have a change."""


def curve_pairs(panels: Sequence[CurvePanel]) -> list[CurvePair]:
    """Every panel beside that of the trained reward on training prompts under the same evaluation sampler."""
    pairs = []
    for trained in panels:
        if trained.trained and trained.key.split == "train":
            others = [panel for panel in panels if panel is not trained and panel.key.sampler == trained.key.sampler]
            pairs += [pair for pair in (CurvePair(trained, other) for other in others) if pair.arms]
    return pairs


def equal_level(panel: CurvePanel, stated: float | None, level: float) -> Level | None:
    """The level of the table of learning curves (:func:`level_of`), or less if a run never gets there."""
    chosen = level_of(panel, MEAN, stated, level)
    if chosen is None or stated is not None:
        return chosen
    lowest = min(float(curve.rise.max()) for curves in panel.arms.values() for curve in curves[MEAN])
    return Level(lowest, "the largest that every run reaches") if 0 < lowest < chosen.rise else chosen


def lines_at(pair: CurvePair, height: float, reference: str, level: float) -> list[RewardLine]:
    """Every method at a height of the trained reward, the highest on the other curve first.

    Args:
        reference: label that differences are measured against; none without it.
    """
    arms = pair.arms
    there, since = {}, {}
    for label, both in arms.items():
        there[label] = {own.seed: rise_when(own, other, height) for own, other in both}
        ends = {other.seed: float(other.rise[-1]) for _, other in both}
        since[label] = {seed: None if rise is None else ends[seed] - rise for seed, rise in there[label].items()}
    differences, difference_p = _differences(there, reference, level)
    changes, change_p = _differences(since, reference, level)
    lines = []
    for label, both in arms.items():
        line = RewardLine(
            label,
            _over_all(there[label], level),
            final_rise([other for _, other in both], level),
            differences.get(label),
            difference_p.get(label),
            changes.get(label),
            change_p.get(label),
        )
        lines.append(line)
    return sorted(lines, key=lambda line: (line.rise is None, -(line.rise.value if line.rise else 0.0), line.label))


def _differences(
    values: Mapping[str, Mapping[int, float | None]], reference: str, level: float
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Each method's difference to the reference, and Holm's p of those that can be tested; both by label.

    Args:
        values: by label, one number a seed; None for a seed that never reaches the height.
    """
    differences = {}
    for label in values:
        found = (
            _difference(values[label], values[reference], level) if reference in values and label != reference else None
        )
        if found is not None:
            differences[label] = found
    p_values = {label: p for label, estimate in differences.items() if (p := estimate.p_value()) is not None}
    return differences, dict(zip(p_values, map(float, holm(list(p_values.values()))), strict=True))


def _over_all(rises: Mapping[int, float | None], level: float) -> Estimate | None:
    values = [rise for rise in rises.values() if rise is not None]
    return over_seeds(list(rises), values, level) if len(values) == len(rises) else None


def _difference(
    own: Mapping[int, float | None], reference: Mapping[int, float | None], level: float
) -> Estimate | None:
    """Over the seeds that both methods have; None where a seed of one of them never reaches the height."""
    if None in own.values() or None in reference.values():
        return None
    gaps = {
        seed: rise - other
        for seed, rise in own.items()
        if rise is not None and (other := reference.get(seed)) is not None
    }
    return over_seeds(list(gaps), list(gaps.values()), level) if gaps else None
